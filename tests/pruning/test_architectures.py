"""Small members of the families that people have, from timm and Hugging Face: the same logits, whole and pruned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hooked
import pytest
import timm
import torch
import transformers as hf
from pxp_optimize.attribution import collect_relevance
from pxp_optimize.pruning import compact_model, masked_model, prune_masks, trace
from pxp_optimize.pruning.graph import logits_of
from torch import Tensor, nn
from torchvision.models import swin_transformer

VIT = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3}
TIMM: dict[str, tuple[dict[str, Any], int]] = {
    "vit_tiny_patch16_224": ({**VIT, "patch_size": 8, "qk_norm": True}, 32),
    "deit3_small_patch16_224": ({**VIT, "patch_size": 8}, 32),
    "vit_small_patch14_reg4_dinov2": ({**VIT, "patch_size": 8}, 32),
    "beit_base_patch16_224": ({**VIT, "patch_size": 8}, 32),
    "cait_xxs24_224": ({**VIT, "patch_size": 8}, 32),
    "xcit_nano_12_p16_224": ({**VIT}, 32),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (1, 3)},
        32,
    ),
    "pvt_v2_b0": ({"depths": (1, 1, 1, 1)}, 32),
    "convnextv2_atto": ({"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}, 32),
    "skresnet18": ({}, 32),
    "regnety_002": ({}, 32),
    "tf_efficientnetv2_b0": ({}, 32),
    "mobilenetv4_conv_small": ({}, 32),
    "resmlp_12_224": ({"img_size": 32}, 32),
    "poolformer_s12": ({}, 32),
}
STAGES = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_labels": 5}
SIZES = {"num_labels": 5, "image_size": 32}
TOKENS = {
    **SIZES,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 32,
    "patch_size": 8,
}
WINDOWS = {**SIZES, "embed_dim": 12, "depths": [2, 2], "num_heads": [1, 3], "window_size": 4, "patch_size": 4}
HUGGING_FACE = {"ViT": TOKENS, "Beit": TOKENS, "Swin": WINDOWS, "ConvNextV2": STAGES, "ResNet": STAGES}
COMPOSITE = {
    "groups": {
        "low": {"rule": "epsilon"},
        "mid": {"rule": "gamma"},
        "high": {"rule": "zplus"},
        "classifier": {"rule": "epsilon"},
    }
}


def images(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def check(model: nn.Module, x: Tensor) -> None:
    """The graph's logits are the model's, the compact network's those of the masked one and of the model itself with
    what pruned units give zeroed by hooks, and relevance is finite."""
    graph = trace(model, x)
    expected = logits_of(model(x))
    assert expected.std() > 1e-3, "these logits could not tell a wrong network"
    assert relative(graph.network(x), expected) < 1e-5
    relevance = collect_relevance(graph, COMPOSITE, x, torch.tensor([0, 3]), units=None)
    assert all(bool(values.isfinite().all()) for values in relevance.values())
    assert any(bool(values.any()) for values in relevance.values())
    for units in dict.fromkeys(graph.kinds.values()):
        generator = torch.Generator().manual_seed(2)
        scores = {name: torch.rand(size, generator=generator) for name, size in graph.units(units).items()}
        for rate in (0.4, 0.9):
            masks = prune_masks(scores, rate)
            small = compact_model(graph, masks)
            assert relative(small(x), masked_model(graph, masks)(x)) < 1e-4
            layers = hooked.places(model, [name for name in masks if graph.kinds[name] != "heads"], x)
            with hooked.pruned(model, layers, graph.kinds, masks):
                assert relative(small(x), logits_of(model(x))) < 1e-4
            before, after = (sum(p.numel() for p in network.parameters()) for network in (graph.network, small))
            assert after < before


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str, randomise: Callable[[nn.Module], nn.Module]) -> None:
    options, size = TIMM[name]
    torch.manual_seed(0)
    check(randomise(timm.create_model(name, num_classes=5, **options)), images(size))


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face(name: str, randomise: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    config = getattr(hf, f"{name}Config")(**HUGGING_FACE[name])
    check(randomise(getattr(hf, f"{name}ForImageClassification")(config)), images(32))


def test_torchvisions_windows(randomise: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    model = swin_transformer.SwinTransformer(
        *([4, 4], 12, [2, 2], [1, 3], [4, 4]), stochastic_depth_prob=0.0, num_classes=5
    )
    check(randomise(model), images(32))


def vision_transformers(randomise: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """The same network as torchvision writes it and as timm does."""
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    ours = randomise(VisionTransformer(32, 8, 2, 3, 24, 32, num_classes=5))
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=5, patch_size=8, mlp_ratio=32 / 24, **VIT).eval()
    names = {
        "class_token": "cls_token",
        "conv_proj": "patch_embed.proj",
        "encoder.pos_embedding": "pos_embed",
        "encoder.layers.encoder_layer_": "blocks.",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "self_attention.in_proj_": "attn.qkv.",
        "self_attention.out_proj": "attn.proj",
        "mlp.0": "mlp.fc1",
        "mlp.3": "mlp.fc2",
        "encoder.ln": "norm",
        "heads.head": "head",
    }
    weights = {}
    for key, value in ours.state_dict().items():
        for before, after in names.items():
            key = key.replace(before, after)
        weights[key] = value
    theirs.load_state_dict(weights)
    for block in theirs.blocks:
        block.norm1.eps = block.norm2.eps = 1e-6
    return ours, theirs


@pytest.mark.parametrize("softmax", ["attnlrp", "zplus", "zplus_bias", "cp"])
def test_the_same_transformer_in_two_spellings(softmax: str, randomise: Callable[[nn.Module], nn.Module]) -> None:
    ours, theirs = vision_transformers(randomise)
    x, targets = images(32), torch.tensor([0, 3])
    assert relative(theirs(x), ours(x)) < 1e-5
    document = {**COMPOSITE, "attention": {"softmax": softmax}}
    found = [collect_relevance(model, document, x, targets, units="heads") for model in (ours, theirs)]
    for first, second in zip(found[0].values(), found[1].values(), strict=True):
        assert float((first - second).norm() / first.norm()) < 1e-3


def test_heads_of_one_layer_for_all_three_are_gone(randomise: Callable[[nn.Module], nn.Module]) -> None:
    """Against the user's own network, what its heads give being zeroed by hooks."""
    _, model = vision_transformers(randomise)
    x = images(32)
    masks = {"blocks.0.attn.softmax": torch.tensor([True, False, True]), "blocks.1.attn.softmax": torch.zeros(3).bool()}
    small = compact_model(model, masks)
    assert small.get_submodule("blocks.0.attn.qkv").weight.shape == (3 * 2 * 8, 24)
    assert small.get_submodule("blocks.0.attn.proj").weight.shape == (24, 2 * 8)
    assert small.get_submodule("blocks.1.attn.proj").weight.shape == (24, 0)
    for name, kept in masks.items():
        layer = model.get_submodule(name.replace("softmax", "proj"))
        layer.register_forward_pre_hook(lambda _, args, kept=kept: (args[0] * kept.repeat_interleave(8),))
    assert relative(small(x), model(x)) < 1e-5


def test_bias_tables_lose_their_heads(randomise: Callable[[nn.Module], nn.Module]) -> None:
    options, size = TIMM["swin_tiny_patch4_window7_224"]
    torch.manual_seed(0)
    graph = trace(randomise(timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **options)), images(size))
    name = next(name for name, heads in graph.units("heads").items() if heads == 3)
    small = compact_model(graph, {name: torch.tensor([True, False, False])})
    shapes = [tuple(value.shape) for key, value in small.state_dict().items() if key.endswith("_part.value")]
    assert (1, 1, 16, 16) in shapes or (1, 16, 16) in shapes
