"""The command as a person runs it: real processes, a real database, a network and images of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import fields

import optuna
import pytest
from optuna.trial import TrialState
from pxp_optimize.attribution import Composite, load_composite
from pxp_optimize.optimize.options import Options
from pxp_optimize.pruning import auc
from pxp_optimize.studies.best import best_trial
from pxp_optimize.studies.storage import open_storage

NAME = "network:small-images-filters"
REACH = 20
"""Trials of a study that is cut off in between: enough that it is not done before the signal comes."""


def load(project, database: str = "pxp.db", name: str = NAME) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=open_storage(str(project.folder / database)))


def values(study: optuna.Study) -> list[tuple]:
    return [(trial.number, trial.params, trial.value, trial.user_attrs["accuracy"]) for trial in study.trials]


@pytest.fixture(scope="module")
def first_run(project) -> subprocess.CompletedProcess[str]:
    """Six trials with the default database and file names."""
    result = project.run(*project.options, "--trials", "6")
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def uninterrupted(project) -> str:
    """The database of a study of `REACH` trials in one go."""
    result = project.run(*project.options, "--trials", str(REACH), "--storage", "whole.db", "--export", "whole.json")
    assert result.returncode == 0, result.stderr
    return "whole.db"


def test_a_run_says_what_it_uses_and_what_came_out(project, first_run):
    study = load(project)
    best = best_trial(study)
    assert "weights.pt" in first_run.stderr
    assert "images, 3 classes at 16 x 16" in first_run.stderr
    assert "6 of 6 trials: trial " in first_run.stderr
    out = first_run.stdout
    for name in ("epsilon", "zplus", "alpha2-beta1", "gamma0.25", f"best (trial {best.number}"):
        assert name in out
    row = next(line for line in out.splitlines() if line.startswith("best (trial"))
    holdout = study.user_attrs["holdout"][str(best.number)]
    assert f"{best.value:.4f}" in row
    assert f"{holdout['auc']:.4f}" in row
    assert f"{best.user_attrs['accuracy'][0]:.1%} on search samples" in out
    assert f"database:  pxp.db, study {NAME}" in out
    assert "pxp-optimize dashboard --storage sqlite:///pxp.db" in out
    assert "best.json" in out
    assert "\x1b" not in first_run.stderr + out  # no terminal codes in a file


def test_the_database_holds_everything_about_the_study(project, first_run):
    study = load(project)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 6
    assert study.user_attrs["rates"] == [0.0, 0.3, 0.6, 0.9]
    assert study.user_attrs["config"]["trials"] == 6
    assert set(study.user_attrs["config"]) == {option.name for option in fields(Options)}
    assert study.user_attrs["fingerprint"]["units"] == "filters"
    for trial in study.trials:
        assert len(trial.user_attrs["accuracy"]) == 4
        assert set(trial.user_attrs["seconds"]) >= {"relevance", "evaluation"}
        assert trial.value == pytest.approx(auc(study.user_attrs["rates"], trial.user_attrs["accuracy"]))
        Composite.from_dict(trial.user_attrs["composite"])
    with sqlite3.connect(project.folder / "pxp.db") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_best_composite_is_left_as_json(project, first_run):
    study = load(project)
    document = json.loads((project.folder / "best.json").read_text())
    best = best_trial(study)
    assert document["result"]["trial"] == best.number
    assert document["result"]["auc"] == best.value
    assert document["result"]["holdout_auc"] == study.user_attrs["holdout"][str(best.number)]["auc"]
    stored = Composite.from_dict(best.user_attrs["composite"])
    loaded = load_composite(project.folder / "best.json")
    assert (loaded.groups, loaded.aggregation, loaded.normalization) == (
        stored.groups,
        stored.aggregation,
        stored.normalization,
    )
    assert set(loaded.layers) == set(study.user_attrs["layers"])


def test_the_same_command_continues_and_repeats(project, first_run, uninterrupted):
    before = values(load(project))
    again = project.run(*project.options, "--trials", str(REACH))
    assert again.returncode == 0, again.stderr
    assert f"continues, 6 of {REACH} trials finished" in again.stderr
    after = values(load(project))
    assert after[:6] == before
    assert len(after) == REACH
    assert values(load(project, uninterrupted)) == after


def test_a_study_that_is_done_only_reports(project, first_run):
    before = values(load(project))
    again = project.run(*project.options, "--trials", "6", "-q")
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""
    assert "best (trial" in again.stdout
    assert values(load(project)) == before


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_stopped_goes_on(project, uninterrupted, how):
    database = f"{how.name}.db"
    command = [*project.options, "--storage", database, "--export", f"{how.name}.json", "--trials", str(REACH)]

    def stop(process: int) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                if len(load(project, database).get_trials(states=(TrialState.COMPLETE,))) >= 2:
                    break
            except Exception:  # not there yet
                pass
            time.sleep(0.02)
        os.kill(process, how)

    cut = project.run(*command, meanwhile=stop)
    stopped = values_of_complete(load(project, database))
    assert 2 <= len(stopped) < REACH
    if how == signal.SIGINT:
        assert cut.returncode == 130
        assert f"Stopped after {len(stopped)} of {REACH} trials." in cut.stderr
        assert "Traceback" not in cut.stderr
        assert load(project, database).user_attrs["phases"]["trials"]["processor"] > 0
    resumed = project.run(*command)
    assert resumed.returncode == 0, resumed.stderr
    assert values(load(project, database)) == values(load(project, uninterrupted))
    assert values(load(project, database))[: len(stopped)] == stopped
    ended, whole = (load(project, name).user_attrs for name in (database, uninterrupted))
    for key in ("holdout", "rescored", "plain"):
        assert ended[key] == whole[key]


def values_of_complete(study: optuna.Study) -> list[tuple]:
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    return [(trial.number, trial.params, trial.value, trial.user_attrs["accuracy"]) for trial in complete]


def test_options_come_from_a_file_and_the_command_line_wins(project, first_run):
    config = project.folder / "run.toml"
    config.write_text(
        'model = "network:small"\nweights = "weights.pt"\ndata = "images"\nimage-size = 16\ndevice = "cpu"\n'
        'mean = 0.5\nstd = [0.25]\nrates = [0, 0.9]\nstudy = "file"\ntrials = 9\nquiet = true\n'
        'export = "file.json"\nclasses = ["red", 0]\n'
    )
    result = project.run("--config", "run.toml", "--trials", "4")
    assert (result.returncode, result.stderr) == (0, "")
    study = load(project, name="file")
    assert len(study.trials) == 4
    assert study.user_attrs["rates"] == [0.0, 0.9]
    assert study.user_attrs["fingerprint"]["classes"] == ["blue", "red"]


def test_samples_beyond_the_memory_for_them_give_the_same_study(project, first_run):
    arguments = ["--sample-memory", "0", "--storage", "stored.db", "--export", "stored.json", "--trials", "6"]
    result = project.run(*project.options, *arguments)
    assert result.returncode == 0, result.stderr
    assert "on disk" in result.stderr
    stored, kept = load(project, "stored.db"), load(project)
    assert values(stored) == values(kept)[:6]
    assert stored.user_attrs["fingerprint"] == kept.user_attrs["fingerprint"]
    assert not [path for path in (project.folder / "cache").rglob("*") if path.is_file()]


def test_studies_are_listed(project, first_run):
    result = project.run("studies")
    assert result.returncode == 0, result.stderr
    row = next(line for line in result.stdout.splitlines() if line.startswith(NAME))
    study = load(project)
    for part in ("network:small", "images", "filters", f"{len(study.trials)} of {len(study.trials)}"):
        assert part in row
    assert f"{study.best_value:.4f}" in row


def test_export_gives_any_trial_without_the_model(project, first_run):
    study = load(project)
    hidden = (project.folder / "network.py").rename(project.folder / "hidden")
    best = project.run("export", "--study", NAME, "-o", "again.json")
    one = project.run("export", "--study", NAME, "--trial", "1", "-o", "one.json")
    hidden.rename(project.folder / "network.py")
    for result, name, number in ((best, "again.json", best_trial(study).number), (one, "one.json", 1)):
        assert result.returncode == 0, result.stderr
        document = json.loads((project.folder / name).read_text())
        assert document["result"]["trial"] == number
        assert document["result"]["auc"] == study.trials[number].value
        assert set(document["layers"]) == set(study.user_attrs["layers"])
    assert {spec["rule"] for spec in document["layers"].values()} == {"zplus"}


LONG = "x" * 300
BAD = {
    "unknown model": (["--model", "resnet81"], "resnet18"),
    "no data": (["--data", "none"], "none"),
    "malformed rates": (["--rates", "0:1"], "start:stop:step"),
    "rates up to one": (["--rates", "0,1"], "reaches 1"),
    "no number": (["--trials", "many"], "not a whole number"),
    "unknown sampler": (["--sampler", "magic"], "tpe"),
    "unknown option": (["--modle", "x"], "--model"),
    "unknown command": (["exprot"], "exprot"),
    "storage is no database": (["--storage", "network.py"], "not an SQLite database"),
    "storage is a folder": (["--storage", "images"], "is not a file"),
    "storage in no folder": (["--storage", "none/a.db"], "no folder"),
    "storage that cannot be written": (["--storage", "sqlite:////proc/a.db"], "/proc/a.db"),
    "export into no folder": (["--export", "none/best.json"], "no folder"),
    "export to a folder": (["--export", "images"], "is a folder"),
    "export over the database": (["--export", "pxp.db"], "pxp.db is the database of the studies"),
    "no config": (["--config", "none.toml"], "none.toml"),
    "precision of other devices": (["--precision", "tf32"], "cpu has no TF32"),
    "other precision": (["--precision", "bf16", "--trials", "9"], "precision: stored fp32, now bf16"),
    "other settings": (["--rates", "0,0.5", "--trials", "9"], "rates: stored"),
    "too long a name to export to": (["--export", LONG], "File name too long"),
    "too long a name of a database": (["--storage", LONG], "File name too long"),
    "too long a name of a folder": (["--data", LONG], "File name too long"),
    "a name that is no text": (["--export", os.fsdecode(b"\xff.json")], "is not UTF-8"),
    "a malformed URL": (["--storage", "postgresql://host:port/db"], "is no URL"),
    "a question mark": (["--storage", "what?.db"], "path without ?"),
    "images for no repair": (["--repair", "none", "--repair-samples", "20"], "--repair none reads no images"),
    "a seed of 400 digits": (["--seed", "9" * 400], "too large"),
    "a rate of 400 digits": (["--rates", "0," + "9" * 400], "not made of numbers"),
    "a module that exits": (["--model", "leaving:build"], "SystemExit"),
    "quotes that do not end": (["--classes", '"a,b'], "is no list"),
    "a file that is nested too deeply": (["--config", "deep.toml"], "deep.toml is not TOML"),
    "a composite that is nested too deeply": (["--from", "deep.json"], "nested too deeply"),
}


def test_a_name_that_the_locale_does_not_have(project, monkeypatch):
    for name, value in {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}.items():
        monkeypatch.setenv(name, value)
    with project.start("studies", "--storage", "größe.db") as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "set LC_ALL=C.UTF-8" in error
    assert len(error.splitlines()) == 1


def test_a_configuration_stands_after_a_command(project):
    (project.folder / "of.toml").write_text('storage = "of.db"\n')
    result = project.run("--config", "of.toml", "studies")
    assert result.returncode == 2
    assert result.stderr.startswith("Error: --config stands before studies")


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_touches_nothing(project, first_run, case):
    arguments, named = BAD[case]
    (project.folder / "leaving.py").write_text("raise SystemExit(0)\n")
    (project.folder / "deep.toml").write_text("trials = " + "[" * 100_000)
    (project.folder / "deep.json").write_text("[" * 100_000)
    before = project.files()
    result = project.run(*project.options, *arguments)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert named in lines[0]
    assert project.files() == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["export", "--study", "none"], "no study 'none'"),
        (["export", "--study", NAME, "--trial", "99"], "no trial 99"),
        (["export", "--storage", "none.db"], "no database none.db"),
        (["studies", "--storage", "none.db"], "no database none.db"),
        (["studies", "--storage", "weights.pt"], "not an SQLite database"),
        (["export", "--trial", "x"], "--trial"),
        (["export", "-o", LONG], "File name too long"),
        (["compare", "--output", "one.json", "--csv", "./one.json"], "give two files"),
    ],
)
def test_bad_input_of_the_other_commands(project, first_run, arguments, named):
    result = project.run(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert named in result.stderr
    assert not (project.folder / "none.db").exists()


def test_names_are_shown_as_they_are(project):
    """Square brackets are markup to what draws the tables."""
    arguments = [*project.options, "--storage", "[bold]a.db", "--export", "[red].json", "--study", "my [i]study[/i]"]
    result = project.run(*arguments, "--trials", "5", "--from", "best [1].json")
    assert result.returncode == 2
    groups = {group: {"rule": "gamma", "gamma": 0.7} for group in ("low", "mid", "high", "classifier")}
    (project.folder / "best [1].json").write_text(json.dumps({"groups": groups}))
    result = project.run(*arguments, "--trials", "6", "--from", "best [1].json")
    assert result.returncode == 0, result.stderr
    assert "study my [i]study[/i]" in result.stdout
    assert "[bold]a.db" in result.stdout
    listed = project.run("studies", "--storage", "[bold]a.db")
    assert "my [i]study[/i]" in listed.stdout


def test_the_printed_command_opens_the_database_from_a_shell(project, first_run):
    """A space ends a word there, and a # begins a comment."""
    database = project.folder / "my studies" / "#1 'best'.db"
    database.parent.mkdir()
    shutil.copy(project.folder / "pxp.db", database)
    path = "my studies/#1 'best'.db"
    result = project.run(*project.options, "--trials", "6", "--storage", path, "--export", "quoted.json")
    assert result.returncode == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if line.startswith("dashboard:"))
    command = line.partition(":")[2].replace("pxp-optimize dashboard --storage", "printf '%s\\n'")
    words = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout.splitlines()
    assert words == [path]


def test_trials_of_other_programs_are_named_not_stumbled_over(project, first_run):
    copy = project.folder / "foreign.db"
    shutil.copy(project.folder / "pxp.db", copy)
    study = optuna.load_study(study_name=NAME, storage=open_storage(str(copy)))
    study.add_trial(optuna.trial.create_trial(value=0.99, params={}, distributions={}))
    runs = {
        "run": [*project.options, "--storage", "foreign.db", "--export", "foreign.json", "--trials", "99"],
        "export": ["export", "--study", NAME, "--storage", "foreign.db", "-o", "foreign.json"],
        "compare": ["compare", "--study", NAME, "--storage", "foreign.db"],
        "prune": ["prune", "--study", NAME, "--storage", "foreign.db"],
    }
    for arguments in runs.values():
        result = project.run(*arguments)
        assert (result.returncode, result.stdout) == (2, ""), result.stderr
        assert "was not made by pxp-optimize" in result.stderr.splitlines()[-1]
    assert project.run("studies", "--storage", "foreign.db").returncode == 0


def test_a_grid_ends_when_all_is_tried(project):
    (project.folder / "two.toml").write_text('[parts."*"]\nrules = ["zplus", "alpha_beta"]\nalpha = 2\n')
    arguments = ["--sampler", "grid", "--space", "two.toml", "--storage", "grid.db", "--export", "grid.json"]
    result = project.run(*project.options, *arguments, "--trials", "50")
    assert result.returncode == 0, result.stderr
    assert "composites are tried: fewer than --trials 50" in result.stderr


def test_a_study_from_before_there_were_precisions_goes_on(project):
    arguments = [*project.options, "--storage", "older.db", "--export", "older.json"]
    assert project.run(*arguments, "--trials", "4").returncode == 0
    study = load(project, "older.db")
    mark = study.user_attrs["fingerprint"]
    assert mark.pop("precision") == "fp32"
    study.set_user_attr("fingerprint", mark)
    again = project.run(*arguments, "--trials", "5")
    assert again.returncode == 0, again.stderr
    assert len(load(project, "older.db").trials) == 5


def test_a_run_in_bf16(project):
    arguments = [*project.options, "--storage", "coarse.db", "--export", "coarse.json", "--precision", "bf16"]
    result = project.run(*arguments, "--trials", "4")
    assert result.returncode == 0, result.stderr
    assert "accuracies in bf16" in result.stderr
    assert load(project, "coarse.db").user_attrs["fingerprint"]["precision"] == "bf16"
    again = project.run(*project.options, "--storage", "coarse.db", "--export", "coarse.json", "--trials", "5")
    assert again.returncode == 2
    assert "precision: stored bf16, now fp32" in again.stderr


def test_a_traceback_is_shown_on_demand(project):
    result = project.run(*project.options, "--data", "none", "-v")
    assert result.returncode == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")


@pytest.mark.skipif(os.name != "posix", reason="a terminal of its own for the command")
@pytest.mark.parametrize("arguments", [[], ["compare"], ["prune"]])
def test_a_terminal_shows_a_sign_of_life_before_torch_is_there(project, first_run, arguments):
    """With a torch that never comes: what is shown is shown before it is imported."""
    (project.folder / "slow").mkdir(exist_ok=True)
    (project.folder / "slow" / "torch.py").write_text("import time\ntime.sleep(600)\n")
    seen = on_terminal(project, [*arguments], until="loading PyTorch ...", path="slow")
    assert "loading PyTorch ..." in seen
    assert "Traceback" not in seen


@pytest.mark.skipif(os.name != "posix", reason="a terminal of its own for the command")
def test_on_a_terminal_too_an_error_is_what_is_left(project, first_run):
    seen = on_terminal(project, [*project.options, "--data", "none"])
    said, _, rest = seen.rpartition("loading PyTorch ...")
    assert said
    erased, _, error = rest.partition("Error: ")
    assert "\x1b[2K" in erased
    assert error.startswith("--data none: no such folder")
    assert len(error.splitlines()) == 1


def on_terminal(project, arguments: list[str], until: str | None = None, path: str = ".") -> str:
    """What the command shows on a terminal, to its end or until this is seen."""
    import pty

    ours, its = pty.openpty()
    environment = {"TERM": "xterm", "COLUMNS": "160", "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": "cache"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pxp_optimize.optimize.commands.main", *arguments],
        cwd=project.folder,
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join([path, os.environ.get("PYTHONPATH", "")])},
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    seen = b""
    try:
        while until is None or until.encode() not in seen:
            part = os.read(ours, 1024)
            seen += part
            if not part:
                break
    except OSError:  # Linux's way to say that it has ended
        pass
    finally:
        process.kill() if until is not None else process.wait(timeout=60)
        process.wait()
        os.close(ours)
    return seen.decode()


@pytest.mark.parametrize("units", ["heads", "neurons", "heads+neurons"])
def test_a_transformer_of_ones_own(project, units):
    name = units.replace("+", "-")
    arguments = [
        *("--model", "network:transformer", "--data", "images", "--device", "cpu", "--units", units),
        *("--image-size", "16", "--rates", "0,0.5,0.9", "--trials", "5", "--search-samples", "9"),
        *("--holdout-samples", "9", "--storage", f"{name}.db", "--export", f"{name}.json"),
    ]
    result = project.run(*arguments)
    assert result.returncode == 0, result.stderr
    assert "repair least-squares" in result.stderr
    document = json.loads((project.folder / f"{name}.json").read_text())
    assert document["units"] == units
    assert document["pruning"] == {"schedule": "every:0.1", "repair": "least-squares"}
    assert set(document["groups"]) == {
        *(f"{group}.{kind}" for group in ("low", "mid", "high") for kind in ("attention", "mlp")),
        "classifier",
    }
    assert len(document["layers"]) == 4 * 6 + 1
    composite = load_composite(document)
    assert composite.softmax in ("attnlrp", "zplus", "zplus_bias", "cp")
    again = project.run(*arguments)
    assert again.returncode == 0, again.stderr
    assert "5 of 5 trials finished" in again.stderr


def test_run_is_the_name_of_the_main_job(project, first_run):
    named = project.run("run", *project.options, "--trials", "6", "-q", "--export", "named.json")
    assert (named.returncode, named.stderr) == (0, "")
    assert "best (trial" in named.stdout
    refused = project.run("run", "--modle", "x")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)


def test_a_study_goes_on_by_its_name_alone(project, first_run, uninterrupted):
    shutil.copy(project.folder / "pxp.db", project.folder / "named.db")
    where = ["--study", NAME, "--storage", "named.db"]
    before = project.files()
    before[".named.db.lock"] = b""  # which keeps processes apart, and is made when a study is looked for
    for refused, named in (
        (["--rates", "0,0.5"], "rates: stored"),
        (["--units", "neurons"], "neurons"),
        (["--reference-samples", "5"], "samples"),
    ):
        result = project.run("-q", *where, *refused, "--trials", "9")
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
        assert named in result.stderr
    assert project.files() == before
    ahead = min(REACH, len(load(project, "named.db").trials) + 8)
    result = project.run(*where, "--trials", str(ahead))
    assert result.returncode == 0, result.stderr
    assert f"of {ahead} trials finished" in result.stderr
    assert values(load(project, "named.db")) == values(load(project, uninterrupted))[:ahead]
    config, first = (load(project, name).user_attrs["config"] for name in ("named.db", "pxp.db"))
    stood_for = {key: load(project).user_attrs["fingerprint"][key] for key in ("units", "schedule", "repair")}
    how = {key: config[key] for key in ("storage", "quiet")}
    assert config == {**first, **stood_for, **how, "trials": ahead, "study": NAME}  # no `auto`
    fresh = project.run("--study", "another", "--storage", "named.db", *project.options, "--trials", "4", "-q")
    assert (fresh.returncode, fresh.stderr) == (0, "")  # a name that is not there is a new study's
