"""The site is built without a warning, opens in a browser, and has a page for each registry."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-d",
        folder / "trees",
        DOCS,
        folder / "html",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "html"


def test_every_page_is_built(site: Path) -> None:
    pages = {path.relative_to(DOCS).with_suffix("") for path in DOCS.rglob("*.md")}
    assert pages and all((site / f"{page}.html").stat().st_size > 1000 for page in pages)


def test_the_reference_is_that_of_the_code(site: Path) -> None:
    from pxp_optimize import optimize
    from pxp_optimize.optimize.commands.main import main

    python, commands = ((site / f"{name}.html").read_text() for name in ("api", "commands"))
    assert all(f'id="pxp_optimize.optimize.{name}"' in python for name in optimize.__all__)
    for command in (main, *main.commands.values()):
        for option in command.params:
            assert all(flag in commands for flag in option.opts if flag.startswith("--")), option.name


def kinds() -> Iterator[str]:
    """What pieces of each registry of the sources are called."""
    for folder in ("attribution", "pruning", "studies", "optimize"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Registry":
                    yield ast.literal_eval(node.args[0])


@pytest.mark.skipif(not (ROOT / "pruning").is_dir(), reason="the sources are not beside the tests")
def test_each_registry_has_a_page_with_code() -> None:
    found = {*kinds(), "operation"}  # whose table is of operations of ATen
    assert len(found) >= 8
    for kind in found:
        page = DOCS / "extending" / f"{kind.replace(' ', '')}.md"
        assert re.search(r"^```python$", page.read_text(), re.MULTILINE), page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium installed: apt-get install chromium")
def test_the_start_page_opens_alone(site: Path) -> None:
    """Wide and narrow, light and dark: nothing is wider than the page, asked of a server, or missing."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for width, scheme in ((1280, "light"), (375, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            problems: list[str] = []
            requests: list[str] = []
            page.on("console", lambda message, found=problems: message.type == "error" and found.append(message.text))
            page.on("requestfailed", lambda request, found=problems: found.append(request.url))
            page.on("request", lambda request, found=requests: found.append(request.url))
            for name in ("index", "start", "lrp"):
                page.goto((site / f"{name}.html").as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
            assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
            assert problems == []
        browser.close()
