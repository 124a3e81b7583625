"""`pxp-optimize prune`: the smaller network of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..lazy import LazyModule, load
from ..parsers import parse_rate
from .shell import LOADING, Parsed, device_option, find_study, quiet_option, quiet_optuna, storage_option, study_option

if TYPE_CHECKING:
    from ...studies import best, document
    from ...studies import storage as storing
    from .. import console
    from ..study import checkpoint
    from ..study import compare as comparing
    from ..study import prepare as preparing
    from ..study import run as running
else:
    console = LazyModule("..console", __package__)
    best = LazyModule("...studies.best", __package__)
    document = LazyModule("...studies.document", __package__)
    storing = LazyModule("...studies.storage", __package__)
    checkpoint = LazyModule("..study.checkpoint", __package__)
    comparing = LazyModule("..study.compare", __package__)
    preparing = LazyModule("..study.prepare", __package__)
    running = LazyModule("..study.run", __package__)


@click.command(short_help="Write the smaller network of a study.")
@study_option
@click.option("--trial", type=int, metavar="N", help="Number of the trial whose composite ranks.  [default: the best]")
@click.option(
    "--rate",
    type=Parsed(parse_rate, "RATE"),
    metavar="RATE",
    help="Part of the units to remove.  [default: the largest that keeps 95 % of the accuracy on the search samples]",
)
@click.option("-o", "--output", default="small.safetensors", show_default=True, metavar="FILE", help="File to write.")
@storage_option
@device_option
@quiet_option
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
    `pxp_optimize.optimize.load_pruned(model, FILE)`. Of a study with several --draws, the first
    one's reference images rank. The study is only read.
    """
    screen = console.Screen(quiet=quiet)
    with screen.waiting(LOADING):
        load(running)

    document.check_target(output, storage, checkpoint.is_pruned, "pruned network")
    checkpoint.check_name(output)
    quiet_optuna(verbose=False)
    with running.device_and_storage_errors(storage):
        found = find_study(storing.open_storage(storage, must_exist=True), study)
        best.check_prunes(found)
        chosen = document.complete_trial(found, trial)
        options = comparing.stored_options(found, **({} if device is None else {"device": device}))
        prepared = preparing.prepare(options, screen)
        comparing.check_unchanged(found, prepared.fingerprint)
        for line in prepared.description:
            screen.line(line)
        with screen("prune", 1) as advance:
            lines = checkpoint.write_pruned(output, prepared, found, chosen, rate)
            advance(1)
    for text in lines:
        click.echo(text)
