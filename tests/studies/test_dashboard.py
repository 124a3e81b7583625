"""Optuna's dashboard over one of our databases, and reports, in a real browser."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from pxp_optimize.studies.best import best_trial
from pxp_optimize.studies.figures.style import THEMES
from pxp_optimize.studies.storage import open_storage

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium installed: apt-get install chromium")


@pytest.fixture(scope="module")
def study(project) -> optuna.Study:
    """A study that the command made, some of its trials stopped early."""
    name = "shown-in-a-browser"
    result = project.run(*project.options, "--trials", "20", "--pruner", "median", "--study", name)
    assert result.returncode == 0, result.stderr
    study = optuna.load_study(study_name=name, storage=open_storage(str(project.folder / "pxp.db")))
    stopped = study.get_trials(states=(TrialState.PRUNED,))
    assert stopped
    assert f"{len(stopped)} stopped early" in result.stderr
    return study


@pytest.fixture(scope="module")
def dashboard(project, study) -> Iterator[str]:
    """The address of a dashboard over the study's database."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    code = "from optuna_dashboard._cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "sqlite:///pxp.db", "--host", "127.0.0.1", "--port", str(port)],
        cwd=project.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            _wait_for(address, server)
            yield address
        finally:
            server.terminate()


def _wait_for(address: str, server: subprocess.Popen) -> None:
    for _ in range(300):
        assert server.poll() is None, "the dashboard ended"
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail("the dashboard did not answer within 30 seconds")


def test_the_dashboard_shows_the_study_and_its_best_value(dashboard, study, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": 1400, "height": 1200})
            page.goto(dashboard)
            name = page.get_by_text(study.study_name).first
            expect(name).to_be_visible(timeout=30_000)
            name.click()
            best = page.get_by_text(str(study.best_value)).first
            expect(best).to_be_visible(timeout=30_000)
            page.screenshot(path=tmp_path / "dashboard.png")
        finally:
            browser.close()
    assert (tmp_path / "dashboard.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def ours(project, study) -> Iterator[str]:
    """The address of a dashboard that the command opened."""
    with project.start("dashboard", "--port", "0") as server:
        try:
            line = server.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+/", line)
            assert found, line or server.stderr.read()
            yield found[0]
        finally:
            server.terminate()


@pytest.fixture
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def listened(page) -> list[str]:
    """What goes wrong on a page, as it does: errors in its console, requests that fail."""
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("response", lambda answer: found.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
    return found


def test_the_dashboard_shows_curves_and_notes(ours, study, browser):
    from playwright.sync_api import expect

    page = browser.new_page(viewport={"width": 1400, "height": 1200})
    problems = listened(page)
    page.goto(f"{ours}dashboard/studies/{study._study_id}")
    for title in (
        "Accuracy on images that the search has not seen",
        "How the search went",
        "The curve of each trial",
    ):
        expect(page.get_by_text(title)).to_be_visible(timeout=30_000)
    expect(page.get_by_text("report.html", exact=True)).to_be_visible(timeout=30_000)
    expect(page.get_by_text("best.json", exact=True)).to_be_visible()
    page.goto(f"{ours}dashboard/studies/{study._study_id}/note")
    best = best_trial(study)
    expect(page.get_by_text(re.compile(rf"The best is trial {best.number}\b"))).to_be_visible(timeout=30_000)
    expect(page.get_by_text(f"best (trial {best.number}")).to_be_visible()
    page.goto(f"{ours}dashboard/studies/{study._study_id}/trials?numbers=1")
    expect(page.get_by_text(re.compile(r"trial 1 \(zplus\), AUC"))).to_be_visible(timeout=30_000)
    picture = page.get_by_alt_text("Accuracy over the part of the units removed")
    expect(picture).to_be_visible()
    page.wait_for_function("image => image.complete", arg=picture.element_handle())
    assert picture.evaluate("image => image.naturalWidth") == 480
    assert problems == []


def test_a_note_of_ones_own_stays(project, study):
    from optuna_dashboard import get_note, save_note
    from pxp_optimize.studies.dashboard import save_views

    storage = str(project.folder / "pxp.db")
    before, artifacts = get_note(study), sorted(path.name for path in (project.folder / "pxp.db.artifacts").iterdir())
    try:
        save_note(study, "my own words")
        save_views(study, storage)
        assert get_note(study) == "my own words"
    finally:
        save_note(study, before)
    save_views(study, storage)
    assert get_note(study) == before
    assert sorted(path.name for path in (project.folder / "pxp.db.artifacts").iterdir()) == artifacts  # in their place


def test_what_cannot_be_saved_for_the_dashboard_ends_no_run(project):
    (project.folder / "b.db.artifacts").write_text("in the way")
    result = project.run(*project.options, "--trials", "5", "--storage", "b.db", "--export", "b.json")
    assert result.returncode == 0, result.stderr
    assert "not saved for the dashboard: FileExistsError" in result.stderr
    assert "best JSON: b.json" in result.stdout


def test_the_dashboard_of_a_port_that_is_taken_is_one_line(project, study):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = project.run("dashboard", "--port", str(taken.getsockname()[1]))
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert "give another --port or --host" in result.stderr
    missing = project.run("dashboard", "--storage", "none.db")
    assert missing.returncode == 2
    assert "no database none.db" in missing.stderr


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_the_report_opens_alone(project, study, browser, width, scheme, tmp_path):
    from playwright.sync_api import expect

    path = tmp_path / "report.html"
    result = project.run("report", "--study", study.study_name, "-o", str(path))
    assert result.returncode == 0, result.stderr
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    problems, requests = listened(page), []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    expect(page.get_by_role("heading", name=study.study_name)).to_be_visible(timeout=30_000)
    expect(page.get_by_text(re.compile(rf"The best is trial {best_trial(study).number}\b"))).to_be_visible()
    expect(page.locator("#holdout .scatterlayer .trace").first).to_be_visible(timeout=30_000)
    shown = page.evaluate("document.getElementById('holdout').data.map(trace => Array.from(trace.y))")
    holdout = study.user_attrs["holdout"][str(best_trial(study).number)]
    assert holdout["accuracy"] in shown
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper = page.evaluate("document.getElementById('holdout')._fullLayout.paper_bgcolor")
    assert paper.lower() == THEMES[scheme]["paper"].lower()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == _rgb(paper)
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert problems == []


def _rgb(colour: str) -> str:
    return "rgb({}, {}, {})".format(*(int(colour[start : start + 2], 16) for start in (1, 3, 5)))
