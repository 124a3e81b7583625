"""A study's report and figures as files: HTML, PNG, PDF, CSV and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import curves
from .document import check_ours, check_target, complete_trial, is_json, write_whole
from .errors import UserError
from .page import GENERATOR, page
from .wording import reason

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from optuna.study import Study

SIZE = {"width": 720, "height": 440, "scale": 2}
"""Of pictures, in pixels before they are scaled."""
MARK = b"%pxp-optimize\n"
"""The comment at the end of a PDF by which it is known; of a PNG its "Software" says so."""
FIGURE = "holdout"
"""The figure that a picture shows."""


class Format(NamedTuple):
    """What a file may be. content: of a study and, for a picture, the name of its figure. ours: whether a file that is
    there is an earlier one, which may be replaced. what: such a file, in words."""

    content: Callable[[Study, str], bytes]
    ours: Callable[[Path], bool]
    what: str


def figure(study: Study, name: str = FIGURE) -> go.Figure:
    """One of a study's figures; of a study without holdout scores its search curves stand for the holdout's.

    Raises:
        UserError: no figure of this name, nothing to show in it yet, or a study of another program.
    """
    from .figures import FIGURES

    check_ours(study)
    if name not in FIGURES:
        raise UserError(f"no figure {name!r}: choose from {', '.join(FIGURES)}")
    drawn = FIGURES[name](study)
    if drawn is None and name == FIGURE:
        drawn = FIGURES["search"](study)
    if drawn is None:
        raise UserError(f"study {study.study_name!r} has nothing for the figure {name!r} (yet)")
    return drawn


def format_of(path: str | Path, given: str | None = None) -> str:
    """The format that is asked for, or else the one that the file's name ends in.

    Raises:
        UserError: neither is one of `FORMATS`, or they contradict each other.
    """
    ending = Path(path).suffix.lower().removeprefix(".")
    if given is None and ending not in FORMATS:
        raise UserError(f"{path} does not say what to write: let its name end in .{', .'.join(FORMATS)}")
    if given is not None and ending in FORMATS and ending != given:
        raise UserError(f"{path} is the name of {ending.upper()}, and --format is {given}: give one of them")
    return given or ending


def check_report(path: str | Path, format: str | None = None, storage: str | None = None) -> str:
    """The format of a report (`format_of`), once it is sure that it can be written.

    Raises:
        UserError: as `format_of` and `check_target`, or a picture without what draws it.
    """
    name = format_of(path, format)
    check_target(path, storage, FORMATS[name].ours, FORMATS[name].what)
    if name in ("png", "pdf"):
        _check_kaleido()
    return name


def write_report(
    study: Study, path: str | Path, format: str | None = None, figure: str = FIGURE, storage: str | None = None
) -> None:
    """Write a study as it stands.

    format: of `FORMATS`; None for the one that the file's name ends in. figure: the one that PNG and PDF show.
    storage: the study's database, which is not written over.

    Raises:
        UserError: as `check_report`; a study without a trial that is complete, but for the page; a figure that has
            nothing to show.
    """
    name = check_report(path, format, storage)
    write_whole(path, FORMATS[name].content(study, figure))


def _check_kaleido() -> None:
    try:
        import kaleido  # noqa: F401
    except ImportError:
        raise UserError("PNG and PDF need kaleido: pip install 'pxp-optimize[images]'") from None


def _picture(study: Study, name: str, kind: str) -> bytes:
    drawn = figure(study, name)
    height, meta, margin = max(SIZE["height"], drawn.layout.height or 0), drawn.layout.meta or {}, drawn.layout.margin
    if "ratio" in meta:  # heat maps are as high as their width makes them
        height = round(margin.t + margin.b + (SIZE["width"] - margin.l - margin.r) * meta["ratio"])
    size = {**SIZE, "height": height}
    try:
        return bytes(drawn.to_image(format=kind, **size))
    except Exception as error:  # kaleido's own, of many kinds: no Chrome, one that does not start
        raise UserError(f"kaleido cannot draw ({reason(error)}): it needs Chrome or Chromium") from error


def _png(study: Study, name: str) -> bytes:
    import io

    from PIL import Image, PngImagePlugin

    info, out = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text("Software", "pxp-optimize")
    Image.open(io.BytesIO(_picture(study, name, "png"))).save(out, "png", pnginfo=info)
    return out.getvalue()


def _is_png(path: Path) -> bool:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.info.get("Software") == "pxp-optimize"
    except (OSError, ValueError, UnidentifiedImageError):
        return path.stat().st_size == 0


def _csv(study: Study, _: str) -> bytes:
    check_ours(study)
    complete_trial(study)
    return curves.curves_csv(study).encode()


def _json(study: Study, _: str) -> bytes:
    check_ours(study)
    complete_trial(study)
    return (json.dumps(curves.curves_document(study), indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _begins(path: Path, mark: bytes) -> bool:
    with path.open("rb") as file:
        found = file.read(400)
    return not found or mark in found


def _ends(path: Path, mark: bytes) -> bool:
    content = path.read_bytes()
    return not content or content.endswith(mark)


FORMATS: dict[str, Format] = {
    "html": Format(lambda study, _: page(study).encode(), lambda path: _begins(path, GENERATOR.encode()), "report"),
    "png": Format(_png, _is_png, "figure of pxp-optimize"),
    "pdf": Format(
        lambda study, name: _picture(study, name, "pdf") + MARK,
        lambda path: _ends(path, MARK),
        "figure of pxp-optimize",
    ),
    "csv": Format(_csv, curves.is_csv, "table of curves"),
    "json": Format(_json, lambda path: is_json(path, "pxp-curves/"), "document of curves"),
}
"""By the ending of a file's name. HTML is the whole report, PNG and PDF are one figure, CSV and JSON the curves."""
