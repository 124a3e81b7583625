"""`pxp-optimize export`: a study's best composite as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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
    click.echo(f"{output}: trial {result['trial']} of {result['study']}, {_score(result)}")


def _score(result: Mapping[str, Any]) -> str:
    """By what its study judges it, in words."""
    if "srg" in result:
        return f"SRG {result['srg']:.4f}"
    if "area" in result:
        return f"area {result['area']:.4f} over {result['objective']}"
    second = [f", {key.replace('_', ' ')} {value:.4f}" for key, value in result.items() if key.startswith("area_over")]
    return f"AUC {result['auc']:.4f}{''.join(second)}"
