"""Find the attention heads that a timm Vision Transformer can do without.

Trains a small ViT on scikit-learn's digits, searches for the LRP composite that ranks its heads best, and shows how
relevant each head is and what is left of the network without half of them. Run it with `python vit_heads.py` (it needs
`pip install timm`, but no download and no GPU). It takes about half a minute and writes `heads.db`, the study.
"""

import timm
import torch
from pxp_optimize.attribution import collect_relevance
from pxp_optimize.optimize import optimize
from sklearn.datasets import load_digits
from torch.nn import functional as F

torch.manual_seed(0)
digits = load_digits()
shuffled = torch.randperm(len(digits.images))
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)[shuffled] / 8 - 1  # (1797, 1, 8, 8)
targets = torch.tensor(digits.target)[shuffled]
train, search, test = ((images[rows], targets[rows]) for rows in (slice(1200), slice(1200, 1500), slice(1500, None)))

# A ViT-Tiny made to measure: 16 patches of 2 x 2 pixels, 3 blocks of 6 heads. A larger one with `pretrained=True` and
# images of your own takes the same calls below.
model = timm.create_model(
    "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, num_classes=10, depth=3, embed_dim=48, num_heads=6
)
optimizer = torch.optim.AdamW(model.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, epochs=20, steps_per_epoch=38)
for _ in range(20):
    for rows in torch.randperm(1200).split(32):
        optimizer.zero_grad()
        F.cross_entropy(model(train[0][rows]), train[1][rows]).backward()
        optimizer.step()
        schedule.step()

model.eval()

reference = train[0][:100], train[1][:100]  # about ten of each class
result = optimize(
    model,
    reference=reference,
    search=search,
    holdout=test,
    units="heads",
    rates="0:0.9:0.1",  # finer steps than 1 in 10 say little about 18 heads
    trials=12,  # a real search takes 100 or more; run the script with a higher number to continue this one
    storage="heads.db",
)
print(result.table())

print("Relevance of each head, as the best composite sees it:")
for layer, values in collect_relevance(model, result.composite, *reference, units="heads").items():
    print(f"  {layer}: " + "  ".join(f"{value:6.2f}" for value in values))

small = result.prune(rate=0.5)
for name, network in {"all heads": model, "half of them": small}.items():
    accuracy = (network(test[0]).argmax(1) == test[1]).float().mean()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{name}: {parameters} parameters, {accuracy:.1%} accuracy on the holdout images")
