"""How deep layers lie in a network, and what sort they are: the groups and types by which composites give rules."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

RESNET_STAGES = {"layer1": "low", "layer2": "mid", "layer3": "mid", "layer4": "high"}


def depth_groups(
    layers: list[str],
    modules: Mapping[str, nn.Module],
    *,
    transformer: bool = False,
    ruleless: Collection[str] = (),
) -> dict[str, str]:
    """The depth group of each layer: the paper's split where it names one, its fractions elsewhere.

    Hatefi et al., appendix: resnet by stage; vgg16 4, 5 and 4 of its 13 convolutions, linear layers apart;
    vision transformers a quarter, a half and a quarter of the encoder layers. Layers that take no rule (`ruleless`: a
    transformer's patch embedding) are in no group.
    """
    top = [name.split(".") for name in layers]
    while True:  # the network may be a part of another module, beside a layer or two
        inner = [name for name, path in zip(layers, top, strict=True) if path[0] == top[-1][0]]
        deeper = all(len(path) > 1 for path in top if path[0] == top[-1][0])
        holds = len(inner) == len(top) or any(isinstance(modules[name], nn.Conv2d) for name in inner)
        if not deeper or not holds or 2 * len(inner) <= len(top):
            break
        top = [path[1:] if path[0] == top[-1][0] else path for path in top]
    heads = [path[0] for path in top]
    trunk = [name for name, head in zip(layers, heads, strict=True) if head != heads[-1]] or layers[:-1]
    trunk = [name for name in trunk if name not in ruleless]
    resnet = set(RESNET_STAGES) <= set(heads)
    blocks = list(dict.fromkeys(_block(name) for name in trunk)) if transformer else trunk
    first, last = (1 / 4, 3 / 4) if transformer else (4 / 13, 9 / 13)
    groups = {}
    for name, head in zip(layers, heads, strict=True):
        if name in ruleless:
            continue
        if name not in trunk:
            groups[name] = "classifier"
        elif resnet:
            groups[name] = RESNET_STAGES.get(head, "low")
        else:
            # the small term keeps 4 of 13 from becoming 3 by rounding
            depth = blocks.index(_block(name) if transformer else name) / len(blocks) + 1e-9
            groups[name] = "low" if depth < first else "mid" if depth < last else "high"
    return groups


def layer_type(name: str, layer: nn.Module, *, first: bool, attention: str = "") -> str:
    """What sort of layer it is: q, k, v, qkv, out (attention), mlp, linear; stem, downsample, depthwise, 1x1, 3x3.

    attention: what it is there, if it is a part of attention. "3x3" stands for every convolution wider than a pixel,
    "downsample" for one on a shortcut.
    """
    if attention:
        return attention
    if isinstance(layer, nn.Linear):
        return "mlp" if ".mlp." in name else "linear"
    assert isinstance(layer, nn.Conv2d)
    if first:
        return "stem"
    if "downsample" in name or "shortcut" in name or ".proj." in name:
        return "downsample"
    if layer.groups > 1 and layer.groups == layer.in_channels:
        return "depthwise"
    return "1x1" if layer.kernel_size == (1, 1) else "3x3"


def _block(name: str) -> str:
    """The encoder layer a layer of a transformer belongs to."""
    for part in (".self_attention", ".mlp", ".attention", ".attn"):
        if part in name:
            return name.partition(part)[0]
    return name.rpartition(".")[0]
