"""Schedule and repair as parameters of a search."""

from __future__ import annotations

import json
from dataclasses import replace

import optuna
import pytest
import torch
from pxp_optimize.attribution import GROUPS, Composite, RuleSpec
from pxp_optimize.optimize.evaluation.candidate import Candidate, Pruning, candidate_of
from pxp_optimize.optimize.evaluation.evaluate import Evaluation, evaluate, mean_evaluation
from pxp_optimize.optimize.evaluation.similarity import pack
from pxp_optimize.optimize.search.loop import run_search
from pxp_optimize.optimize.search.space import FIXED, Space
from pxp_optimize.optimize.study.checkpoint import about_pruned
from pxp_optimize.optimize.study.prepare import Prepared
from pxp_optimize.pruning import Ranking
from pxp_optimize.studies.storage import open_storage

GAMMA = Composite.uniform(RuleSpec("gamma"))
CHOICES = {"schedule": ("every:0.3", "oneshot"), "repair": ("least-squares", "none", "batchnorm")}
LISTS = ("--schedule", "every:0.3,oneshot", "--repair", "least-squares,none,batchnorm")


@pytest.fixture(scope="module")
def prepared(project) -> Prepared:
    return project.prepared(rates=(0.0, 0.3, 0.6), schedule="every:0.3,oneshot", repair="least-squares,none,batchnorm")


@pytest.mark.parametrize("schedule", CHOICES["schedule"])
@pytest.mark.parametrize("repair", CHOICES["repair"])
def test_a_candidate_is_worth_what_a_study_of_its_pruning_says(prepared, project, schedule, repair):
    task = prepared.task
    other = task.pruned_as(Pruning(schedule, repair))
    assert (str(other.schedule), other.repair_name) == (schedule, repair)
    found = evaluate(task, Candidate(GAMMA, Pruning(schedule, repair)))
    alone = replace(other, searched=False, curves={}, plans={}, unpruned={}, variants={})
    expected = evaluate(alone, GAMMA)
    assert found.accuracy == expected.accuracy
    assert found.steps == expected.steps
    assert found.ranking_hash != expected.ranking_hash


def test_one_ranking_with_two_repairs_is_not_taken_for_one_curve(prepared):
    ways = [Candidate(GAMMA, Pruning("oneshot", repair)) for repair in ("none", "least-squares")]
    plain, repaired = (evaluate(prepared.task, way) for way in ways)
    assert plain.steps == repaired.steps
    assert plain.ranking_hash != repaired.ranking_hash
    assert plain.accuracy != repaired.accuracy
    known = prepared.task.curves[prepared.task.measured(prepared.task.search)]
    assert {plain.ranking_hash, repaired.ranking_hash} <= set(known), "what was measured is shared"
    assert mean_evaluation([prepared.task], ways[1]).accuracy == repaired.accuracy


@pytest.mark.parametrize("conditional", [True, False])
def test_a_space_proposes_them_as_parameters(conditional):
    space = Space(GROUPS, conditional, pruning=CHOICES)
    assert {name: space.parameters()[name] for name in CHOICES} == CHOICES
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for trial in [study.ask() for _ in range(30)]:
        composite, pruning = space.suggest(trial), space.suggest_pruning(trial)
        assert pruning == Pruning(trial.params["schedule"], trial.params["repair"])
        if pruning == space.known_pruning():
            given = space.params_of(composite)
            assert given is not None
            assert given.items() <= trial.params.items()
    assert space.known_pruning() == Pruning("every:0.3", "least-squares")
    single = Space(GROUPS, pruning={"schedule": ("oneshot",), "repair": ("none",)})
    assert single.known_pruning() is None
    assert single.parameters() == Space(GROUPS).parameters()
    one = Space(GROUPS, pruning={"schedule": ("oneshot",), "repair": ("none", "batchnorm")})
    assert set(one.parameters()) - set(Space(GROUPS).parameters()) == {"repair"}
    assert one.known_pruning() == Pruning("oneshot", "none")


def test_a_trial_is_said_to_be_like_one_of_the_same_pruning_only():
    steps = pack(Ranking({"a": 4}, torch.arange(4)), [0.0, 0.5])
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    found = Evaluation([1.0, 0.5], 0.75, {}, "alike", [0.75], 1, False, steps)
    run_search(study, Space(GROUPS, pruning=CHOICES), lambda method, *stop: found, trials=20)
    first: dict[Pruning, int] = {}
    for trial in study.trials:
        expected = first.setdefault(candidate_of(trial).pruning, trial.number)
        assert trial.user_attrs.get("like", {}).get("trial", trial.number) == expected
    assert len(first) > 2


def test_from_the_command_line(project):
    own = [*project.options, "--storage", "how.db", "--export", "how.json", "--rates", "0,0.3,0.6", *LISTS]
    result = project.run(*own, "--trials", "16")
    assert result.returncode == 0, result.stderr
    assert "pruning every:0.3 or oneshot, repair least-squares or none or batchnorm" in result.stderr
    (name,) = optuna.get_all_study_names(open_storage(str(project.folder / "how.db")))
    study = optuna.load_study(study_name=name, storage=open_storage(str(project.folder / "how.db")))
    tried = [candidate_of(trial).pruning for trial in study.trials]
    assert tried[:9] == [Pruning("every:0.3", "least-squares")] * 9
    assert len(set(tried)) > 2
    for trial, pruning in zip(study.trials[10:], tried[10:], strict=True):  # the tenth is a known composite
        assert (trial.params["schedule"], trial.params["repair"]) == (pruning.schedule, pruning.repair)

    fixed = [*project.options, "--storage", "fixed.db", "--export", "fixed.json", "--rates", "0,0.3,0.6"]
    fixed += ["--schedule", "every:0.3", "--repair", "least-squares", "--trials", "4"]
    assert project.run(*fixed).returncode == 0
    alone = optuna.load_study(study_name=name, storage=open_storage(str(project.folder / "fixed.db")))
    assert [trial.value for trial in alone.trials] == [trial.value for trial in study.trials[:4]]
    assert "pruning" not in alone.trials[0].user_attrs

    number = next(index for index, pruning in enumerate(tried) if pruning != tried[0])
    export = ["--storage", "how.db", "--trial", str(number)]
    assert project.run("export", *export, "-o", "other.json").returncode == 0
    found = json.loads((project.folder / "other.json").read_text())["pruning"]
    assert (found["schedule"], found["repair"]) == (tried[number].schedule, tried[number].repair)
    written = project.run("prune", *export, "--rate", "0.3", "-o", "other.safetensors")
    assert written.returncode == 0, written.stderr
    about = about_pruned(project.folder / "other.safetensors")
    assert (about["schedule"], about["repair"]) == (tried[number].schedule, tried[number].repair)

    document = json.loads((project.folder / "how.json").read_text())
    best = candidate_of(study.trials[document["result"]["trial"]]).pruning
    assert f"pruning:   {best.schedule}, repair {best.repair} (of the best)" in result.stdout
    compared = project.run("compare", "--storage", "how.db", "--seeds", "1", "--output", "compare-how.json")
    assert compared.returncode == 0, compared.stderr
    used = json.loads((project.folder / "compare-how.json").read_text())["pruning"]
    assert used == {"schedule": best.schedule, "repair": best.repair}

    refused = project.run(*own, "--trials", "17", "--repair", "least-squares")
    assert refused.returncode == 2
    assert "repair: stored least-squares,none,batchnorm, now least-squares" in refused.stderr
    for option, value, problem in (
        ("--schedule", "oneshot,auto", "auto stands alone"),
        ("--repair", "none,none", "names one twice"),
        ("--repair", "none,batch", "'batch' is not auto, none"),
    ):
        wrong = project.run(*own, option, value)
        assert wrong.returncode == 2
        assert problem in wrong.stderr


def test_the_fixed_composites_are_those_of_the_first_choice():
    space = Space(GROUPS, pruning=CHOICES)
    for composite in space.fixed_composites().values():
        params = space.params_of(composite)
        assert params is None or (params["schedule"], params["repair"]) == ("every:0.3", "least-squares")
    assert len(space.fixed_composites()) == len(FIXED)
