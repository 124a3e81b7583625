"""What stands on the pages and in the README holds: code runs, commands parse, links lead somewhere, keys are known."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import optuna
import pytest
import torch
from pxp_optimize.attribution.composites import DOCUMENT_KEYS, RANKING_KEYS
from pxp_optimize.optimize import Objective, optimize
from pxp_optimize.optimize.commands.main import main
from pxp_optimize.pruning import Registry
from pxp_optimize.pruning.operations import MODULES, TARGETS
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = re.compile(r"^<!-- not run: .*? -->\n+```python\n.*?^```$", re.MULTILINE | re.DOTALL)
"""A block that the comment before it gives a reason for: it needs what the suite does not have."""
BLOCK = re.compile(r"^```python\n(.*?)^```$|^<!-- setup\n(.*?)^-->$", re.MULTILINE | re.DOTALL)
CODE = {page: ["".join(found) for found in BLOCK.findall(NOT_RUN.sub("", page.read_text()))] for page in PAGES}
SEARCHES = re.compile(r"\b(trials|n_trials)=\d+")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def registries() -> Iterator[None]:
    """What a page registers is gone after it."""
    modules = [module for name, module in sys.modules.items() if name.startswith("pxp_optimize.")]
    found = {id(value): value for module in modules for value in vars(module).values() if isinstance(value, Registry)}
    tables: list[dict] = [*(registry._pieces for registry in found.values()), TARGETS, MODULES]
    assert len(tables) >= 9
    before = [dict(table) for table in tables]
    yield
    for table, pieces in zip(tables, before, strict=True):
        table.clear()
        table.update(pieces)


def small() -> dict[str, Any]:
    """What the code on a page may use: a network, images, loaders."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    inputs, targets = torch.randn(12, 3, 10, 10), torch.arange(12) % 3
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=6)
    data = {"inputs": inputs, "targets": targets, "data": (inputs, targets)}
    return {"model": model, "train_loader": loader, "val_loader": loader, **data}


@pytest.mark.parametrize("page", [page for page in PAGES if CODE[page]], ids=name_of)
def test_code_on_pages_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registries: None) -> None:
    """All blocks of a page, one after the other, with what a comment `<!-- setup` prepares; searches are cut short."""
    monkeypatch.chdir(tmp_path)
    names = small()
    for number, code in enumerate(CODE[page], 1):
        trials = 12 if "sampler" in code else 4
        short = SEARCHES.sub(rf"\1={trials}", code)
        exec(compile(short, f"{name_of(page)}, block {number}", "exec"), names)


def test_code_is_found() -> None:
    assert sum(map(len, CODE.values())) >= 15 and CODE[ROOT / "README.md"]


def commands(text: str) -> Iterator[list[str]]:
    """Calls of the command in blocks and between backticks."""
    blocks = re.findall(r"^```(?:text|bash)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    for line in lines:
        for part in line.split("&&"):
            if re.match(r"pxp-optimize(\s|$)", part.strip()):
                yield shlex.split(part, comments=True)[1:]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_on_pages_are_ones_that_there_are(page: Path) -> None:
    for words in commands(page.read_text()):
        command: click.Command = main
        while words:
            _, words, _ = command.make_parser(click.Context(command)).parse_args(list(words))
            if words:
                assert isinstance(command, click.Group) and words[0] in command.commands, (command.name, words)
                command, words = command.commands[words[0]], words[1:]


def test_commands_are_found() -> None:
    assert ["--model", "resnet18", "--trials", "20"] in list(commands((ROOT / "README.md").read_text()))


def test_the_readme_is_short_and_leads_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    for name in ("run", "test"):
        assert re.search(rf"^<!-- {name} -->\n```\n.*\S.*\n```$", text, re.MULTILINE)
    links = re.findall(r"\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    local = [path for pair in links for path in pair if path and not path.startswith("http")]
    assert len(local) > 15
    for path in local:
        assert (ROOT / path).exists(), path


def paths(document: dict[str, Any], above: str = "") -> Iterator[str]:
    """The path of each key that the format names: not those that are names of groups, layers and costs."""
    for key, value in document.items():
        yield above + key
        if key in ("groups", "layers"):
            yield from {name for rule in value.values() for name in rule}
        elif isinstance(value, dict) and key not in ("seconds", "saved", "search_best"):
            yield from paths(value, f"{above}{key}.")


def test_every_key_of_best_json_is_on_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known = set(re.findall(r"`([\w.]+)`", (ROOT / "docs" / "json.md").read_text()))
    names = small()
    given = {"reference": names["data"], "search": names["data"], "quiet": True}
    plain = {"rates": [0, 0.5], "trials": 5}
    once = {**plain, "schedule": "oneshot", "repair": "none", "trials": 4}
    found = {*DOCUMENT_KEYS[:1], *(f"ranking.{key}" for key in RANKING_KEYS)}
    maps = {"trials": 4, "regions": 5}
    for objective, how in (("auc", plain), ("macs", once), ("auc,params", once), ("faithfulness", maps)):
        result = optimize(names["model"], **given, **how, objective=objective, study=objective)
        result.export("best.json")
        found |= {*paths(json.loads(Path("best.json").read_text()))}
    assert {"result.area", "result.area_over_params", "result.saved", "pruning.repair", "epsilon"} <= found
    assert {key for key in found if key not in known and key not in DOCUMENT_KEYS} == set()
    assert set(DOCUMENT_KEYS) <= {key.partition(".")[0] for key in known}
    own = Objective(names["model"], **given, rates=[0, 0.5])
    study = optuna.create_study(direction="maximize")
    study.optimize(own, n_trials=1)
    own.export(study.best_trial, "own.json")
    assert {*paths(json.loads(Path("own.json").read_text()))} <= known | set(DOCUMENT_KEYS)
