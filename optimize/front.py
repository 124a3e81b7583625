"""The Python front door: a network and labelled images in, the best composite and a smaller network out.

It runs what the command runs (`study.run`): the same samples, options and seed give the same trials.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial
from rich.table import Table
from torch import nn

from ..attribution import Composite
from ..pruning import NotFinite
from ..studies.best import AUC, FAITHFULNESS, PRUNING, auc_of, best_trial, check_prunes, explains, prunes_nothing
from ..studies.comparison import Line
from ..studies.document import check_target, composite_document, described, write_json
from ..studies.errors import UserError
from ..studies.faithfulness import table as heat_map_table
from ..studies.output import FIGURE, write_report
from ..studies.output import figure as draw
from ..studies.report import result_lines, result_table
from .console import Screen
from .data.given import Given
from .evaluation.candidate import candidate, keep_candidate
from .evaluation.curve import chunks
from .evaluation.evaluate import mean_evaluation
from .evaluation.faithfulness import Faithful
from .evaluation.phases import PREPARING, phase, recorded
from .options import GIVEN, Options
from .search.loop import keep_measured
from .search.pruners import asking
from .study.amount import Amount
from .study.compare import compare_study, methods_of, pruned_as_best
from .study.costs import timed
from .study.explain import MapLine, compare_maps, explained_methods, replacements
from .study.finetune import Training
from .study.formats import format_of, is_ours, write_small
from .study.given import prepare_given
from .study.prepare import Prepared
from .study.resampling import tasks_of
from .study.run import device_and_storage_errors, make_space, run_study
from .study.smaller import Smaller, about_small, smaller

if TYPE_CHECKING:
    import plotly.graph_objects as go

ELSEWHERE = {"model", "data", "weights", "image_size", "resize", "export", "skip_broken", "sample_memory", "start_from"}
"""Options of the command about networks and images that it is to find by name."""
OF_THE_STUDY = ("trials", "timeout", "sampler", "pruner", "workers", "storage", "study", "rescore", "holdout_samples")
"""Options that an `Objective` has no use for: the study of one's own has what they say."""


def optimize(
    model: nn.Module,
    *,
    reference: Given,
    search: Given,
    holdout: Given | None = None,
    trials: int = 100,
    objective: str | Sequence[str] = "auc",
    units: str | Sequence[str] | None = None,
    storage: str = Options.storage,
    study: str | None = None,
    seed: int = 0,
    device: str = "auto",
    workers: int = 1,
    name: str | None = None,
    **options: Any,
) -> Result:
    """Search for the composite whose relevance prunes a classifier best.

    Each of `reference`, `search` and `holdout` is a pair of inputs (n, channels, height, width) and class indices (n,),
    as tensors or arrays, or a Dataset or DataLoader that gives such pairs. Floats are what the network takes; whole
    numbers are scaled to [0, 1], and normalised by `mean=` and `std=` where these are given. All samples are used,
    unless `reference_samples=` (of each class), `search_samples=` or `holdout_samples=` (in all) ask for fewer.

    Args:
        model: gives logits, or an object with `.logits`. It stays as it is.
        reference: a few labelled images of each class that relevance and repair are computed on (10 are usual).
        search: images that trials are scored on.
        holdout: images that the search never sees; None for a half of `search`, class by class.
        trials: finished trials to reach. The first ones are known composites.
        objective: "auc", or "macs", "params" or "latency" for the area over what is saved of that; or two: "auc,macs";
            or "faithfulness", which judges heat maps and prunes nothing (alone, or with "complexity" or "stability").
        units: "filters", "neurons", "heads" or several of them; None for what the network has.
        storage: database of the studies, a file or a URL. A study that is there goes on.
        study: its name; None for one made of model and units.
        seed: of samples and search.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        workers: processes that run trials at once; more than one on Linux and the CPU only.
        name: what the model is called in the study; None for its class's name.
        **options: the command's other options, with underscores (`pxp-optimize --help`): `rates=[0, 0.5]`,
            `schedule="oneshot"`, `quiet=True`.

    Raises:
        UserError: bad input, in one line that says how to mend it. No stored study is harmed.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pxp_optimize.optimize import optimize
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
        ... )
        >>> images, classes = torch.randn(16, 3, 8, 8), torch.arange(16) % 2
        >>> result = optimize(
        ...     model,
        ...     reference=(images, classes),
        ...     search=(torch.randn(24, 3, 8, 8), torch.arange(24) % 2),
        ...     trials=5,
        ...     storage="example.db",
        ...     quiet=True,
        ... )
        >>> sorted(result.composite.groups)
        ['classifier', 'low']
        >>> result.prune(rate=0.5)(images).shape
        torch.Size([16, 2])
    """
    given = {"objective": objective, "storage": storage, "study": study, "device": device, "workers": workers}
    per_class, settings = _settings(model, name, options, trials=trials, seed=seed, **given)
    if units is not None:
        settings = settings.changed(units=units)
    screen = Screen(quiet=settings.quiet, verbose=settings.verbose)
    with _quiet_optuna(settings.verbose), device_and_storage_errors(settings.storage), recorded() as phases:
        with phase(PREPARING):
            prepared = prepare_given(settings, model, reference, search, holdout, per_class=per_class, progress=screen)
        found = run_study(settings, prepared, phases, screen)
    return Result(found, settings, prepared)


class Objective:
    """What Optuna calls, for a study of one's own: a trial's sampler proposes a composite, its AUC is returned.

    With `objective="macs"` the area over what is saved, with `objective="auc,macs"` both values, for a study with two
    directions. A composite whose relevance is not finite gives NaN, which fails the trial and lets the study go on.
    What was tried and found is in the trial's user
    attributes: `composite`, `accuracy` (at each of the rates) and `seconds`.

    The study's pruner is asked after each of up to 20 chunks of the search samples. `optuna.create_study` has a
    `MedianPruner` where none is given; `optuna.pruners.NopPruner()` stops nothing.

    Args:
        model: as in `optimize`.
        reference: as in `optimize`.
        search: as in `optimize`. No holdout is kept back.
        units: as in `optimize`.
        **options: as in `optimize`, but for those that are the study's own, such as `trials` and `sampler`.

    Raises:
        UserError: bad input, in one line that says how to mend it.

    Example:
        >>> import optuna, torch
        >>> from torch import nn
        >>> from pxp_optimize.optimize import Objective
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
        ... )
        >>> data = torch.randn(16, 3, 8, 8), torch.arange(16) % 2
        >>> objective = Objective(model, reference=data, search=data, quiet=True)
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
        >>> study.optimize(objective, n_trials=2)
        >>> sorted(objective.composite(study.best_trial).groups)
        ['classifier', 'low']
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        reference: Given,
        search: Given,
        units: str | Sequence[str] | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        if owned := [key for key in OF_THE_STUDY if key in options]:
            raise UserError(f"{owned[0]} is the study's own: give it to optuna.create_study or study.optimize")
        per_class, settings = _settings(model, name, options)
        if units is not None:
            settings = settings.changed(units=units)
        screen = Screen(quiet=settings.quiet, verbose=settings.verbose)
        prepared = prepare_given(settings, model, reference, search, search, per_class=per_class, progress=screen)
        self.prepared = prepared = timed(prepared, None, screen)
        self.tasks = tasks_of(prepared, settings.draws)
        self.space = make_space(settings, prepared)
        self.chunks = [len(rows) for rows in chunks(prepared.task.search.targets)]

    def __call__(self, trial: Trial) -> float | tuple[float, float]:
        """The AUC, or the area over the cost, of what the trial's sampler proposes; both with two objectives.

        Raises:
            optuna.TrialPruned: the study's pruner says so.
        """
        composite, pruning = self.space.suggest(trial), self.space.suggest_pruning(trial)
        keep_candidate(trial, composite, pruning)
        try:
            found = mean_evaluation(self.tasks, candidate(composite, pruning), None, asking(trial, self.chunks))
        except NotFinite as error:
            trial.set_user_attr("error", str(error))
            return float("nan")
        keep_measured(trial, found)
        if found.stopped:
            raise optuna.TrialPruned(f"stopped after {found.samples} samples")
        if isinstance(found, Faithful):
            return found.auc if found.other is None else (found.auc, found.other)
        if self.prepared.task.by_cost:
            trial.set_user_attr(AUC, found.auc)
            return found.score
        return found.auc if found.other is None else (found.auc, found.other)

    def composite(self, trial: FrozenTrial) -> Composite:
        """What a trial tried."""
        return Composite.from_dict(trial.user_attrs["composite"])

    def prune(self, trial: FrozenTrial, *, mimic: int = 0, finetune: int = 0, **amount: Any) -> nn.Module:
        """The network without its least relevant units, as the trial measured it. Otherwise as `Result.prune`."""
        if self.prepared.task.explaining is not None:
            raise prunes_nothing("the objective")
        return smaller(self.prepared, None, trial, Amount.of(**amount), Training.of(mimic, finetune)).module()

    def export(self, trial: FrozenTrial, path: str | Path) -> None:
        """Write what a trial tried as JSON, with the schedule and repair that it was measured with: for `prune`,
        `load_composite` and the command's `--from`.

        Raises:
            UserError: the file cannot be written, or holds something else.
        """
        check_target(path)
        attrs, prepared = trial.user_attrs, self.prepared
        document = described(attrs["composite"], attrs.get(PRUNING, {}), prepared.fingerprint, prepared.layers)
        if prepared.task.explaining is not None:
            result = {"objective": FAITHFULNESS, "srg": auc_of(trial), "trial": trial.number}
            write_json(path, {**document, "result": result})
            return
        result = {"trial": trial.number, "rates": list(prepared.task.rates), "accuracy": attrs["accuracy"]}
        write_json(path, {**document, "result": {"auc": auc_of(trial), **result}})


@dataclass(frozen=True, repr=False)
class Result:
    """What a search found. study: with all trials and the scores of the best ones."""

    study: Study
    options: Options
    prepared: Prepared

    def __repr__(self) -> str:
        trial = self.trial
        name = "srg" if explains(self.study) else "auc"
        return f"Result(study={self.study.study_name!r}, trial={trial.number}, {name}={auc_of(trial):.4f})"

    @property
    def trial(self) -> FrozenTrial:
        """The best trial, after scoring again (`studies.best`)."""
        return best_trial(self.study)

    @property
    def composite(self) -> Composite:
        """The best composite."""
        return Composite.from_dict(self.trial.user_attrs["composite"])

    def curve(self) -> list[tuple[float, float]]:
        """Pruning rate and accuracy on the holdout samples of the best trial, at each rate; of heat maps the part of
        the regions removed, and how much higher the target's probability is if the least relevant ones go first."""
        holdout = self.study.user_attrs["holdout"][str(self.trial.number)]
        return list(zip(self.prepared.task.parts, holdout["accuracy"], strict=True))

    def table(self) -> Table:
        """The command's last table: the fixed composites and the best one, on search and holdout samples.

        `print` shows it, and so does a notebook.
        """
        return heat_map_table(self.study) if explains(self.study) else result_table(result_lines(self.study))

    def prune(
        self,
        *,
        rate: float | None = None,
        saved: float | None = None,
        keep_accuracy: float | None = None,
        max_params: float | str | None = None,
        max_macs: float | str | None = None,
        mimic: int = 0,
        finetune: int = 0,
    ) -> nn.Module:
        """The network without its least relevant units, ranked, cut and repaired as the best trial was.

        How much goes is said in one way, by default `keep_accuracy=0.95`. The network is on the study's device, in
        eval mode; its parameters can be trained, and it shares none with the study.

        Args:
            rate: part of the units to remove.
            saved: part to save of the cost that the study is judged by; of the units, where that is "auc".
            keep_accuracy: part of the accuracy on the search samples to keep; the largest of the study's rates that
                does.
            max_params: most parameters, as a number or such as "3M".
            max_macs: most multiply-adds for an image, likewise. Of this, max_params and saved the smallest rate is
                taken that is enough.
            mimic: train what is left so many steps, without labels, to give what the unpruned network gives
                (`pruning.mimic`).
            finetune: then train it on the reference samples, each seen so often (`study.finetune`).

        Raises:
            ValueError: out of range, several are given, or no network is so small.
        """
        check_prunes(self.study)
        amount = Amount.of(
            rate=rate, saved=saved, keep_accuracy=keep_accuracy, max_params=max_params, max_macs=max_macs
        )
        return self._smaller(amount, mimic, finetune).module()

    def save_pruned(self, path: str | Path, *, mimic: int = 0, finetune: int = 0, **amount: Any) -> None:
        """Write the pruned network, as the command does (`pxp-optimize prune`).

        Args:
            path: its end decides: .safetensors for `load_pruned`, .pt2 for `torch.export.load`, .onnx for ONNX
                runtimes (`pip install 'pxp-optimize[onnx]'`).
            mimic, finetune: as in `prune`.
            **amount: one of rate, saved, keep_accuracy, max_params and max_macs, as in `prune`.

        Raises:
            ValueError: as in `prune`.
            UserError: the file cannot be written, holds something else, or its name says another kind.
        """
        check_prunes(self.study)
        check_target(path, self.options.storage, is_ours, "pruned network")
        format_of(path)
        small = self._smaller(Amount.of(**amount), mimic, finetune)
        about = {**about_small(self.prepared, small), "study": self.study.study_name, "trial": self.trial.number}
        write_small(path, small.to_write(about))

    def _smaller(self, amount: Amount, mimic: int, finetune: int) -> Smaller:
        return smaller(self.prepared, self.study, self.trial, amount, Training.of(mimic, finetune))

    def export(self, path: str | Path) -> None:
        """Write the best composite as JSON, as the command does.

        Raises:
            UserError: the file cannot be written, or holds something else.
        """
        check_target(path, self.options.storage)
        write_json(path, composite_document(self.study))

    def plot(self, figure: str = FIGURE) -> go.Figure:
        """A figure of the study (plotly).

        figure: of `studies.figures.FIGURES`; by default accuracy on the holdout samples against the units removed.

        Raises:
            UserError: no figure of this name, or the study has nothing for it.
        """
        return draw(self.study, figure)

    def report(self, path: str | Path, format: str | None = None, figure: str = FIGURE) -> None:
        """Write the study as the command does (`pxp-optimize report`).

        format: "html", "png", "pdf", "csv" or "json"; None for what the file's name ends in. figure: the one that PNG
        and PDF show.

        Raises:
            UserError: the file cannot be written, holds something else, or a picture has nothing that draws it.
        """
        write_report(self.study, path, format, figure, self.options.storage)

    def compare(self, seeds: int = 3) -> list[Line] | list[MapLine]:
        """The best composite beside the fixed ones and other criteria, on holdout samples: as `pxp-optimize compare`.

        seeds: draws of the reference images, each with a seed of its own for random baselines. Heat maps have none.

        Raises:
            UserError: relevance that is not finite with other reference images.
        """
        if explains(self.study):
            title, explained = explained_methods(self.study)
            task, seed = self.prepared.task, self.options.seed
            screen = Screen(quiet=self.options.quiet)
            return compare_maps(task, explained, title, replacements(task), seed, screen)[0]
        prepared = pruned_as_best(self.study, self.prepared)
        best, methods = methods_of(self.study, self.options, prepared, None)
        lines, _ = compare_study(prepared, methods, best, seeds, Screen(quiet=self.options.quiet))
        return lines


def _settings(model: nn.Module, name: str | None, options: dict[str, Any], **more: Any) -> tuple[int | None, Options]:
    """How many reference samples of each class are asked for, and the options as the command has them."""
    if unknown := sorted(ELSEWHERE & options.keys()):
        raise UserError(f"{unknown[0]} is an option of the command: here the network and the images are given")
    given = {key: value for key, value in {**options, **more}.items() if value is not None}
    per_class = given.pop("reference_samples", None)
    settings = Options.parsed(model=name or type(model).__name__, data=GIVEN, **given)
    if per_class is not None:
        per_class = settings.changed(reference_samples=per_class).reference_samples
    settings.check()
    return per_class, settings


@contextmanager
def _quiet_optuna(verbose: bool) -> Any:
    """Optuna logs every trial, which the display says already; afterwards as before."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.INFO if verbose else logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
