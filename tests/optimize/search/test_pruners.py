"""The race: who is stopped, who never is, what is kept of it, and that a cut changes nothing."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState
from pxp_optimize.attribution import Composite
from pxp_optimize.optimize.evaluation.evaluate import Evaluation
from pxp_optimize.optimize.evaluation.similarity import pack
from pxp_optimize.optimize.search.loop import run_search
from pxp_optimize.optimize.search.pruners import NONE, PRUNERS, REPORTS, Race, make_pruner, reports_of
from pxp_optimize.optimize.search.samplers import SAMPLERS, is_conditional, make_sampler
from pxp_optimize.optimize.search.space import FIXED, GROUPS, Space
from pxp_optimize.optimize.search.status import count_complete, count_finished, standing
from pxp_optimize.optimize.study.opening import open_study
from pxp_optimize.pruning import Ranking
from pxp_optimize.studies.storage import open_storage

TRIALS = 16
SIZES = (6, 5, 5, 5, 5, 5, 5, 5, 5, 5)
TOTAL = sum(SIZES)


def toy(composite: Composite, stop=None) -> Evaluation:
    """Any value that depends on every detail of the composite, with some noise in each chunk; all differ."""
    digest = hashlib.sha256(json.dumps(composite.to_dict(), sort_keys=True).encode()).digest()
    level = 0.2 + 0.6 * int.from_bytes(digest[:4], "big") / 2**32
    aucs: list[float] = []
    for chunk in range(len(SIZES)):
        aucs.append(level + (digest[chunk] - 128) / 2000)
        if stop is not None and stop(chunk + 1, aucs[-1]):
            break
    samples = sum(SIZES[: len(aucs)])
    auc = sum(size * part for size, part in zip(SIZES, aucs, strict=False)) / samples
    return Evaluation(
        [1.0, auc], auc, {"relevance": 0.1}, digest.hex(), aucs, samples, samples < TOTAL, pack_of(digest)
    )


def pack_of(digest: bytes) -> str:
    """A ranking of 300 units, another one for each digest."""
    order = torch.randperm(300, generator=torch.Generator().manual_seed(int.from_bytes(digest[:4], "big")))
    return pack(Ranking({"a": 300}, order), [0.0, 0.5])


def study_in(path: Path, pruner: str, sampler: str = "tpe", reports: str | None = None) -> optuna.Study:
    attrs = {"reports": reports or REPORTS.get(pruner, "chunk")}
    study = open_study(open_storage(str(path)), "toy", {"model": "toy"}, attrs)
    study.sampler = make_sampler(sampler, 0)
    study.pruner = make_pruner(pruner, len(SIZES))
    return study


def search(
    path: Path, pruner: str, trials: int, evaluate=toy, sampler: str = "tpe", reports: str | None = None, **options
) -> optuna.Study:
    study = study_in(path, pruner, sampler, reports)
    race = Race(SIZES, study.user_attrs["reports"], pruner, grid=sampler == "grid")
    space = Space(GROUPS, conditional=is_conditional(sampler))
    run_search(study, space, evaluate, trials=trials, race=race, **options)
    return study


def record(study: optuna.Study) -> list[tuple]:
    kept = ("composite", "accuracy", "chunks", "samples", "stopped_after")
    return [
        (t.number, t.state, t.value, t.params, t.intermediate_values, *map(t.user_attrs.get, kept))
        for t in study.trials
    ]


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, optuna.Study]:
    """An uninterrupted study by each pruner."""
    folder = tmp_path_factory.mktemp("raced")
    return {name: search(folder / f"{name}.db", name, TRIALS) for name in (*PRUNERS, NONE)}


@pytest.mark.parametrize("name", PRUNERS)
def test_stopped_trials_count_and_keep_what_they_saw(raced, name):
    study = raced[name]
    stopped = study.get_trials(states=(TrialState.PRUNED,))
    assert len(study.trials) == TRIALS == count_finished(study)
    assert count_complete(study) == TRIALS - len(stopped)
    assert 2 <= len(stopped) <= 12
    assert f"{len(stopped)} stopped early" in str(standing(study, TRIALS))
    for trial in stopped:
        whole = toy(Composite.from_dict(trial.user_attrs["composite"]))
        chunk = trial.user_attrs["stopped_after"]
        assert trial.user_attrs["chunks"] == whole.chunks[:chunk]
        assert trial.user_attrs["samples"] == sum(SIZES[:chunk]) < TOTAL
        assert trial.value == trial.user_attrs["accuracy"][1] == trial.intermediate_values[len(SIZES) + 1]
        assert whole.auc < study.best_value


@pytest.mark.parametrize("name", (*PRUNERS, NONE))
def test_complete_trials_have_their_exact_value_and_report_every_chunk(raced, name):
    for trial in raced[name].get_trials(states=(TrialState.COMPLETE,)):
        whole = toy(Composite.from_dict(trial.user_attrs["composite"]))
        assert (trial.value, trial.user_attrs["samples"]) == (whole.auc, TOTAL)
        values = [trial.intermediate_values[step] for step in range(1, len(SIZES) + 1)]
        if REPORTS.get(name) == "mean":
            assert values[0] == pytest.approx(whole.chunks[0])
            assert values[-1] == pytest.approx(whole.auc)
        else:
            assert values == whole.chunks
        assert len(trial.intermediate_values) == len(SIZES)


def test_without_a_pruner_nothing_is_stopped(raced):
    assert {trial.state for trial in raced[NONE].trials} == {TrialState.COMPLETE}


@pytest.mark.parametrize("name", PRUNERS)
def test_fixed_and_queued_trials_are_never_stopped(tmp_path, raced, name):
    bad = [trial.params for trial in raced[name].get_trials(states=(TrialState.PRUNED,))]
    study = search(tmp_path / "a.db", name, 4 + len(bad), queue=bad)
    assert [trial.user_attrs.get("fixed") for trial in study.trials[:4]] == list(FIXED)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert [trial.params for trial in study.trials[4:]] == bad


def test_a_grid_is_raced(tmp_path):
    space = Space(GROUPS, fixed_numbers=True)
    study = study_in(tmp_path / "a.db", "wilcoxon", "grid")
    race = Race(SIZES, "chunk", "wilcoxon", grid=True)
    run_search(study, space, toy, trials=TRIALS, queue=space.grid(0)[:10], race=race)
    assert {trial.state for trial in study.trials[:4]} == {TrialState.COMPLETE}
    assert study.get_trials(states=(TrialState.PRUNED,))


@pytest.mark.parametrize("name", PRUNERS)
def test_a_stop_at_any_moment_loses_nothing(tmp_path, raced, name, monkeypatch):
    """Interrupted before and after each write to the database, one after another."""
    storage = type(raced[name]._storage)
    left = [0]

    def interrupting(method_name):
        method = getattr(storage, method_name)

        def write(self, *arguments, **options):
            for step in ("before", "after"):
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt
                if step == "before":
                    result = method(self, *arguments, **options)
            return result

        monkeypatch.setattr(storage, method_name, write)

    for written in ("create_new_trial", "set_trial_param", "set_trial_state_values", "set_trial_user_attr"):
        interrupting(written)
    interrupting("set_trial_system_attr")
    interrupting("set_trial_intermediate_value")
    path, stops, moment = tmp_path / "a.db", 0, 1
    while True:
        left[0] = moment
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # such as Optuna's of a step that is reported twice
                search(path, name, TRIALS)
            break
        except KeyboardInterrupt:
            stops, moment = stops + 1, moment + 61
    left[0] = 0
    assert stops > 3
    # the name of the study, on which Hyperband's choice hangs, is the same
    assert record(study_in(path, name)) == record(raced[name])


def test_a_trial_like_an_earlier_one_says_so(tmp_path):
    lines: list[str] = []

    def alike(composite, stop=None):
        return replace(toy(composite), steps=pack_of(bytes(4)))

    study = search(tmp_path / "a.db", NONE, 3, alike, watch=lambda now, line: lines.append(line))
    assert [trial.user_attrs.get("like") for trial in study.trials[:3]] == [
        None,
        {"trial": 0, "correlation": 1.0},
        {"trial": 0, "correlation": 1.0},
    ]
    assert lines[1].endswith("like trial 0 (rank correlation 1.0000)")
    assert "like" not in lines[0]


def test_a_stopped_trial_is_told_so(tmp_path, raced):
    lines: list[str] = []
    study = search(tmp_path / "a.db", "wilcoxon", TRIALS, watch=lambda now, line: lines.append(line))
    trial = study.get_trials(states=(TrialState.PRUNED,))[0]
    said = f"trial {trial.number}, stopped at AUC {trial.value:.4f} after {trial.user_attrs['samples']} samples"
    assert lines[trial.number] == said


@pytest.mark.parametrize("name", PRUNERS)
def test_a_study_in_parts_is_the_same(tmp_path, raced, name):
    for trials in (3, 9, 9, TRIALS):
        search(tmp_path / "a.db", name, trials)
    assert record(study_in(tmp_path / "a.db", name)) == record(raced[name])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_goes_on_with_stopped_trials_and_warns_of_nothing(tmp_path, sampler, caplog):
    optuna.logging.enable_propagation()
    try:
        with warnings.catch_warnings(), caplog.at_level(logging.WARNING, logger="optuna"):
            warnings.simplefilter("error")
            study = search(tmp_path / "a.db", "median", 16, sampler=sampler)
    finally:
        optuna.logging.disable_propagation()
    assert study.get_trials(states=(TrialState.PRUNED,))
    assert not [found for found in caplog.records if found.levelno >= logging.WARNING]


def test_a_study_from_before_there_were_races_goes_on(tmp_path):
    """Its best trial has no chunks to compare with; nothing is stopped, nor complained of, until it is beaten."""

    @dataclass
    class Old:
        accuracy: list[float]
        auc: float
        seconds: dict[str, float]
        ranking_hash: str

    path = tmp_path / "a.db"
    run_search(study_in(path, NONE), Space(GROUPS), lambda _: Old([1.0, 0.9], 0.9, {}, "x"), trials=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study = search(path, "wilcoxon", 12)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


@pytest.mark.parametrize("name", PRUNERS)
def test_any_pruner_reads_trials_that_report_for_another(tmp_path, name):
    """A study shows what it showed from its first trial on, and its trials are stopped all the same."""
    stopped = {}
    for reports in ("chunk", "mean"):
        path = tmp_path / f"{reports}.db"
        search(path, NONE, 6, reports=reports)
        study = search(path, name, TRIALS, reports=reports)
        stopped[reports] = [(t.number, t.params, t.user_attrs.get("stopped_after")) for t in study.trials]
        assert study.get_trials(states=(TrialState.PRUNED,))
        for trial in study.trials:
            whole = toy(Composite.from_dict(trial.user_attrs["composite"]))
            expected = whole.chunks[1] if reports == "chunk" else np.average(whole.chunks[:2], weights=SIZES[:2])
            assert 2 not in trial.intermediate_values or trial.intermediate_values[2] == pytest.approx(expected)
    assert stopped["chunk"] == stopped["mean"]


def test_what_a_study_reports(raced):
    assert reports_of(None, "median") == "mean"
    assert reports_of(None, NONE) == reports_of(raced[NONE], "wilcoxon") == reports_of(raced[NONE], "median") == "chunk"
    assert reports_of(raced["median"], "hyperband") == reports_of(raced["median"], "wilcoxon") == "mean"


def test_an_unknown_pruner_is_refused():
    with pytest.raises(KeyError):
        make_pruner("magic", 5)


def test_chunks_that_are_equal_are_no_ties_for_the_test(tmp_path, monkeypatch):
    """With ties SciPy takes seconds for each of some ten chunks."""
    from optuna.pruners import _wilcoxon  # which keeps SciPy's functions for itself

    asked = []

    def watched(differences, *arguments, **options):
        asked.append(differences)
        return original(differences, *arguments, **options)

    def coarse(composite: Composite, stop=None) -> Evaluation:
        found = toy(composite)
        aucs: list[float] = []
        for chunk in range(len(SIZES)):
            aucs.append(round(found.chunks[chunk] * 4) / 4)
            if stop is not None and stop(chunk + 1, aucs[-1]):
                break
        samples = sum(SIZES[: len(aucs)])
        auc = sum(size * part for size, part in zip(SIZES, aucs, strict=False)) / samples
        return replace(found, auc=auc, chunks=aucs, samples=samples, stopped=samples < TOTAL)

    original = _wilcoxon.ss.wilcoxon
    monkeypatch.setattr(_wilcoxon.ss, "wilcoxon", watched)
    study = search(tmp_path / "a.db", "wilcoxon", 20, coarse)
    assert asked
    for differences in asked:
        sizes = sorted(abs(value) for value in differences)
        assert sizes[0] > 0
        assert len(set(sizes)) == len(sizes)
    kept = {value for trial in study.trials for value in list(trial.intermediate_values.values())[: len(SIZES)]}
    assert any(value * 4 == round(value * 4) for value in kept), "what is stored is as it was measured"
