"""`pxp-optimize explain`: heat maps of images by a study's composites, as pictures."""

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
    quiet_option,
    quiet_optuna,
    storage_option,
    study_option,
)

if TYPE_CHECKING:
    from ...studies import document
    from ...studies import storage as storing
    from .. import console
    from ..study import compare as comparing
    from ..study import explain as explaining
    from ..study import run as running
else:
    console = LazyModule("..console", __package__)
    document = LazyModule("...studies.document", __package__)
    storing = LazyModule("...studies.storage", __package__)
    comparing = LazyModule("..study.compare", __package__)
    explaining = LazyModule("..study.explain", __package__)
    running = LazyModule("..study.run", __package__)


@command(
    short_help="Draw heat maps of images by a study's composites.",
    examples=(("pxp-optimize explain --images photos/ -o heatmaps", "as PNG files, the best composite beside others"),),
)
@study_option
@click.option("--images", required=True, metavar="DIR", help="Folder of the images, also in folders within it.")
@click.option("-o", "--output", default="heatmaps", show_default=True, metavar="DIR", help="Folder to write to.")
@click.option("--most", type=Parsed(count_from(1), "N"), default=8, show_default=True, help="Images at most.")
@storage_option
@device_option
@quiet_option
def explain(
    study: str | None, images: str, output: str, most: int, storage: str, device: str | None, quiet: bool
) -> None:
    """Draw heat maps of the predicted class: by the best composite of a study and by known ones, side by side.

    A PNG for each image. Red speaks for the class, blue against it; each map has its own scale. The study is only read.
    """
    screen = console.Screen(quiet=quiet)
    with screen.waiting(LOADING):
        load(running)
    quiet_optuna(verbose=False)
    found = explaining.image_files(Path(images), most)
    with running.device_and_storage_errors(storage):
        opened = find_study(storing.open_storage(storage, must_exist=True), study)
        document.complete_trial(opened)
        options = comparing.stored_options(opened, device)
        prepared = comparing.prepare_again(opened, options, screen)
        try:
            Path(output).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {output}: {error.strerror or error}") from error
        methods = explaining.shown_methods(opened)
        with screen("draw heat maps", 1) as advance:
            written = explaining.draw_files(prepared, methods, found, Path(output))
            advance(1)
    click.echo(f"{len(written)} pictures in {output}: image, {'; '.join(methods)}")
