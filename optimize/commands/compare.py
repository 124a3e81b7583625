"""`pxp-optimize compare`: a study's best composite beside others, on holdout samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...studies.errors import UserError
from ..lazy import LazyModule, load
from ..parsers import count_from
from .help import command
from .shell import (
    LOADING,
    Parsed,
    device_option,
    find_study,
    print_table,
    quiet_option,
    quiet_optuna,
    storage_option,
    study_option,
)

if TYPE_CHECKING:
    from optuna.study import Study

    from ...studies import comparison, document
    from ...studies import storage as storing
    from .. import console
    from ..study import compare as comparing
    from ..study import explain as explaining
    from ..study import prepare as preparing
    from ..study import resampling
    from ..study import run as running
else:
    console = LazyModule("..console", __package__)
    comparison = LazyModule("...studies.comparison", __package__)
    document = LazyModule("...studies.document", __package__)
    storing = LazyModule("...studies.storage", __package__)
    comparing = LazyModule("..study.compare", __package__)
    explaining = LazyModule("..study.explain", __package__)
    resampling = LazyModule("..study.resampling", __package__)
    running = LazyModule("..study.run", __package__)


@command(
    short_help="Compare a study's best composite with others, on holdout samples.",
    examples=(
        ("pxp-optimize compare", "with three draws of the reference images"),
        ("pxp-optimize compare --study NAME --seeds 10 --csv figures.csv", "narrower intervals, kept"),
    ),
)
@study_option
@storage_option
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
@device_option
@quiet_option
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

    Of a study of heat maps: beside other explainers, under each way to replace image regions.
    """
    screen = console.Screen(quiet=quiet)
    with screen.waiting(LOADING):
        load(running)
    if output is not None and csv is not None and Path(output).resolve() == Path(csv).resolve():
        raise UserError(f"--output and --csv are both {output}: give two files")
    if output is not None:
        document.check_target(output, storage, comparison.is_document, "comparison")
    if csv is not None:
        document.check_target(csv, storage, comparison.is_csv, "comparison")
    quiet_optuna(verbose=False)
    with running.device_and_storage_errors(storage):
        opened = storing.open_storage(storage, must_exist=True)
        found = find_study(opened, study)
        options = comparing.stored_options(found, device)
        paper = comparing.paper_study(opened, found, paper_study)
        prepared = comparing.prepare_again(found, options, screen)
        if options.explains:
            _compare_maps(found, prepared, screen, output, csv)
            return
        prepared = comparing.pruned_as_best(found, prepared)
        best, methods = comparing.methods_of(found, options, prepared, paper)
        for line in prepared.told():
            screen.line(line)
        if paper is not None:
            screen.line(f"paper   study {paper.study_name} (--paper-study)")
        if any(len(choices) > 1 for choices in prepared.pruning.values()):
            screen.line(f"all     {prepared.task.schedule}, repair {prepared.task.repair_name}, as the best trial")
        lines, problems = comparing.compare_study(prepared, methods, best, seeds, screen)
    rates = prepared.task.rates
    names = comparison.COST_NAMES if prepared.task.by_cost else comparison.NAMES
    for table in comparison.comparison_tables(lines, rates, names):
        print_table(table)
        click.echo()
    shared = resampling.sharing(prepared.source, comparing.draws_of(seeds))
    for text in (*comparison.explanation(lines, seeds, len(prepared.task.holdout), shared, names), *problems):
        click.echo(text)
    if output is not None:
        about = comparing.about(found, prepared, best, paper, seeds)
        document.write_json(output, comparison.comparison_document(lines, rates, about, names))
    if csv is not None:
        document.write_whole(csv, comparison.comparison_csv(lines, rates, names).encode())


def _compare_maps(
    study: Study, prepared: preparing.Prepared, screen: console.Screen, output: str | None, csv: str | None
) -> None:
    """Of a study of heat maps: all on its holdout images, under its replacement of regions and the others."""
    for line in prepared.told():
        screen.line(line)
    best, methods = explaining.explained_methods(study)
    task, seed = prepared.task, prepared.source.seed
    lines, problems = explaining.compare_maps(task, methods, best, explaining.replacements(task), seed, screen)
    print_table(explaining.map_table(lines))
    click.echo()
    click.echo(
        f"95% intervals over {len(task.holdout)} holdout images; differences are paired over images, p corrected by "
        f"Holm for {len(lines) - 1} comparisons (intervals are not)"
    )
    for text in problems:
        click.echo(text)
    if output is not None:
        about = {"study": study.study_name, "best": best, **prepared.fingerprint["explaining"]}
        document.write_json(output, explaining.document(lines, about))
    if csv is not None:
        document.write_whole(csv, explaining.map_csv(lines).encode())
