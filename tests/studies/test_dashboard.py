"""Optuna's dashboard over one of our databases, in a real browser."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import optuna
import pytest
from optuna.trial import TrialState
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
