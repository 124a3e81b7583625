"""What Optuna's dashboard shows of a study: figures, notes, and files. Saved at the end of a run."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIServer, make_server

from . import internals
from .best import explains, score_of
from .document import check_ours, composite_document
from .errors import UserError
from .figures import draw_all
from .figures.style import BEST, FONT, QUIET, THEMES
from .page import page
from .report import fixed_trials, title
from .storage import database_file, open_storage
from .summary import NOTE, study_note, trial_note

if TYPE_CHECKING:
    from optuna.artifacts import FileSystemArtifactStore
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

CURVE = "curve.svg"
"""The file of a trial that shows its curve."""


def artifact_folder(storage: str) -> Path | None:
    """Where the files of a database's studies are: a folder beside it; None of a database that is no file."""
    path = database_file(storage)
    return None if path is None else path.with_name(f"{path.name}.artifacts")


def save_views(study: Study, storage: str) -> None:
    """Put into the database what the dashboard shows besides Optuna's own: the figures, and a note on the study and on
    each finished trial; beside an SQLite file also the best composite as JSON and the report.

    A trial's note that is there stays, and so does a person's own on the study.
    """
    from optuna.trial import TrialState
    from optuna_dashboard import get_note, save_note, save_plotly_graph_object

    store, seen = _store(storage), internals.snapshot(study)
    drawn = draw_all(seen)
    if store is not None:
        _save_file(study, store, "report.html", page(seen, drawn).encode())
        if seen.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            document = json.dumps(composite_document(seen), indent=2, allow_nan=False, ensure_ascii=False)
            _save_file(study, store, "best.json", document.encode())
    for name, figure in drawn.items():
        figure.update_layout(height=None)  # the dashboard's boxes have one of their own
        save_plotly_graph_object(study, figure, graph_object_id=name)
    note = get_note(study)
    if not note or note.startswith(NOTE):
        save_note(study, study_note(seen))
    noted = internals.noted_trials(study)
    for trial in seen.get_trials(deepcopy=False):
        if trial.state.is_finished() and trial._trial_id not in noted:
            save_note(internals.note_target(study, trial), trial_note(seen, trial, _picture(study, trial)))


def refresh(storage: str) -> None:
    """`save_views` of every study of a database that pxp-optimize made; others are left as they are.

    Raises:
        UserError: no such database.
    """
    import optuna

    opened = open_storage(storage, must_exist=True)
    for name in optuna.get_all_study_names(opened):
        study = optuna.load_study(study_name=name, storage=opened)
        with contextlib.suppress(UserError):
            check_ours(study)
            save_views(study, storage)


def keep_curve(study: Study, trial: Trial, storage: str) -> None:
    """Keep the picture of a trial's curve with it, beside an SQLite file. Only a trial that has not been told its value
    can be given files."""
    store, drawn = _store(storage), curve_svg(internals.snapshot(study), internals.stored(study, trial))
    if store is not None and drawn is not None:
        _save_file(study, store, CURVE, drawn.encode(), trial)


def _store(storage: str) -> FileSystemArtifactStore | None:
    from optuna.artifacts import FileSystemArtifactStore

    folder = artifact_folder(storage)
    if folder is None:
        return None
    folder.mkdir(exist_ok=True)
    return FileSystemArtifactStore(folder)


def _picture(study: Study, trial: FrozenTrial) -> str | None:
    """The address at which the dashboard shows a trial's curve; None where that was not kept."""
    from optuna.artifacts import get_all_artifact_meta

    kept = get_all_artifact_meta(trial, storage=study._storage)
    name = next((found.artifact_id for found in kept if found.filename == CURVE), None)
    return None if name is None else f"/artifacts/{study._study_id}/{trial._trial_id}/{name}"


def _save_file(
    study: Study, store: FileSystemArtifactStore, name: str, content: bytes, trial: Trial | None = None
) -> str:
    """Keep a file with a study or with one of its trials, in the place of an earlier one of that name; its id."""
    from optuna.artifacts import get_all_artifact_meta, upload_artifact

    whose = study if trial is None else trial
    for found in get_all_artifact_meta(whose, storage=study._storage):
        if found.filename == name:
            store.write(found.artifact_id, io.BytesIO(content))
            return found.artifact_id
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        return upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=whose, storage=study._storage)


WIDE, HIGH, EDGE = 480, 240, 40
"""Of a trial's picture, in pixels: its size, and the margin that holds the numbers."""


def curve_svg(study: Study, trial: FrozenTrial) -> str | None:
    """A trial's curve on the search samples beside the best fixed composite's, as a small picture (SVG); None where it
    has none."""
    rates, accuracy = study.user_attrs["rates"], trial.user_attrs.get("accuracy", [])
    if len(accuracy) != len(rates):
        return None
    width, height = WIDE - 2 * EDGE, HIGH - 2 * EDGE

    def line(values: Iterable[float], colour: str, stroke: float) -> str:
        points = (
            f"{EDGE + width * rate / rates[-1]:.1f},{EDGE + height * (1 - value):.1f}"
            for rate, value in zip(rates, values, strict=True)
        )
        return f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="{stroke}"/>'

    def words(text: str, x: float, y: float, anchor: str, colour: str) -> str:
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'

    def shown(of: FrozenTrial) -> list[list[float]]:
        names = ("least_first", "most_first") if explains(study) else ("accuracy",)
        return [of.user_attrs[name] for name in names]

    look = THEMES["light"]
    fixed = {
        name: other
        for name, other in fixed_trials(study).items()
        if other.values and other.number != trial.number and len(other.user_attrs["accuracy"]) == len(rates)
    }
    parts = [f'<rect width="{WIDE}" height="{HIGH}" fill="{look["paper"]}"/>']
    for value in (0, 0.5, 1):
        y = EDGE + height * (1 - value)
        parts.append(f'<line x1="{EDGE}" x2="{EDGE + width}" y1="{y}" y2="{y}" stroke="{look["grid"]}"/>')
        parts.append(words(f"{value:.0%}", EDGE - 6, y + 4, "end", look["text"]))
    parts += [
        words("0%", EDGE, HIGH - EDGE + 16, "middle", look["text"]),
        words(f"{rates[-1]:.0%} removed", EDGE + width, HIGH - EDGE + 16, "end", look["text"]),
    ]
    parts.append(words(title(trial), EDGE, EDGE - 14, "start", BEST))
    if fixed:
        name = max(fixed, key=lambda name: score_of(fixed[name]))
        parts += [line(values, QUIET, 1.5) for values in shown(fixed[name])]
        parts.append(words(f"{name}, the best fixed so far", EDGE + width, EDGE - 14, "end", look["text"]))
    parts += [line(values, BEST, 2.5) for values in shown(trial)]
    font = escape(FONT, quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDE}" height="{HIGH}" viewBox="0 0 {WIDE} {HIGH}" '
        f'font-family="{font}" font-size="12">{"".join(parts)}</svg>'
    )


def serve(storage: str, host: str, port: int, ready: Callable[[str], object]) -> None:
    """Show a database in a browser, until Ctrl-C.

    port: 0 for any that is free. ready: told the address once it answers.

    Raises:
        UserError: no such database, or the address cannot be had.
    """
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler

    from optuna.artifacts import FileSystemArtifactStore
    from optuna_dashboard import wsgi

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True

    class Quiet(WSGIRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Nothing: a line for each request says nothing to a person."""

    opened = open_storage(storage, must_exist=True)
    folder = artifact_folder(storage)
    store = FileSystemArtifactStore(folder) if folder is not None and folder.is_dir() else None
    try:
        server = make_server(host, port, wsgi(opened, artifact_store=store), Server, Quiet)
    except (OSError, OverflowError) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot listen on {host}:{port} ({text}): give another --port or --host") from error
    with server:
        name = f"[{host}]" if ":" in host else host
        ready(f"http://{name}:{server.server_port}/")
        server.serve_forever()
