"""`pxp-optimize export`: a study's best composite as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..lazy import LazyModule
from .help import command
from .shell import find_study, quiet_optuna, storage_option, study_option

if TYPE_CHECKING:
    from ...studies import document
    from ...studies import storage as storing
else:
    document = LazyModule("...studies.document", __package__)
    storing = LazyModule("...studies.storage", __package__)


@command(
    short_help="Write a study's best composite as JSON.",
    examples=(
        ("pxp-optimize export -o best.json", "the best trial's composite"),
        ("pxp-optimize export --trial 7 -o other.json", "another one's"),
    ),
)
@study_option
@click.option("-o", "--output", default="best.json", show_default=True, metavar="FILE", help="File to write.")
@click.option("--trial", type=int, metavar="N", help="Number of the trial to write.  [default: the best one]")
@storage_option
def export(study: str | None, output: str, trial: int | None, storage: str) -> None:
    """Write the best composite of a study, or that of one trial, as JSON."""
    document.check_target(output, storage)
    quiet_optuna(verbose=False)
    with storing.storage_errors(storage):
        content = document.composite_document(find_study(storing.open_storage(storage, must_exist=True), study), trial)
    document.write_json(output, content)
    result = content["result"]
    score = f"SRG {result['srg']:.4f}" if "srg" in result else f"AUC {result['auc']:.4f}"
    click.echo(f"{output}: trial {result['trial']} of {result['study']}, {score}")
