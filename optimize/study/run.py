"""A study from beginning to end, the same for the command and for Python: opened, searched, its best scored."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from optuna.study import Study
from optuna.trial import Trial

from ...attribution import Composite
from ...attribution.composites import GATES
from ...studies.best import FAITHFULNESS, best_trial
from ...studies.dashboard import keep_curve, save_views
from ...studies.errors import UserError
from ...studies.lasting import lasting
from ...studies.report import fixed_trials
from ...studies.signals import stoppable, whole
from ...studies.steps import UNITS
from ...studies.storage import alone, open_storage, shown, storage_errors
from ...studies.urls import proxy_address
from ...studies.wording import counted, reason
from ..console import Screen
from ..data.sanity import chance_of, few, near_chance
from ..evaluation.candidate import pruning_of
from ..evaluation.curve import chunks, right_predictions
from ..evaluation.evaluate import mean_evaluation
from ..evaluation.memory import is_out_of_memory, keep_batch_size
from ..evaluation.phases import HOLDOUT, MAPS, PLAIN, RESCORING, SAVED, TRIALS, Phases, phase, recorded
from ..evaluation.processes import plan_processes
from ..evaluation.task import Samples, Task, Unseen
from ..options import GIVEN, Options
from ..parsers import SPACES
from ..search.explained import ZBOX, input_part, known_heat_maps, pixel_bounds
from ..search.loop import run_search
from ..search.pruners import NONE, Race, make_pruner, reports_of
from ..search.samplers import AUTO, GRID, default_sampler, is_conditional, make_sampler
from ..search.space import Space
from ..search.spacefile import read_space
from ..search.status import count_complete, count_finished
from ..search.warm_start import earlier_composite, mixed_composites
from ..search.workers import Tell
from .costs import LAYER_TIMES, prices_of, score_saved, timed
from .crew import LAG, Line, Member, Watch, keep_lag, run_crew, silent_errors
from .opening import check_space, check_study, open_study
from .prepare import Prepared, prepare
from .resampling import left_over, mean_shared, tasks_of
from .rescore import DRAWS, fresh_measure, fresh_samples, is_rescored, rescore, unseen_samples
from .scores import (
    best_trials,
    keep_phases,
    known_curves,
    score_holdout,
    score_plain,
    seconds_a_trial,
    unpruned_accuracy,
    without_holdout,
)
from .sheet import map_samples

PLAIN_COST = 0.2
"""What a trial costs without steps and repair, of one with them (benchmarks/README.md)."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C during the trials or after them: what was finished is in the study, and the same run continues it."""


def make_space(options: Options, prepared: Prepared, *, conditional: bool = True) -> Space:
    """The composites that a study searches.

    conditional: see `Space`.

    Raises:
        UserError: a file that is no space of this network.
    """
    task = prepared.task
    explains = task.explaining is not None
    # counted in units the signal alone was always better; counted in cost not (benchmarks/README.md)
    gates = (GATES if task.cost or explains else GATES[:1]) if task.graph.gated else ()
    make = Space.named if options.space in SPACES else read_space
    return make(
        options.space,
        prepared.layers,
        conditional,
        mixed="+" in task.units and task.prunes,
        pruning=prepared.pruning,
        gates=gates,
        prices=prices_of(task),
        given={ZBOX: pixel_bounds(task.search.inputs)},
        inputs=input_part(prepared.layers) if explains else None,
        ranked=task.prunes,
    )


@stoppable()
def run_study(
    options: Options,
    prepared: Prepared,
    phases: Phases,
    screen: Screen,
    then: Callable[[Study], object] = lambda study: None,
    member: Member | None = None,
) -> Study:
    """Run or continue a study until it has its trials and its best ones their scores.

    The study is created only after its fingerprint has been compared.

    then: called with the finished study, while no other process ends it. member: of a process that runs trials for
    another one, which has opened the study and will end it.

    Raises:
        UserError: the study is another one's, or no trial finished.
        Stopped: as raised by Ctrl-C.
    """
    # a space of numbers only, which `auto` gives to cmaes, has no conditions
    conditional = options.sampler == AUTO or is_conditional(options.sampler)
    space = make_space(options, prepared, conditional=conditional)
    if options.sampler == AUTO:
        options = replace(options, sampler=default_sampler(space.parameters(), options.objective))
    try:
        grid = space.grid(options.seed) if options.sampler == GRID else []
    except ValueError as error:
        raise UserError(f"--sampler {GRID}: {error}") from None
    name = options.study or default_study_name(prepared.fingerprint, options.objective)
    start_from: dict[str, Composite] = {}
    if options.start_from is not None:
        start_from[options.start_from] = earlier_composite(options.start_from, space, prepared.layers, options.space)
    storage = open_storage(options.storage)
    with alone(options.storage), whole():  # not while another process makes it
        present = check_study(storage, name, prepared.fingerprint, options.objective)
    prepared = timed(prepared, present, screen)
    space = make_space(options, prepared, conditional=conditional)  # which may have the table's prices now
    fixed, known = space.fixed_composites(), mixed_composites(space)
    if options.explains:
        fixed, known = known_heat_maps(space, prepared.layers, pixel_bounds(prepared.task.search.inputs)), {}
    tasks = tasks_of(prepared, options.draws)
    if present is not None:
        check_space(present, space, options.space)
    reports = reports_of(present, options.pruner)
    sizes = [len(rows) for rows in chunks(prepared.task.search.targets)]
    attrs = {
        "rates": list(prepared.task.parts),
        "chunks": sizes,
        "reports": reports,
        "config": {**options.stored(), "storage": shown(options.storage)},
        "layers": prepared.layers,
        UNITS: {} if options.explains else prepared.task.graph.units(prepared.task.units),
        "device": str(prepared.task.graph.device),
        **({} if prepared.task.times is None else {LAYER_TIMES: prepared.task.times.to_dict()}),
    }
    processes = plan_processes(options.workers, options.device, prepared.task.graph.device)
    with alone(options.storage), whole():
        if member is None or present is None:
            study = open_study(storage, name, prepared.fingerprint, attrs, options.objective)
            lag = keep_lag(study, processes)
        else:
            study, lag = present, present.user_attrs[LAG]
    lasting(study, options.storage, screen.line if member is None else member.line)
    study.sampler = make_sampler(options.sampler, options.seed, lag)
    study.pruner = make_pruner(options.pruner, len(sizes))
    for line in prepared.description:  # not before it is sure that the run can go on: an error is one line
        screen.line(line)
    done = count_finished(study)
    before = len(fixed) + len(start_from) + (0 if grid else len(known))
    plan = plan_told(done, options.trials, before, options.sampler)
    processes = replace(processes, devices=processes.devices[: max(1, options.trials - done)])
    processes = replace(processes, forks=proxy_address(options.storage) is None)  # gRPC's threads survive none
    screen.line(f"workers {processes}")
    screen.line(f"study   {name} in {shown(options.storage)}: {plan}")
    if options.pruner != NONE and len(sizes) < 2:
        screen.line(f"pruner  {options.pruner} stops nothing: {sizes[0]} search samples are too few for several chunks")
    screen.line(f"phases  {_phases_told(options, prepared)}")
    task = prepared.task
    if options.batch_size == "auto":
        keep_batch_size(study, task.batching, task.graph.device.type)
    task.batching.tell = screen.line
    task.curves[task.measured(task.search)] = known_curves(study)
    race = Race(sizes, reports, options.pruner, grid=options.sampler == GRID)
    for text in [] if options.explains else _unpruned(study, task, screen):
        screen.line(text)
    rescored = rescored_trials(options, prepared)
    fresh = cache(partial(fresh_samples, prepared))  # read by the first trial that needs them, if any
    after = sum(_trials_after(study, options, prepared, tasks).values())

    def watched(study: Study, trial: Trial) -> list[Unseen]:
        with phase(RESCORING):
            others = fresh() if rescored > 1 else None
        return unseen_samples(study, trial, rescored, task.holdout, others)

    def search(study: Study, watch: Watch, line: Line, timeout: float | None, since: int) -> None:
        task.batching.tell = line
        run_search(
            study,
            space,
            lambda candidate, stop=None, unseen=(): mean_evaluation(tasks, candidate, stop=stop, unseen=unseen),
            trials=options.trials,
            timeout=timeout,
            start_from=start_from,
            fixed=fixed,
            known=known,
            queue=grid,
            watch=watch,
            race=race if options.objective in (("auc",), (FAITHFULNESS,)) else None,
            queue_only=options.sampler == GRID,
            alone=partial(alone, options.storage),
            unseen=watched,
            keep=lambda study, trial: _shown(line, partial(keep_curve, study, trial, options.storage)),
            lag=lag,
            since=since,
        )

    if member is not None:
        search(study, member.watch, member.line, options.timeout, member.since)
        return study
    try:
        with phase(TRIALS):
            run_crew(study, options, processes, search, _spawned, screen, after)
        if options.sampler == GRID and (tried := count_finished(study)) < options.trials and options.timeout is None:
            screen.line(f"grid    all {tried} composites are tried: fewer than --trials {options.trials}")
        if not count_complete(study):
            raise UserError("no trial finished in time: raise --timeout")
        with alone(options.storage, lambda: screen.line("end     another process scores the best: waits for it")):
            _score(study, options, prepared, tasks, fresh, screen)
            if not options.no_pictures:
                with phase(MAPS), screen(MAPS, 1) as advance:
                    _shown(screen.line, partial(map_samples, study, prepared))
                    advance(1)
            keep_phases(study, phases)
            screen.line(f"time    {phases}")
            with screen.waiting("drawing the figures"):
                _shown(screen.line, partial(save_views, study, options.storage))
            then(study)
    except KeyboardInterrupt:
        keep_phases(study, phases)
        raise Stopped(f"Stopped after {count_finished(study)} of {options.trials} trials.") from None
    return study


def plan_told(done: int, trials: int, known: int, sampler: str) -> str:
    """What a study tries from here on, in words.

    known: composites that are tried before the sampler proposes any.
    """
    goal = f"continues, {done} of {trials} trials finished" if done else counted(trials, "trial")
    ahead, then = max(0, known - done), SPOKEN.get(sampler, sampler)
    if done >= trials:
        return goal if done == trials else f"has {done} finished trials, and {trials} were asked for: none is tried"
    if not ahead:
        return f"{goal}, now by {then}"
    if done + ahead >= trials:
        return f"{goal}: known composites only ({then} begins after {known})"
    return f"{goal}: {ahead} known composites, then {then}"


SPOKEN = {
    "tpe": "TPE",
    "gp": "GP",
    "cmaes": "CMA-ES",
    "local": "local search",
    "random": "random ones",
    "grid": "the grid",
}
"""What samplers are called in words, where that is not their name."""


def _spawned(options: Options, threads: int, since: int, tell: Tell) -> None:
    torch.set_num_threads(threads)
    with silent_errors(options), recorded() as phases:
        run_study(options, prepare(options), phases, Screen(quiet=True), member=Member(tell, since))


@contextlib.contextmanager
def device_and_storage_errors(storage: str) -> Iterator[None]:
    """Turns a device that is out of memory, and what the database raises, into one line.

    Raises:
        UserError: what went wrong and what helps.
    """
    try:
        with storage_errors(storage):
            yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            "the device's memory is too small: "
            "give a smaller --batch-size or --image-size, or fewer --reference-samples"
        ) from error


def _unpruned(study: Study, task: Task, screen: Screen) -> list[str]:
    """What the network is worth unpruned, in a line; and others if that is next to nothing, or hardly measured."""

    accuracy, targets = unpruned_accuracy(study), task.search.targets
    if accuracy is None:
        with screen("measure the unpruned network", 1):  # the first trial is not to measure it again
            flags = right_predictions(task, [task.graph.network], task.search)
        accuracy = int(flags.sum()) / flags.numel()
    warnings = (near_chance(accuracy, targets), few(len(targets)))
    return [
        f"network {accuracy:.1%} accuracy unpruned on the search samples, {chance_of(targets):.1%} by chance",
        *(f"warning {warning}" for warning in warnings if warning is not None),
    ]


def _trials_after(study: Study, options: Options, prepared: Prepared, tasks: Sequence[Task]) -> dict[str, float]:
    """How many trials each phase that follows them takes as long as. What is measured on a trial's own networks takes
    none."""

    rescored = rescored_trials(options, prepared)
    by_draws = rescored > 1 and left_over(prepared.source) is None
    return {
        RESCORING: rescored * DRAWS / len(tasks) if by_draws else 0.0,
        HOLDOUT: float(len(without_holdout(study))),
        PLAIN: 0.0 if _is_plain(prepared.task) else PLAIN_COST,
    }


def _phases_told(options: Options, prepared: Prepared) -> str:
    """What a run does from here on, with the names that its phases are shown by."""

    rescored = rescored_trials(options, prepared)
    on = "by other reference images" if left_over(prepared.source) is None else "on other validation images"
    found = [
        TRIALS,
        *([f"{RESCORING} (the best {rescored}, {on})"] if rescored > 1 else []),
        HOLDOUT,
        *([] if _is_plain(prepared.task) else [f"{PLAIN} (the best ranked once, without repair)"]),
        *([] if options.explains else [f"{SAVED} (what the best saves of each cost)"]),
        *([] if options.no_pictures else [f"{MAPS} (of a few holdout images)"]),
    ]
    return ", ".join(found)


def _is_plain(task: Task) -> bool:
    plain = task.plain()
    return (str(task.schedule), task.repair_name) == (str(plain.schedule), plain.repair_name)


def _score(
    study: Study,
    options: Options,
    prepared: Prepared,
    tasks: Sequence[Task],
    fresh: Callable[[], Samples | None],
    screen: Screen,
) -> None:
    """The best trials on fresh samples, the best and the fixed composites on the holdout's, and the composite of the
    best used the plain way: what of this the study does not have yet."""

    holdout = prepared.task.holdout
    rescored = rescored_trials(options, prepared)
    plain = [drawn.plain() for drawn in tasks]
    pace = seconds_a_trial(study)

    def plain_scores(composite: Composite) -> tuple[Any, Any]:
        found = mean_evaluation(plain, composite, unseen=[Unseen(HOLDOUT, holdout, -1.0, HOLDOUT)])
        return found, found.unseen[HOLDOUT]

    while True:
        left = {name: trials * pace for name, trials in _trials_after(study, options, prepared, tasks).items()}
        if rescored > 1 and not is_rescored(study, rescored):
            after = left[HOLDOUT] + left[PLAIN]
            with phase(RESCORING), screen(RESCORING, rescored, left[RESCORING], after) as advance:
                rescore(study, rescored, *fresh_measure(prepared, tasks, fresh), advance)
        total = len(fixed_trials(study)) + len(best_trials(study))
        with phase(HOLDOUT), screen(HOLDOUT, total, left[HOLDOUT], left[PLAIN]) as advance:
            score_holdout(study, lambda candidate: mean_evaluation(tasks, candidate, holdout), advance)
        if not _is_plain(prepared.task.pruned_as(pruning_of(best_trial(study)))):
            with phase(PLAIN), screen(PLAIN, 1, left[PLAIN]) as advance:
                score_plain(study, plain_scores, advance)
        if str(best_trial(study).number) in study.user_attrs["holdout"]:
            if not options.explains:
                with phase(SAVED), screen(SAVED, 1) as advance:
                    score_saved(study, prepared.task)
                    advance(1)
            return  # else another process has found a better one meanwhile


def _shown(line: Line, save: Callable[[], object]) -> None:
    """Saves something that only report and dashboard show: what goes wrong with that is a line, and ends no run."""
    try:
        save()
    except Exception as error:
        line(f"not saved for the dashboard: {type(error).__name__}, {reason(error)}")


def rescored_trials(options: Options, prepared: Prepared) -> int:
    """How many trials are scored again: 1, which is none, where there are no other images to do it by."""
    source = prepared.source
    others = left_over(source) is not None
    if not options.explains:  # of heat maps the reference images decide nothing
        others |= mean_shared(source, range(options.draws, options.draws + DRAWS)) < 1
    return options.rescore if others else 1


def default_study_name(fingerprint: Mapping[str, Any], objective: Sequence[str]) -> str:
    """Model, data, units and objectives, if not the AUC alone, so that each has a study of its own. Of a network that a
    program gives, which is often trained again under the same name, its weights too."""
    given = fingerprint["data"] == GIVEN
    return "-".join(
        [
            fingerprint["model"],
            *([] if given else [fingerprint["data"]]),
            *([] if "explaining" in fingerprint else [fingerprint["units"]]),
            *([] if tuple(objective) == ("auc",) else objective),
            *([fingerprint["weights"][:6]] if given else []),
        ]
    )
