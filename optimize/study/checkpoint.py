"""The smaller network as a file: weights and masks, nothing that would have to be unpickled.

A safetensors file with the state dict of the pruned (and repaired) network, and a mask for each layer that says which
units of the original are left. The architecture is the original's, made smaller again when the file is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from optuna.study import Study
from optuna.trial import FrozenTrial
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ...attribution import Composite
from ...pruning import (
    COSTS,
    Graph,
    Masks,
    Network,
    NotFinite,
    compact,
    macs,
    mimic,
    sparsity_at,
    trace,
    without_constants,
)
from ...pruning.convolution import plain
from ...pruning.modules import gates_of
from ...studies.document import write_whole
from ...studies.errors import UserError
from ..evaluation.candidate import pruning_of
from ..evaluation.curve import right_predictions
from ..evaluation.evaluate import make_plan, plan_of
from ..evaluation.task import Task
from .prepare import Prepared, example_of

PRUNED_FORMAT = "pxp-pruned/1"
MASK = "pxp.mask."
"""What the names of masks begin with."""


def prune_task(task: Task, composite: Composite, rate: float, steps: int = 0, seed: int = 0) -> tuple[Graph, Masks]:
    """The network of a task at a rate, ranked, cut and repaired as its trials are, and trained for some steps to give
    what the whole one gives (`pruning.mimic`); and which units are left."""
    plan = make_plan(task, composite, rate)
    small, masks = next(plan.networks(task.graph, [rate], task.repair)), plan.ranking.masks(rate)
    images = task.reference.inputs if task.repair_images is None else task.repair_images
    repair = task.repair_name
    return mimic(task.graph, small, masks, images, steps, repair=repair, seed=seed, logits=task.logits), masks


def rate_saving(task: Task, composite: Composite, saved: float) -> float:
    """The lowest rate, to a hundredth of a per cent, at which the task's cost is saved to this part; without a cost as
    an objective, of the units, which is the rate itself.

    Raises:
        ValueError: not from 0 up to 1, or more than even the last unit's removal saves.
    """
    if not 0 <= saved < 1:
        raise ValueError(f"saved is {saved}: give a part of the cost, from 0 up to, but not, 1")
    if task.cost is None:
        return saved
    ranking = plan_of(task, composite).ranking
    cost = COSTS[task.cost] if task.times is None else task.times.latency
    images = task.search.inputs[0:1]

    def spent(rate: float) -> float:
        return cost(without_constants(compact(task.graph, ranking.masks(rate)).network), images)

    whole = cost(without_constants(task.graph.network), images)
    low, high = 0, 9999  # what is saved grows with the rate, but for time that is measured
    if 1 - spent(high / 10000) / whole < saved:
        raise ValueError(f"saved is {saved}: removing all units but a few saves less of {task.cost}")
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if 1 - spent(middle / 10000) / whole >= saved else (middle + 1, high)
    return low / 10000


def save_pruned(path: str | Path, network: Network, masks: Masks, about: Mapping[str, Any]) -> None:
    """Write a pruned network. A reader sees the old file or the whole new one.

    about: what the file says of how it was made, as JSON values.

    Raises:
        UserError: the file cannot be written.
    """
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in plain(network).state_dict().items()}
    tensors |= {MASK + name: kept.cpu().to(torch.uint8) for name, kept in masks.items()}
    metadata = {"format": PRUNED_FORMAT, "about": json.dumps(about)}
    write_whole(path, save(tensors, metadata))


def load_pruned(model: nn.Module, path: str | Path) -> nn.Module:
    """The pruned network that `pxp-optimize prune` wrote, on the CPU, in eval mode; its parameters can be trained.

    model: the original network, as its architecture; its weights are not used, and it stays as it is.

    Raises:
        ValueError: no such file, or the masks or weights do not fit the model.
        TraceError: see `pruning.trace`.
    """
    image = about_pruned(path).get("image", {})
    example = example_of(image.get("shape") or (len(image["mean"]), image["size"], image["size"])) if image else None
    tensors = load_file(path)
    masks = {name.removeprefix(MASK): tensors.pop(name).bool() for name in [*tensors] if name.startswith(MASK)}
    try:
        network = plain(compact(trace(model, example).to("cpu"), masks).network)
        _add_biases(network, tensors)
        network.load_state_dict(tensors)
    except (ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} does not fit this model: {' '.join(str(error).split())}") from error
    return without_constants(network).requires_grad_()


def about_pruned(path: str | Path) -> dict[str, Any]:
    """What a pruned network's file says of how it was made.

    Raises:
        ValueError: no such file, or it holds no pruned network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if metadata.get("format") != PRUNED_FORMAT:
        raise ValueError(f"{path} holds no pruned network: pxp-optimize prune writes one")
    about: dict[str, Any] = json.loads(metadata.get("about", "{}"))
    return about


OTHER_FORMATS = {".bin", ".ckpt", ".h5", ".json", ".npz", ".onnx", ".pickle", ".pkl", ".pt", ".pt2", ".pth", ".tar"}


def check_name(path: str | Path) -> None:
    """Refuse a name by which a reader would take a pruned network's file for something else.

    Raises:
        UserError: such a name.
    """
    path = Path(path)
    if path.suffix.lower() in OTHER_FORMATS:
        raise UserError(
            f"{path}: a pruned network is written as safetensors, which is not what {path.suffix} says; "
            f"give {path.with_suffix('.safetensors')}"
        )


def write_pruned(
    path: str | Path, prepared: Prepared, study: Study, trial: FrozenTrial, rate: float | None, steps: int = 0
) -> list[str]:
    """Prune a study's network by a trial's composite, write it, and say in a few lines what is left of it.

    rate: None for the largest that keeps 95 % of the accuracy on the search samples. steps: of mimicking.

    Raises:
        UserError: the file cannot be written, or relevance is not finite.
    """
    task = prepared.task.pruned_as(pruning_of(trial))
    if rate is None:
        rate = sparsity_at(task.rates, trial.user_attrs["accuracy"])
    try:
        composite = Composite.from_dict(trial.user_attrs["composite"])
        graph, masks = prune_task(task, composite, rate, steps, prepared.source.seed)
    except NotFinite as error:
        raise UserError(f"trial {trial.number}: {error}") from error
    whole, small = task.graph.network, graph.network
    before, after = (float(flags.double().mean()) for flags in right_predictions(task, (whole, small), task.holdout))
    mark = prepared.fingerprint
    about = {
        **{key: mark[key] for key in ("model", "weights", "data", "units", "classes", "image")},
        "schedule": str(task.schedule),
        "repair": task.repair_name,
        "study": study.study_name,
        "trial": trial.number,
        "rate": rate,
        **({"mimic": steps} if steps else {}),
        "holdout_accuracy": after,
    }
    save_pruned(path, small, masks, about)
    small = without_constants(small)
    gates, gates_left = len(gates_of(whole)), len(gates_of(small))
    total, left = sum(len(kept) for kept in masks.values()), sum(int(kept.sum()) for kept in masks.values())
    image = task.holdout.inputs[0:1]
    return [
        f"{path}: trial {trial.number} of {study.study_name}, {total - left} of {total} {task.units} removed",
        f"accuracy: {after:.1%} on holdout samples, unpruned {before:.1%}",
        f"parameters: {_part(parameters(small), parameters(whole))}",
        f"multiply-adds: {_part(macs(small, image), macs(whole, image))}",
        *([f"gates: {gates - gates_left} of {gates} are constant now and left out"] if gates else []),
    ]


def _part(part: float, whole: float) -> str:
    unit, name = (1e6, "M") if whole >= 1e6 else (1e3, "k")
    return f"{part / unit:.2f} {name} of {whole / unit:.2f} {name} ({part / whole:.0%})"


def parameters(network: nn.Module) -> int:
    """How many weights and biases a network has."""
    return sum(parameter.numel() for parameter in network.parameters())


def is_pruned(path: Path) -> bool:
    """Whether a file is empty, or holds a pruned network: whether it may be written over by another one."""
    try:
        about_pruned(path)
    except ValueError:
        return path.stat().st_size == 0
    return True


def _add_biases(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Layers that a repair gave a bias they did not have."""
    for name, value in tensors.items():
        owner, _, key = name.rpartition(".")
        if key == "bias":
            layer = network.get_submodule(owner)
            if layer.bias is None:
                layer.bias = nn.Parameter(torch.empty_like(value), requires_grad=False)
