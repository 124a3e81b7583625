"""Which architectures are accepted, and how exactly: one line of a Markdown table for each.

    python benchmarks/coverage.py [LIBRARY:NAME ...]

LIBRARY is tv (torchvision), timm or hf (a small configuration of Hugging Face transformers, with random weights);
without names, the whole list. Of each: its default units, the largest error of the graph's logits (as a part of the
largest logit), that of the compact network against the masked one with 10, 50 and 90 % of the units pruned by their
relevance, the part of the parameters that is left at 50 %, and seconds for it all.
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch
from pxp_optimize.attribution import collect_relevance
from pxp_optimize.pruning import compact_model, masked_model, prune_masks, trace
from pxp_optimize.pruning.graph import logits_of
from torch import nn

ARCHITECTURES = {
    "tv": (
        "alexnet resnet18 resnet50 vgg16_bn densenet121 googlenet shufflenet_v2_x0_5 squeezenet1_1 mobilenet_v2 "
        "mobilenet_v3_small efficientnet_b0 regnet_y_400mf convnext_tiny vit_b_32 swin_t maxvit_t"
    ),
    "timm": (
        "resnet50d seresnet50 resnetv2_50 ecaresnet50d skresnet18 nf_resnet50 efficientnet_b0 tf_efficientnetv2_b0 "
        "mobilenetv3_small_100 mobilenetv4_conv_small mobilenetv4_hybrid_medium ghostnet_100 regnety_002 repvgg_a0 "
        "cspresnet50 inception_v4 densenet121 resnet50_gn hrnet_w18_small convnextv2_atto poolformer_s12 fastvit_t8 "
        "edgenext_xx_small mobilevit_xxs vit_tiny_patch16_224 deit3_small_patch16_224 vit_small_patch14_reg4_dinov2 "
        "beit_base_patch16_224 swin_tiny_patch4_window7_224 coatnet_nano_rw_224 cait_xxs24_224 pvt_v2_b0 levit_128s "
        "xcit_nano_12_p16_224 resmlp_12_224 mixer_s32_224 tiny_vit_5m_224"
    ),
    "hf": "ViT Beit Swin ConvNextV2 ResNet MobileNetV2",
}
SMALL = {"num_labels": 10, "image_size": 64}
VIT = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96, "patch_size": 16}
WINDOWS = {"embed_dim": 24, "depths": [1, 1, 2], "num_heads": [1, 2, 4], "window_size": 4, "patch_size": 4}
STAGES = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1], "num_labels": 10}
CONFIGS = {
    **{name: {**VIT, **SMALL} for name in ("ViT", "DeiT", "Beit", "Dinov2")},
    "Swin": {**WINDOWS, **SMALL},
    **dict.fromkeys(("ConvNext", "ConvNextV2", "ResNet"), STAGES),
    "MobileNetV2": {"num_labels": 10},
}


@torch.no_grad()
def build(library: str, name: str) -> tuple[nn.Module, int]:
    """A network of random weights, each of which matters, and the size of its images."""
    torch.manual_seed(0)
    size = 64
    if library == "tv":
        import torchvision

        extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model, size = torchvision.models.get_model(name, weights=None, num_classes=10, **extra), 224
    elif library == "timm":
        import timm

        model = timm.create_model(name, pretrained=False, num_classes=10)
        size = model.default_cfg["input_size"][-1]
    else:
        import transformers

        config = getattr(transformers, f"{name}Config")(**CONFIGS[name])
        model = getattr(transformers, f"{name}ForImageClassification")(config)
    for key, value in [*model.named_parameters(), *model.named_buffers()]:
        if key.endswith("running_mean"):
            value.normal_(std=0.1)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point() and (value.dim() < 2 or not value.any() or float(value.abs().max()) < 1e-3):
            value.add_(0.1 * torch.randn(value.shape))
    return model.eval(), size


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a part of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def row(library: str, name: str) -> str:
    """The architecture's line."""
    model, size = build(library, name)
    x, t = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2)), torch.tensor([1, 7])
    rules = {"low": "epsilon", "mid": "gamma", "high": "zplus", "classifier": "epsilon"}
    start = time.time()
    graph = trace(model, x)
    with torch.no_grad():
        logits = error(graph.network(x), logits_of(model(x)))
    relevance = collect_relevance(graph, {"groups": {k: {"rule": v} for k, v in rules.items()}}, x, t, units=None)
    if not all(bool(value.isfinite().all()) for value in relevance.values()):
        raise ValueError("relevance is not finite")
    count = sum(value.numel() for value in relevance.values())
    silent = sum(not bool(value.any()) for value in relevance.values())
    errors, left = [], 0.0
    for rate in (0.1, 0.5, 0.9):
        masks = prune_masks(relevance, rate)
        small = compact_model(graph, masks)
        with torch.no_grad():
            errors.append(error(small(x), masked_model(graph, masks)(x)))
        if rate == 0.5:
            left = parameters(small) / parameters(graph.network)
    units = f"{count} {graph.default_units} in {len(relevance)} layers" + (f", {silent} without" if silent else "")
    found = ", ".join(f"{value:.0e}" for value in errors)
    return f"{units} | {logits:.0e} | {found} | {left:.0%} | {time.time() - start:.0f}"


def parameters(network: nn.Module) -> int:
    """How many weights and biases."""
    return sum(value.numel() for value in network.parameters())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="LIBRARY:NAME")
    names = parser.parse_args().names or [
        f"{key}:{name}" for key, text in ARCHITECTURES.items() for name in text.split()
    ]
    warnings.simplefilter("ignore")
    print("| architecture | units | logits | compact against masked | parameters | s |\n|---|---|---|---|---|---|")
    accepted = 0
    for name in names:
        try:
            found = row(*name.split(":", 1))
            accepted += 1
        except Exception as problem:
            found = f"refused: {type(problem).__name__} {str(problem).splitlines()[0] if str(problem) else ''} | | | |"
        print(f"| {name} | {found} |", flush=True)
    print(f"\n{accepted} of {len(names)} accepted")


if __name__ == "__main__":
    main()
