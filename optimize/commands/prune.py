"""`pxp-optimize prune`: the smaller network of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ...studies.errors import UserError
from ..lazy import LazyModule, load
from ..parsers import count_from, parse_count, parse_rate, parse_share
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
    from ...studies import best, document
    from ...studies import storage as storing
    from .. import console
    from ..study import amount as amounts
    from ..study import compare as comparing
    from ..study import finetune as finetuning
    from ..study import formats, smaller
    from ..study import run as running
else:
    console = LazyModule("..console", __package__)
    best = LazyModule("...studies.best", __package__)
    document = LazyModule("...studies.document", __package__)
    storing = LazyModule("...studies.storage", __package__)
    amounts = LazyModule("..study.amount", __package__)
    comparing = LazyModule("..study.compare", __package__)
    finetuning = LazyModule("..study.finetune", __package__)
    formats = LazyModule("..study.formats", __package__)
    smaller = LazyModule("..study.smaller", __package__)
    running = LazyModule("..study.run", __package__)


@command(
    short_help="Write the smaller network of a study.",
    examples=(
        ("pxp-optimize prune", "the most that keeps 95 % of the accuracy, as small.safetensors"),
        ("pxp-optimize prune --saved 0.5 --finetune 10", "half of the cost, trained for a moment"),
        ("pxp-optimize prune --max-params 3M -o small.onnx", "at most three million parameters, as ONNX"),
    ),
)
@study_option
@click.option("--trial", type=int, metavar="N", help="Number of the trial whose composite ranks.  [default: the best]")
@click.option("--rate", type=Parsed(parse_rate, "RATE"), metavar="RATE", help="Part of the units to remove.")
@click.option(
    "--saved",
    type=Parsed(parse_rate, "PART"),
    metavar="PART",
    help="Part of the cost to save that the study is judged by (--objective; of the units, for auc).",
)
@click.option(
    "--keep-accuracy",
    type=Parsed(parse_share, "PART"),
    metavar="PART",
    help="Part of the accuracy on the search images to keep.  [default: 0.95]",
)
@click.option("--max-params", type=Parsed(parse_count, "N"), metavar="N", help="Most parameters, such as 500k or 3M.")
@click.option("--max-macs", type=Parsed(parse_count, "N"), metavar="N", help="Most multiply-adds, such as 1.2G.")
@click.option(
    "--mimic",
    type=Parsed(count_from(0), "STEPS"),
    default=0,
    show_default=True,
    metavar="STEPS",
    help="Train what is left so many steps, without labels, to give what the unpruned network gives.",
)
@click.option(
    "--finetune",
    type=Parsed(count_from(0), "EPOCHS"),
    default=0,
    show_default=True,
    metavar="EPOCHS",
    help="Train what is left on the reference images so often.",
)
@click.option(
    "-o",
    "--output",
    default="small.safetensors",
    show_default=True,
    metavar="FILE",
    help="File to write: .safetensors, .pt2 or .onnx.",
)
@storage_option
@device_option
@quiet_option
def prune(
    study: str | None,
    trial: int | None,
    mimic: int,
    finetune: int,
    output: str,
    storage: str,
    device: str | None,
    quiet: bool,
    **ways: float | None,
) -> None:
    """Write the network that a study's best composite leaves, with its steps and its repair.

    How much goes is said in one of five ways: --rate, --saved, --keep-accuracy, --max-params or --max-macs; of the
    last two and --saved the smallest rate is taken that is enough.

    \b
    FILE.safetensors  weights, for pxp_optimize.optimize.load_pruned(model, FILE)
    FILE.pt2          the whole network, for torch.export.load(FILE).module()
    FILE.onnx         the whole network, for ONNX runtimes (pip install 'pxp-optimize[onnx]')

    Of a study with several --draws, the first one's reference images rank. The study is only read.
    """
    given = [f"--{name.replace('_', '-')}" for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} are ways to say how much goes: give one of them")
    screen = console.Screen(quiet=quiet)
    with screen.waiting(LOADING):
        load(running)

    document.check_target(output, storage, formats.is_ours, "pruned network")
    formats.format_of(output)
    quiet_optuna(verbose=False)
    with running.device_and_storage_errors(storage):
        found = find_study(storing.open_storage(storage, must_exist=True), study)
        best.check_prunes(found)
        chosen = document.complete_trial(found, trial)
        options = comparing.stored_options(found, device)
        prepared = comparing.prepare_again(found, options, screen)
        amount = amounts.Amount.of(**ways)
        try:
            training = finetuning.Training(mimic, finetune)
            before, table, after = smaller.write_smaller(output, prepared, found, chosen, amount, training, screen)
        except ValueError as error:
            raise UserError(str(error).replace(amount.kind, f"--{amount.kind.replace('_', '-')}", 1)) from error
    for line in prepared.told():  # not before it is sure that there is such a network: an error is one line
        screen.line(line)
    for text in before:
        click.echo(text)
    print_table(table)
    for text in after:
        click.echo(text)
