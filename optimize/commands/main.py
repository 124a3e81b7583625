"""The command `pxp-optimize`. torch and Optuna are imported where they are used, so that `--help` is fast."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...studies.errors import UserError
from ..options import Options, read_config
from ..parsers import SPACES, Parser, count_from, parse_rate

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial

    from ...attribution import Composite
    from ..evaluation.phases import Phases
    from ..evaluation.task import Samples, Task, Unseen
    from ..study.prepare import Prepared
    from .console import Screen

BAD_INPUT = 2
INTERRUPTED = 130
"""Exit statuses: the input is at fault; stopped by Ctrl-C."""
LOADING = "loading PyTorch"
"""What a command says that it does before it can say anything else."""
PLAIN_COST = 0.2
"""What a trial costs without steps and repair, of one with them (benchmarks/README.md)."""


class OneLineErrors(click.Group):
    """A group whose errors are one line on stderr, with the exit status of bad input and no traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        try:
            _check_text(args[0] if args else kwargs.get("args") or sys.argv[1:])
            status = super().main(*args, **kwargs)
        except click.ClickException as error:
            self._fail(error.format_message())
        except UserError as error:
            self._fail(str(error))
        except OSError as error:  # a name that is too long, a full disk, a folder that is closed
            if error.filename is None and error.errno != errno.ENOSPC:
                raise
            self._fail(f"{error.filename or 'output'!s:.200}: {error.strerror}")
        except (click.Abort, KeyboardInterrupt):
            click.echo("Stopped.", err=True)
            sys.exit(INTERRUPTED)
        sys.exit(status if isinstance(status, int) else 0)

    @staticmethod
    def _fail(message: str) -> None:
        click.echo(f"Error: {' '.join(message.split())}", err=True)
        sys.exit(BAD_INPUT)


def _check_text(arguments: Sequence[str]) -> None:
    """Refuse bytes that are no text: neither a database nor JSON can hold them."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            if codecs.lookup(sys.getfilesystemencoding()).name != "utf-8":
                raise UserError(f"{argument!r:.200} cannot be read in this locale: set LC_ALL=C.UTF-8") from None
            raise UserError(f"{argument!r:.200} is not UTF-8: rename it, or give another one") from None


class Parsed(click.ParamType):
    """A click type made of a parser of `config`."""

    def __init__(self, parser: Parser, name: str) -> None:
        self.parser = parser
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.parser(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds an option for each field of `Options`, in their order."""
    for option in reversed(fields(Options)):
        assert option.default is not MISSING
        names = [f"--{option.name.replace('_', '-')}", option.name]
        short = {"quiet": "-q", "verbose": "-v"}.get(option.name)
        hints = option.metadata
        if short:
            names.insert(0, short)
        if hints["alias"]:
            names.insert(0, f"--{hints['alias']}")
        kind: dict[str, Any] = {"type": str}
        if option.type == "bool":
            kind = {"is_flag": True}
        elif hints["choices"]:
            kind = {"type": click.Choice(hints["choices"])}
        elif hints["parse"]:
            kind = {"type": Parsed(hints["parse"], hints["metavar"])}
        shown = hints["unset"] or hints["shown"] or (option.type != "bool")
        decorate = click.option(
            *names,
            default=option.default,
            help=hints["help"],
            metavar=hints["metavar"],
            show_default=shown,
            **kind,
        )
        command = decorate(command)
    return command


def _load_config(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.default_map = {**read_config(value)}


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=OneLineErrors, invoke_without_command=True, context_settings=CONTEXT)
@_run_options
@click.option(
    "--config",
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_load_config,
    help="TOML file with these options (trials = 50); the command line wins over it.  [default: none]",
)
@click.version_option(package_name="pxp-optimize")
@click.pass_context
def main(ctx: click.Context, /, **values: Any) -> None:
    """Find the LRP composite that prunes an image classifier best.

    A run ranks the network's filters by LRP relevance under many composites (which rule at which depth),
    removes the least relevant ones, and measures what accuracy is left. Every trial goes into a database;
    the best composite is written as JSON. The same command again continues the study.

    Without options: a resnet18 on embedded handwritten digits.
    """
    if ctx.invoked_subcommand is not None:
        given = [
            name
            for name in (*values, "config")
            if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
        ]
        if given:
            option = given[0].replace("_", "-")
            raise UserError(f"--{option} stands before {ctx.invoked_subcommand}: options of a command follow its name")
        return
    options = Options(**values)
    try:
        sys.exit(run(options))
    except UserError:
        if options.verbose:
            traceback.print_exc()
        raise


def _storage_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--storage",
        default=Options.storage,
        show_default=True,
        metavar="FILE|URL",
        help="Database of the studies: a file, or a URL as SQLAlchemy reads it.",
    )(command)


@main.command(short_help="Write a study's best composite as JSON.")
@click.option("--study", metavar="NAME", help="Name of the study.  [default: the only one in the database]")
@click.option("-o", "--output", default="best.json", show_default=True, metavar="FILE", help="File to write.")
@click.option("--trial", type=int, metavar="N", help="Number of the trial to write.  [default: the best one]")
@_storage_option
def export(study: str | None, output: str, trial: int | None, storage: str) -> None:
    """Write the best composite of a study, or that of one trial, as JSON."""
    from ...studies.document import check_target, composite_document, write_json
    from ...studies.storage import open_storage, storage_errors

    check_target(output, storage)
    _quiet_optuna(verbose=False)
    with storage_errors(storage):
        document = composite_document(_find_study(open_storage(storage, must_exist=True), study), trial)
    write_json(output, document)
    result = document["result"]
    click.echo(f"{output}: trial {result['trial']} of {result['study']}, AUC {result['auc']:.4f}")


@main.command(short_help="Compare a study's best composite with others, on holdout samples.")
@click.option("--study", metavar="NAME", help="Name of the study.  [default: the only one in the database]")
@_storage_option
@click.option(
    "--paper-study",
    metavar="NAME",
    help="Study of --space paper on the same task, whose best takes part.  [default: the one in the database, if any]",
)
@click.option(
    "--seeds",
    type=Parsed(count_from(1), "N"),
    default=3,
    show_default=True,
    metavar="N",
    help="Draws of the reference images, each with a seed of its own for random baselines.",
)
@click.option("--output", metavar="FILE", help="Write all figures here as JSON.")
@click.option("--csv", metavar="FILE", help="Write all figures here as CSV.")
@click.option("--device", metavar="NAME", help="Where to compute.  [default: as the study]")
@click.option("-q", "--quiet", is_flag=True, help="Show nothing but the results.")
def compare(
    study: str | None,
    storage: str,
    paper_study: str | None,
    seeds: int,
    output: str | None,
    csv: str | None,
    device: str | None,
    quiet: bool,
) -> None:
    """Compare a study's best composite with the fixed ones, the paper's best and other criteria.

    All are measured on the study's holdout samples, with its schedule and repair, but with other reference images
    than the search had. Intervals count both the images and the draws. The study is only read.
    """
    from ...studies.comparison import FORMAT, comparison_csv, comparison_document, comparison_tables, explanation
    from ...studies.comparison import is_csv as is_comparison_csv
    from ...studies.document import check_target, is_json, write_json, write_whole
    from ...studies.storage import open_storage, storage_errors
    from .console import Screen

    screen = Screen(quiet=quiet)
    with screen.waiting(LOADING):
        from ..study import compare as comparing
        from ..study.prepare import prepare
        from ..study.resampling import sharing

    if output is not None and csv is not None and Path(output).resolve() == Path(csv).resolve():
        raise UserError(f"--output and --csv are both {output}: give two files")
    if output is not None:
        check_target(output, storage, lambda path: is_json(path, FORMAT), "comparison")
    if csv is not None:
        check_target(csv, storage, is_comparison_csv, "comparison")
    _quiet_optuna(verbose=False)
    with storage_errors(storage), _memory_errors():
        opened = open_storage(storage, must_exist=True)
        found = _find_study(opened, study)
        options = comparing.stored_options(found, **({} if device is None else {"device": device}))
        paper = comparing.paper_study(opened, found, paper_study)
        prepared = prepare(options, screen)
        comparing.check_unchanged(found, prepared.fingerprint)
        prepared = comparing.pruned_as_best(found, prepared)
        best, methods = comparing.methods_of(found, options, prepared, paper)
        for line in prepared.description:
            screen.line(line)
        if paper is not None:
            screen.line(f"paper   study {paper.study_name} (--paper-study)")
        if any("," in getattr(options, key) for key in prepared.pruning):
            screen.line(f"all     {prepared.task.schedule}, repair {prepared.task.repair_name}, as the best trial")
        lines, problems = comparing.compare_study(prepared, methods, best, seeds, screen)
    rates = prepared.task.rates
    for table in comparison_tables(lines, rates):
        _print_table(table)
        click.echo()
    shared = sharing(prepared.source, comparing.draws_of(seeds))
    for text in (*explanation(lines, seeds, len(prepared.task.holdout), shared), *problems):
        click.echo(text)
    if output is not None:
        write_json(output, comparison_document(lines, rates, comparing.about(found, prepared, best, paper, seeds)))
    if csv is not None:
        write_whole(csv, comparison_csv(lines, rates).encode())


@main.command(short_help="Write the smaller network of a study.")
@click.option("--study", metavar="NAME", help="Name of the study.  [default: the only one in the database]")
@click.option("--trial", type=int, metavar="N", help="Number of the trial whose composite ranks.  [default: the best]")
@click.option(
    "--rate",
    type=Parsed(parse_rate, "RATE"),
    metavar="RATE",
    help="Part of the units to remove.  [default: the largest that keeps 95 % of the accuracy on the search samples]",
)
@click.option("-o", "--output", default="small.safetensors", show_default=True, metavar="FILE", help="File to write.")
@_storage_option
@click.option("--device", metavar="NAME", help="Where to compute.  [default: as the study]")
@click.option("-q", "--quiet", is_flag=True, help="Show nothing but the results.")
def prune(
    study: str | None,
    trial: int | None,
    rate: float | None,
    output: str,
    storage: str,
    device: str | None,
    quiet: bool,
) -> None:
    """Write the network that a study's best composite leaves, with its steps and its repair, as safetensors.

    The accuracies that are shown are the holdout samples'. Python reads the file by
    `pxp_optimize.optimize.study.checkpoint.load_pruned(model, FILE)`. Of a study with several --draws, the first
    one's reference images rank. The study is only read.
    """
    from ...studies.document import check_target, complete_trial
    from ...studies.storage import open_storage, storage_errors
    from .console import Screen

    screen = Screen(quiet=quiet)
    with screen.waiting(LOADING):
        from ..study import compare as comparing
        from ..study.checkpoint import check_name, is_pruned, write_pruned
        from ..study.prepare import prepare

    check_target(output, storage, is_pruned, "pruned network")
    check_name(output)
    _quiet_optuna(verbose=False)
    with storage_errors(storage), _memory_errors():
        found = _find_study(open_storage(storage, must_exist=True), study)
        chosen = complete_trial(found, trial)
        options = comparing.stored_options(found, **({} if device is None else {"device": device}))
        prepared = prepare(options, screen)
        comparing.check_unchanged(found, prepared.fingerprint)
        for line in prepared.description:
            screen.line(line)
        with screen("prune", 1) as advance:
            lines = write_pruned(output, prepared, found, chosen, rate)
            advance(1)
    for text in lines:
        click.echo(text)


@main.command()
@_storage_option
def studies(storage: str) -> None:
    """List the studies that a database holds."""
    from ...studies.report import list_studies, studies_table
    from ...studies.storage import open_storage, storage_errors

    _quiet_optuna(verbose=False)
    with storage_errors(storage):
        lines = list_studies(open_storage(storage, must_exist=True))
    if lines:
        _print_table(studies_table(lines))
    else:
        click.echo(f"{storage} holds no study yet")


@main.command(short_help="List the models that are supported.")
def models() -> None:
    """List the torchvision models that are supported, with the units that can be pruned."""
    from ..models import supported_models

    for name in supported_models():
        units = units_of(name)
        if units:
            click.echo(f"{name:24} {units}")


FAMILIES = {
    "vit_": "heads, neurons",
    **dict.fromkeys(("alexnet", "convnext", "mobilenet_v3", "vgg"), "filters, neurons"),
    "swin": "heads, neurons",
    "maxvit": "filters, heads, neurons",
}
"""The kinds of units of models whose names begin so; the others have filters."""


def units_of(model: str) -> str:
    """The kinds of units a torchvision model has, or nothing for one that is not supported."""
    return next((units for family, units in FAMILIES.items() if model.startswith(family)), "filters")


def _find_study(storage: Any, name: str | None) -> Study:
    import optuna

    names = optuna.get_all_study_names(storage)
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        held = ", ".join(sorted(names)) or "none"
        problem = f"no study {name!r}" if name else "say which study by --study"
        raise UserError(f"{problem}; the database has: {held}")
    return optuna.load_study(study_name=name, storage=storage)


def run(options: Options) -> int:
    """Run or continue a study; the exit status.

    The database is opened only after everything else has been found fit, and the study created only after its
    fingerprint has been compared.

    Raises:
        UserError: the input is at fault.
    """
    from ...studies.document import check_target
    from ...studies.storage import check_storage, storage_errors
    from ..evaluation.phases import PREPARING, phase, recorded
    from ..search.samplers import AUTO, MULTI_OBJECTIVE
    from .console import Screen

    if options.draws > 1 and options.pruner != "none":
        raise UserError(f"--pruner {options.pruner} races on one draw: give --draws 1, or --pruner none")
    if "," in options.objective and options.pruner != "none":
        raise UserError(f"--pruner {options.pruner} knows one objective: give --objective auc, or --pruner none")
    if "," in options.objective and options.sampler not in (AUTO, *MULTI_OBJECTIVE):
        known = ", ".join(MULTI_OBJECTIVE)
        raise UserError(f"--sampler {options.sampler} knows one objective: give --objective auc, or one of {known}")
    if options.repair == "none" and options.repair_samples is not None:
        raise UserError(f"--repair-samples {options.repair_samples}: --repair none reads no images; leave one out")
    check_storage(options.storage)
    check_target(options.export, options.storage)
    screen = Screen(quiet=options.quiet, verbose=options.verbose)
    try:
        with recorded() as phases:
            with phase(PREPARING):
                with screen.waiting(LOADING):
                    from ..search.warm_start import read_earlier
                    from ..study.prepare import prepare

                if options.start_from is not None:  # before models and data take their time
                    read_earlier(options.start_from)
                with _memory_errors():
                    prepared = prepare(options, screen)
            _quiet_optuna(verbose=options.verbose)
            with _memory_errors(), storage_errors(options.storage):
                return _run_study(options, prepared, phases, screen)
    except KeyboardInterrupt:
        click.echo("Stopped before the first trial.", err=True)
        return INTERRUPTED


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Turns a device that is out of memory into one line."""
    from ..evaluation.memory import is_out_of_memory

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            "the device's memory is too small: "
            "give a smaller --batch-size or --image-size, or fewer --reference-samples"
        ) from error


def _run_study(options: Options, prepared: Prepared, phases: Phases, screen: Screen) -> int:
    from ...attribution.composites import GATES
    from ...studies.document import composite_document, write_json
    from ...studies.storage import alone, open_storage, shown
    from ..evaluation.curve import chunks
    from ..evaluation.evaluate import mean_evaluation
    from ..evaluation.memory import keep_batch_size
    from ..evaluation.phases import RESCORING, TRIALS, phase
    from ..search.loop import run_search
    from ..search.pruners import NONE, Race, make_pruner, reports_of
    from ..search.samplers import AUTO, GRID, UNCONDITIONAL, default_sampler, make_sampler
    from ..search.space import Space
    from ..search.spacefile import read_space
    from ..search.status import count_complete, count_finished, standing
    from ..search.warm_start import earlier_composite, mixed_composites
    from ..study.opening import check_space, check_study, open_study
    from ..study.resampling import tasks_of
    from ..study.rescore import fresh_samples, unseen_samples
    from ..study.scores import keep_phases, known_curves

    conditional = options.sampler not in UNCONDITIONAL  # a space of numbers only, which `auto` gives to cmaes, has none
    make = Space.named if options.space in SPACES else read_space
    mixed = "+" in prepared.task.units
    # counted in units the signal alone was always better; counted in cost not (benchmarks/README.md)
    gates = (GATES if prepared.task.cost else GATES[:1]) if prepared.task.graph.gated else ()
    space = make(options.space, prepared.layers, conditional, mixed=mixed, pruning=prepared.pruning, gates=gates)
    if options.sampler == AUTO:
        options = replace(options, sampler=default_sampler(space.parameters(), options.objective))
    try:
        grid = space.grid(options.seed) if options.sampler == GRID else []
    except ValueError as error:
        raise UserError(f"--sampler {GRID}: {error}") from None
    name = options.study or default_study_name(prepared.fingerprint)
    start_from: dict[str, Composite] = {}
    if options.start_from is not None:
        start_from[options.start_from] = earlier_composite(options.start_from, space, prepared.layers, options.space)
    tasks = tasks_of(prepared, options.draws)
    storage = open_storage(options.storage)
    with alone(options.storage):  # not while another process makes it
        present = check_study(storage, name, prepared.fingerprint, options.objective)
    if present is not None:
        check_space(present, space, options.space)
    reports = reports_of(present, options.pruner)
    sizes = [len(rows) for rows in chunks(prepared.task.search.targets)]
    attrs = {
        "rates": list(prepared.task.rates),
        "chunks": sizes,
        "reports": reports,
        "config": {**asdict(options), "storage": shown(options.storage)},
        "layers": prepared.layers,
        "device": str(prepared.task.graph.device),
    }
    with alone(options.storage):
        study = open_study(storage, name, prepared.fingerprint, attrs, options.objective)
    study.sampler = make_sampler(options.sampler, options.seed)
    study.pruner = make_pruner(options.pruner, len(sizes))
    for line in prepared.description:  # not before it is sure that the run can go on: an error is one line
        screen.line(line)
    done = count_finished(study)
    state = f"continues, {done} of {options.trials} trials finished" if done else f"{options.trials} trials"
    screen.line(f"study   {name} in {shown(options.storage)}: {state} by {options.sampler}")
    if options.pruner != NONE and len(sizes) < 2:
        screen.line(f"pruner  {options.pruner} stops nothing: {sizes[0]} search samples are too few for several chunks")
    screen.line(f"phases  {_phases_told(options, prepared)}")
    task = prepared.task
    if options.batch_size == "auto":
        keep_batch_size(study, task.batching, task.graph.device.type)
    task.batching.tell = screen.line
    task.curves[task.measured(task.search)] = known_curves(study)
    race = Race(sizes, reports, options.pruner, grid=options.sampler == GRID)
    for text in _unpruned(study, task, screen):
        screen.line(text)
    fresh = cache(partial(fresh_samples, prepared))  # read by the first trial that needs them, if any
    after = sum(_trials_after(study, options, prepared, tasks).values())

    def watched(study: Study, trial: Trial) -> list[Unseen]:
        with phase(RESCORING):
            others = fresh() if options.rescore > 1 else None
        return unseen_samples(study, trial, options.rescore, task.holdout, others)

    try:
        with phase(TRIALS), screen.search(standing(study, options.trials)) as watch:
            run_search(
                study,
                space,
                lambda candidate, stop=None, unseen=(): mean_evaluation(tasks, candidate, stop=stop, unseen=unseen),
                trials=options.trials,
                timeout=options.timeout,
                start_from=start_from,
                known=mixed_composites(space),
                queue=grid,
                watch=lambda now, line: watch(replace(now, after=after), line),
                race=None if "," in options.objective else race,
                queue_only=options.sampler == GRID,
                alone=partial(alone, options.storage),
                unseen=watched,
            )
        if options.sampler == GRID and (tried := count_finished(study)) < options.trials and options.timeout is None:
            screen.line(f"grid    all {tried} composites are tried: fewer than --trials {options.trials}")
        if not count_complete(study):
            raise UserError("no trial finished in time: raise --timeout")
        with alone(options.storage, lambda: screen.line("end     another process scores the best: waits for it")):
            _score(study, options, prepared, tasks, fresh, screen)
            keep_phases(study, phases)
            screen.line(f"time    {phases}")
            write_json(options.export, composite_document(study))
            _report(study, options)
    except KeyboardInterrupt:
        keep_phases(study, phases)
        click.echo(
            f"Stopped after {count_finished(study)} of {options.trials} trials. "
            "Run the same command again to continue.",
            err=True,
        )
        return INTERRUPTED
    return 0


def _unpruned(study: Study, task: Task, screen: Screen) -> list[str]:
    """What the network is worth unpruned, in a line, and in another one if that is next to nothing."""
    from ..data.sanity import chance_of, near_chance
    from ..evaluation.curve import right_predictions
    from ..study.scores import unpruned_accuracy

    accuracy, targets = unpruned_accuracy(study), task.search.targets
    if accuracy is None:
        with screen("measure the unpruned network", 1):  # the first trial is not to measure it again
            flags = right_predictions(task, [task.graph.network], task.search)
        accuracy = int(flags.sum()) / flags.numel()
    warning = near_chance(accuracy, targets)
    return [
        f"network {accuracy:.1%} accuracy unpruned on the search samples, {chance_of(targets):.1%} by chance",
        *([] if warning is None else [f"warning {warning}"]),
    ]


def _trials_after(study: Study, options: Options, prepared: Prepared, tasks: Sequence[Task]) -> dict[str, float]:
    """How many trials each phase that follows them takes as long as. What is measured on a trial's own networks takes
    none."""
    from ..evaluation.phases import HOLDOUT, PLAIN, RESCORING
    from ..study.resampling import left_over
    from ..study.rescore import DRAWS
    from ..study.scores import without_holdout

    by_draws = options.rescore > 1 and left_over(prepared.source) is None
    return {
        RESCORING: options.rescore * DRAWS / len(tasks) if by_draws else 0.0,
        HOLDOUT: float(len(without_holdout(study))),
        PLAIN: 0.0 if _is_plain(prepared.task) else PLAIN_COST,
    }


def _phases_told(options: Options, prepared: Prepared) -> str:
    """What a run does from here on, with the names that its phases are shown by."""
    from ..evaluation.phases import HOLDOUT, PLAIN, RESCORING, TRIALS
    from ..study.resampling import left_over

    on = "by other reference images" if left_over(prepared.source) is None else "on other validation images"
    found = [
        TRIALS,
        *([f"{RESCORING} (the best {options.rescore}, {on})"] if options.rescore > 1 else []),
        HOLDOUT,
        *([] if _is_plain(prepared.task) else [f"{PLAIN} (the best ranked once, without repair)"]),
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
    from ...studies.best import best_trial
    from ...studies.report import fixed_trials
    from ..evaluation.candidate import pruning_of
    from ..evaluation.evaluate import mean_evaluation
    from ..evaluation.phases import HOLDOUT, PLAIN, RESCORING, phase
    from ..evaluation.task import Unseen
    from ..study.rescore import fresh_measure, is_rescored, rescore
    from ..study.scores import best_trials, score_holdout, score_plain, seconds_a_trial

    holdout = prepared.task.holdout
    plain = [drawn.plain() for drawn in tasks]
    pace = seconds_a_trial(study)

    def plain_scores(composite: Composite) -> tuple[Any, Any]:
        found = mean_evaluation(plain, composite, unseen=[Unseen(HOLDOUT, holdout, -1.0, HOLDOUT)])
        return found, found.unseen[HOLDOUT]

    while True:
        left = {name: trials * pace for name, trials in _trials_after(study, options, prepared, tasks).items()}
        if options.rescore > 1 and not is_rescored(study, options.rescore):
            after = left[HOLDOUT] + left[PLAIN]
            with phase(RESCORING), screen(RESCORING, options.rescore, left[RESCORING], after) as advance:
                rescore(study, options.rescore, *fresh_measure(prepared, tasks, fresh), advance)
        total = len(fixed_trials(study)) + len(best_trials(study))
        with phase(HOLDOUT), screen(HOLDOUT, total, left[HOLDOUT], left[PLAIN]) as advance:
            score_holdout(study, lambda candidate: mean_evaluation(tasks, candidate, holdout), advance)
        if not _is_plain(prepared.task.pruned_as(pruning_of(best_trial(study)))):
            with phase(PLAIN), screen(PLAIN, 1, left[PLAIN]) as advance:
                score_plain(study, plain_scores, advance)
        if str(best_trial(study).number) in study.user_attrs["holdout"]:
            return  # else another process has found a better one meanwhile


def default_study_name(fingerprint: Mapping[str, Any]) -> str:
    """Model, data and units, so that each has a study of its own."""
    return "-".join(fingerprint[key] for key in ("model", "data", "units"))


def _report(study: Study, options: Options) -> None:
    """The results, on stdout."""
    from ...studies.best import best_trial
    from ...studies.report import failed_text, front_lines, no_gain_text, rescored_text, result_lines, result_table
    from ...studies.storage import database_file, shown, storage_url
    from ..evaluation.candidate import pruning_of

    best = best_trial(study)
    on_search, holdout = best.user_attrs["accuracy"][0], next(iter(study.user_attrs["holdout"].values()))
    click.echo(f"unpruned accuracy: {on_search:.1%} on search samples, {holdout['accuracy'][0]:.1%} on holdout samples")
    _print_table(result_table(result_lines(study)))
    if pruning := pruning_of(best):
        click.echo(f"pruning:   {pruning} (of the best)")
    for line in front_lines(study):
        click.echo(line)
    for text in (rescored_text(study), no_gain_text(study), failed_text(study)):
        if text is not None:
            click.echo(text)
    click.echo(f"database:  {database_file(options.storage) or shown(options.storage)}, study {study.study_name}")
    click.echo(f"best JSON: {options.export}")
    click.echo(f"dashboard: {_command('optuna-dashboard', shown(storage_url(options.storage)))}")


def _command(*words: str) -> str:
    """The words as the user's shell takes them."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def _print_table(table: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)  # names of studies and files may hold brackets
    if not console.is_terminal:  # a file has no width that a line could be too long for
        console.width = 200
    console.print(table)


def _quiet_optuna(*, verbose: bool) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.INFO if verbose else optuna.logging.ERROR)


if __name__ == "__main__":
    main()
