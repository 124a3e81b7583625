"""The architectures that `coverage.py` goes through, each with random weights of which every one matters."""

from __future__ import annotations

import torch
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
NAMES = [f"{library}:{name}" for library, text in ARCHITECTURES.items() for name in text.split()]
CLASSES = 10
SMALL = {"num_labels": CLASSES, "image_size": 64}
VIT = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96, "patch_size": 16}
WINDOWS = {"embed_dim": 24, "depths": [1, 1, 2], "num_heads": [1, 2, 4], "window_size": 4, "patch_size": 4}
STAGES = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1], "num_labels": CLASSES}
CONFIGS = {
    **{name: {**VIT, **SMALL} for name in ("ViT", "DeiT", "Beit", "Dinov2")},
    "Swin": {**WINDOWS, **SMALL},
    **dict.fromkeys(("ConvNext", "ConvNextV2", "ResNet"), STAGES),
    "MobileNetV2": {"num_labels": CLASSES},
}


@torch.no_grad()
def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network, in eval mode, and two images of its size.

    name: LIBRARY:NAME, where LIBRARY is tv (torchvision), timm or hf (a small configuration of Hugging Face).
    """
    library, _, name = name.partition(":")
    torch.manual_seed(0)
    size = 64
    if library == "tv":
        import torchvision

        extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model, size = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **extra), 224
    elif library == "timm":
        import timm

        model = timm.create_model(name, pretrained=False, num_classes=CLASSES)
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
    return model.eval(), torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
