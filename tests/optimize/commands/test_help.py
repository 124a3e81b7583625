"""What the command says of itself and of the machine: help, models, doctor, and what a study is about to do."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from pxp_optimize.optimize import doctor as checking
from pxp_optimize.optimize.commands.main import main
from pxp_optimize.optimize.commands.models import units_of
from pxp_optimize.optimize.models import build_model
from pxp_optimize.optimize.options import SECTIONS, Options
from pxp_optimize.optimize.study.run import plan_told
from pxp_optimize.pruning import TraceError, trace


def test_help_is_complete_and_immediate(project):
    result = project.run("--help")
    assert result.returncode == 0
    for option in fields(Options):
        assert f"--{option.name.replace('_', '-')}" in result.stdout
    for command in ("compare", "export", "studies", "models"):
        assert command in result.stdout
    code = "import sys, pxp_optimize.optimize.commands.main; print({'torch', 'optuna', 'rich'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "set()"


def test_models_are_listed(project):
    result = project.run("models")
    assert result.returncode == 0, result.stderr
    listed = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert {"resnet18", "resnet50", "vgg16_bn", "mobilenet_v2"} <= set(listed)
    assert "filters" in listed["resnet18"]


@pytest.mark.parametrize(
    "name",
    [
        *("alexnet", "convnext_tiny", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "resnet18", "vgg11"),
        *("squeezenet1_1", "shufflenet_v2_x0_5", "vit_b_32", "vit_tiny", "swin_t", "maxvit_t"),
    ],
)
def test_listed_units_are_those_of_the_graph(name):
    with torch.device("meta"):
        model = build_model(name)
    try:
        kinds = set(trace(model).kinds.values())
    except TraceError:
        kinds = set()
    assert {kind for kind in units_of(name).split(", ") if kind} == kinds


def test_help_has_a_line_for_each_option_under_its_heading(project):
    shown = project.run("--help").stdout
    assert max(map(len, shown.splitlines())) <= 110
    parts = [shown.index(f"\n{heading}:\n") for heading in ("Examples", "Commands", *SECTIONS)]
    assert parts == sorted(parts)
    lines = shown.splitlines()
    for option in fields(Options):
        name = f"--{option.metadata['alias'] or option.name.replace('_', '-')}"
        (index,) = (
            index
            for index, line in enumerate(lines)
            if line.startswith("  -") and {name, f"{name},"} & set(line.split()[:2])
        )
        following = lines[index + 1]
        assert not following or following.startswith("  -"), following
        if option.type != "bool":
            assert "[default: " in lines[index], lines[index]
        heading = next(line for line in reversed(lines[:index]) if line and not line.startswith(" "))
        assert heading == f"{option.metadata['section']}:"
    whole = " ".join(project.run("run", "--help").stdout.split())
    for option in fields(Options):
        assert option.metadata["help"].split(". ")[-1][:60] in whole


@pytest.mark.parametrize(("filter", "listed"), [("resnet1", 4), ("vgg1*", 8), ("VIT_TI", 1), ("resnet_18", 0)])
def test_models_are_filtered_with_their_sizes(filter, listed, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["models", filter])
    out, err = capsys.readouterr()
    assert ended.value.code == (0 if listed else 2)
    assert len(out.splitlines()) == (1 + listed if listed else 0)
    if not listed:
        assert "nearest: " in err
    for line in out.splitlines()[1:]:
        name, parameters, *_ = line.split()
        with torch.device("meta"):
            counted = sum(value.numel() for value in build_model(name).parameters())
        assert parameters == f"{counted / 1e6:.2f}"


def test_help_is_a_command_too(project):
    for command, option in ((["help"], ["--help"]), (["help", "prune"], ["prune", "--help"])):
        asked, shown = project.run(*command), project.run(*option)
        assert asked.returncode == shown.returncode == 0
        assert asked.stdout == shown.stdout
        assert f" {'prune ' * (len(command) - 1)}[OPTIONS]" in asked.stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("name", "said"), [("comapre", "did you mean compare?"), ("frobnicate", "there are run, report, compare")]
)
def test_a_command_that_is_not_there_is_one_line_with_those_that_are(project, name, said):
    for words in ((name,), ("help", name)):
        result = project.run(*words)
        assert (result.returncode, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert f"no command {name!r}: {said}" in line


def test_doctor_runs_and_names_what_to_mend(project, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    out = capsys.readouterr().out
    assert ended.value.code == 0, out
    for name in ("python", "torch", "torchvision", "zennit", "optuna", "devices", "memory", "cache", "run"):
        assert [line for line in out.splitlines() if line.startswith(f"ok    {name} ")], name
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(checking, "CHECKS", {name: checking.CHECKS[name] for name in ("packages", "cache")})
    monkeypatch.setattr(checking.metadata, "requires", lambda name: ["torch>=99", "no-such-package", "zennit"])
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    out = capsys.readouterr().out
    assert ended.value.code == 1
    for wrong, mended in (
        ("WRONG torch", "pip install 'torch>=99'"),
        ("WRONG no-such-package", "pip install 'no-such-package'"),
        ("WRONG cache", "XDG_CACHE_HOME"),
    ):
        assert wrong in out
        assert f"to mend it: {mended}" in out or mended in out
    assert "ok    zennit" in out


def test_a_check_that_fails_is_a_finding_too(monkeypatch):
    def broken():
        raise OSError("no such library")
        yield

    monkeypatch.setattr(checking, "CHECKS", {"devices": broken})
    (found,) = checking.findings()
    assert found.text == "OSError: no such library"
    assert found.fix == checking.FIXES["devices"]
    assert checking.FIXES.keys() == {"packages", "extras", "devices", "memory", "cache", "run"}


@pytest.mark.parametrize(
    ("done", "trials", "told"),
    [
        (0, 20, "20 trials: 10 known composites, then TPE"),
        (0, 10, "10 trials: known composites only (TPE begins after 10)"),
        (4, 20, "continues, 4 of 20 trials finished: 6 known composites, then TPE"),
        (12, 20, "continues, 12 of 20 trials finished, now by TPE"),
        (20, 20, "continues, 20 of 20 trials finished"),
    ],
)
def test_the_plan_is_told(done, trials, told):
    assert plan_told(done, trials, 10, "tpe") == told
