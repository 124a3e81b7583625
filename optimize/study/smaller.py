"""The smaller network of a study: made by any amount, trained or not, measured beside the whole one, written."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.study import Study
from optuna.trial import FrozenTrial
from torch import nn

from ...attribution import Composite
from ...pruning import COSTS, Network, NotFinite, macs, mimic, params, without_constants
from ...pruning.convolution import plain
from ...pruning.modules import gates_of
from ...pruning.names import NO_GATES
from ...studies.errors import UserError
from ...studies.report import new_table, title
from ...studies.wording import counted, part_of
from ..evaluation.candidate import pruning_of
from ..evaluation.curve import right_predictions
from ..evaluation.evaluate import make_plan
from ..evaluation.task import Samples, Task
from ..progress import Progress, no_progress
from .amount import Amount, Pruned, Pruner
from .costs import measured, timed
from .finetune import NO_TRAINING, Training, finetuned
from .formats import Small, write_small
from .prepare import Prepared

if TYPE_CHECKING:
    from rich.table import Table

CHECKED = 16
"""Images that a written network is compared on."""


@dataclass(frozen=True)
class Smaller:
    """A smaller network of a study.

    task: in the pruning of its trial. stages: what the masks leave, by what was done to it so far; first "pruned", last
    what is used. training: what was done after pruning. seed: of that.
    """

    task: Task
    pruned: Pruned
    stages: Mapping[str, Network]
    training: Training
    seed: int

    @property
    def whole(self) -> Network:
        """The network that it was made from."""
        return self.task.graph.network

    @property
    def network(self) -> Network:
        """The network after all that was asked for."""
        return [*self.stages.values()][-1]

    def module(self) -> nn.Module:
        """As a user gets it: an ordinary module of its own, to be trained."""
        return runs(self.network).requires_grad_()

    def to_write(self, about: Mapping[str, Any]) -> Small:
        """As `formats` takes it. about: what the file says of how it was made, as JSON values."""
        images = self.task.holdout.inputs[0:CHECKED]
        return Small(self.network, runs(self.network), self.pruned.masks, about, images)


def runs(network: Network) -> nn.Module:
    """What a network computes, of torch's own layers, without what is constant. It shares no tensor with it."""
    return copy.deepcopy(without_constants(plain(network)))


def smaller(
    prepared: Prepared,
    study: Study | None,
    trial: FrozenTrial,
    amount: Amount,
    training: Training = NO_TRAINING,
    progress: Progress = no_progress,
) -> Smaller:
    """Prune a study's network by a trial's composite, as the trial was, and train what is left where that is asked for.

    study: for its table of layer times, where trials are judged by the latency.

    Raises:
        ValueError: no network is so small.
        UserError: relevance is not finite.
    """
    task = timed(prepared, study).task.pruned_as(pruning_of(trial))
    composite = Composite.from_dict(trial.user_attrs["composite"])
    cost = None if task.cost is None else COSTS[task.cost] if task.times is None else task.times.latency
    prune = Pruner(
        task.graph,
        task.repair,
        partial(make_plan, task, composite),
        task.graph.units(task.units),
        task.search.inputs[0:1],
        (task.rates, trial.user_attrs["accuracy"]),
        cost,
    )
    try:
        with progress("prune", 1) as advance:
            pruned = prune(amount)
            advance(1)
    except NotFinite as error:
        raise UserError(f"trial {trial.number}: {error}") from error
    network = plain(pruned.graph.network)
    stages, seed = {"pruned": network}, prepared.source.seed
    if training.mimic:
        network = plain(_mimicked(task, pruned, training.mimic, seed, progress))
        stages[f"mimicking, {counted(training.mimic, 'step')}"] = network
    if training.finetune:
        tuned = finetuned(network, task.reference, training.finetune, seed, logits=task.logits, progress=progress)
        assert isinstance(tuned, Network)
        stages[f"fine-tuned, {counted(training.finetune, 'epoch')}"] = tuned
    return Smaller(task, pruned, stages, training, seed)


def _mimicked(task: Task, pruned: Pruned, steps: int, seed: int, progress: Progress) -> Network:
    images = task.reference.inputs if task.repair_images is None else task.repair_images
    with progress("mimic the unpruned network", 2 * steps) as advance:
        return mimic(
            task.graph,
            pruned.graph,
            pruned.masks,
            images,
            steps,
            repair=task.repair_name,
            seed=seed,
            logits=task.logits,
            advance=advance,
        ).network


def write_smaller(
    path: str | Path,
    prepared: Prepared,
    study: Study | None,
    trial: FrozenTrial,
    amount: Amount,
    training: Training = NO_TRAINING,
    progress: Progress = no_progress,
) -> tuple[list[str], Table, list[str]]:
    """Write a study's smaller network, in the format of the file's name, and say what is left of it: lines, a table of
    before and after, and lines.

    Raises:
        ValueError, UserError: as `smaller` and `write_small`.
    """
    small = smaller(prepared, study, trial, amount, training, progress)
    stages = {"unpruned": small.whole, **small.stages}
    with progress("measure", 2 * len(stages)) as advance:
        accuracy = {
            name: [_accuracy(small.task, network, samples, advance) for network in stages.values()]
            for name, samples in (("search", small.task.search), ("holdout", small.task.holdout))
        }
    about = {**about_small(prepared, small), "trial": trial.number}
    about |= {f"{name}_accuracy": of[-1] for name, of in accuracy.items()}
    if study is not None:
        about["study"] = study.study_name
    with progress(f"write {Path(path).name}", 1) as advance:
        checked = write_small(path, small.to_write(about))
        advance(1)
    masks = small.pruned.masks.values()
    total, left = sum(map(len, masks)), sum(int(kept.sum()) for kept in masks)
    of_study = "" if study is None else f" of {study.study_name}"
    gates, gates_left = (len(gates_of(network)) for network in (small.whole, without_constants(small.network)))
    table = _table(small, stages, accuracy, total, left, Path(path))
    return (
        [f"{path}: {title(trial)}{of_study}, {total - left} of {total} {_kinds(small.task)} removed"],
        table,
        [
            *([f"gates: {gates - gates_left} of {gates} are constant now and left out"] if gates else []),
            f"input: {input_text(about['input'])}",
            *([f"file: {checked}"] if checked else []),
        ],
    )


def about_small(prepared: Prepared, small: Smaller) -> dict[str, Any]:
    """What a file says of how it was made and of the images that it takes, as JSON values."""
    mark, task = prepared.fingerprint, small.task
    image = task.search.inputs
    scaled = image.mean is not None and image.std is not None
    values = {name: getattr(image, name).flatten().tolist() if scaled else None for name in ("mean", "std")}
    return {
        **{key: mark[key] for key in ("model", "weights", "data", "units", "classes", "image")},
        "schedule": str(task.schedule),
        "repair": task.repair_name,
        "rate": small.pruned.rate,
        "input": {"shape": list(image.pixels.shape[1:]), **values},
        **({"training": {**asdict(small.training), "seed": small.seed}} if small.training != NO_TRAINING else {}),
    }


def input_text(image: Mapping[str, Any]) -> str:
    """What a network takes, in words; preparing it is no part of the file."""
    shape = ", ".join(map(str, image["shape"]))
    if image["mean"] is None:
        how = "as the program gave them that ran the study"
    else:
        mean, std = (", ".join(f"{value:g}" for value in image[key]) for key in ("mean", "std"))
        how = f"pixels in [0, 1], less {mean}, divided by {std}"
    return f"float32 images (n, {shape}), {how}; the file does not prepare them"


def _accuracy(task: Task, network: Network, samples: Samples, advance: Callable[[int], None]) -> float:
    right = right_predictions(task, [network], samples)
    advance(1)
    return int(right.sum()) / right.numel()


def _table(
    small: Smaller,
    stages: Mapping[str, Network],
    accuracy: Mapping[str, Sequence[float]],
    total: int,
    left: int,
    path: Path,
) -> Table:
    """What a network is before and after, a column for each stage."""
    task = small.task
    image = task.holdout.inputs[0:1]
    networks = [plain(network) if network is small.whole else runs(network) for network in stages.values()]
    batch = min(task.batch_size, len(task.search))
    times = [seconds * 1e3 for seconds in measured(task, "latency", networks)]
    before = 4 * sum(value.numel() for value in small.whole.state_dict().values())
    after = len(stages) - 1
    table = new_table("", *stages, numbers=range(1, 1 + len(stages)))
    table.add_row("rate", "0", *[f"{small.pruned.rate:g}"] * after)
    table.add_row(_kinds(task), str(total), *[str(left)] * after)
    for name, found in accuracy.items():
        table.add_row(f"accuracy, {name}", *(f"{value:.1%}" for value in found))
    table.add_row("parameters", *_parts([params(network, image) for network in networks], _number))
    table.add_row("multiply-adds", *_parts([macs(network, image) for network in networks], _number))
    table.add_row("size", *_parts([before, *[path.stat().st_size] * after], _bytes))  # training changes no shape
    table.add_row(f"time, {counted(batch, 'image')} on {task.graph.device}", *_parts(times, lambda ms: f"{ms:.1f} ms"))
    if task.times is not None:  # by which trials are judged, and --saved counts
        looked_up = [1e3 * task.times.latency(without_constants(network)) for network in stages.values()]
        table.add_row("the same, by the study's table", *_parts(looked_up, lambda ms: f"{ms:.1f} ms"))
    return table


def _kinds(task: Task) -> str:
    return task.units.removesuffix(NO_GATES)


def _parts(values: Sequence[float], form: Callable[[float], str]) -> list[str]:
    """Values in words, each but the first with what part it is of that one."""
    return [form(value) + (f" ({part_of(value / values[0])})" if index else "") for index, value in enumerate(values)]


def _number(value: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.2f} {name}"
    return f"{value:.0f}"


def _bytes(value: float) -> str:
    unit, name = (1e6, "MB") if value >= 1e6 else (1e3, "kB")
    return f"{value / unit:.1f} {name}"
