"""Trials that are a mean over several draws of the reference images."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pxp_optimize.attribution import Composite, RuleSpec
from pxp_optimize.optimize.data.sampling import unlabelled
from pxp_optimize.optimize.evaluation.evaluate import evaluate, mean_evaluation
from pxp_optimize.optimize.study.prepare import Prepared
from pxp_optimize.optimize.study.resampling import (
    NONE_SHARED,
    other_reference,
    own_reference,
    sharing,
    tasks_of,
    with_reference,
)
from pxp_optimize.studies.errors import UserError

GAMMA = Composite.uniform(RuleSpec("gamma"))


@pytest.fixture(scope="module")
def prepared(project) -> Prepared:
    return project.prepared(rates=(0.0, 0.3, 0.6), reference_samples=3)


def test_a_trial_is_the_mean_over_its_draws(prepared):
    tasks = tasks_of(prepared, 3)
    assert tasks[0] is prepared.task
    parts = [evaluate(task, GAMMA, task.holdout) for task in tasks]
    assert len({part.ranking_hash for part in parts}) > 1, "draws that agree could hide anything"
    found = mean_evaluation(tasks, GAMMA, prepared.task.holdout)
    assert found.auc == pytest.approx(sum(part.auc for part in parts) / 3)
    for at_rate, *of_parts in zip(found.accuracy, *(part.accuracy for part in parts), strict=True):
        assert at_rate == pytest.approx(sum(of_parts) / 3)
    assert found.ranking_hash == mean_evaluation(tasks, GAMMA).ranking_hash
    assert found.ranking_hash not in {part.ranking_hash for part in parts}
    assert found.ranking_hash != mean_evaluation(tasks[:2], GAMMA).ranking_hash
    assert not found.stopped
    assert mean_evaluation(tasks[:1], GAMMA, prepared.task.holdout).accuracy == parts[0].accuracy


def test_the_draws_are_those_of_their_numbers(prepared):
    for number, task in enumerate(tasks_of(prepared, 3)[1:], 1):
        again = with_reference(prepared, number)
        assert task.reference.inputs.pixels.equal(again.reference.inputs.pixels)
        assert not task.reference.inputs.pixels.equal(prepared.task.reference.inputs.pixels)
        assert task.search is prepared.task.search


def test_from_the_command_line(project):
    own = [*project.options, "--draws", "2", "--storage", "draws.db", "--export", "draws.json", "--trials", "5"]
    result = project.run(*own)
    assert result.returncode == 0, result.stderr
    assert "in each of 2 draws" in result.stderr
    document = json.loads((project.folder / "draws.json").read_text())
    assert document["result"]["draws"] == 2
    refused = project.run(*own, "--draws", "1")
    assert refused.returncode == 2
    assert "draws: stored 2, now 1" in refused.stderr
    raced = project.run(*own, "--pruner", "wilcoxon")
    assert raced.returncode == 2
    assert "--draws 1" in raced.stderr
    assert len(raced.stderr.strip().splitlines()) == 1
    again = project.run(*own)  # nothing is left to do
    assert again.returncode == 0
    assert again.stdout == result.stdout


@pytest.mark.parametrize(
    ("reference_samples", "draws", "said"),
    [(4, 2, NONE_SHARED), (4, 1, NONE_SHARED), (5, 2, "60% of them the study's own"), (12, 1, "100% of them")],
)
def test_what_other_draws_share_with_the_study_is_said(project, reference_samples, draws, said):
    """Each class has 12 images to draw from."""
    source = project.prepared(reference_samples=reference_samples, draws=draws).source
    own, beyond = own_reference(source, draws), other_reference(source, 101)
    assert len(set(own)) == 3 * min(12, draws * reference_samples)
    assert len(np.intersect1d(own, beyond)) == 3 * max(0, (draws + 1) * reference_samples - 12)
    assert sharing(source, [101]).startswith(said)


def test_draws_of_the_same_images_are_refused(project):
    prepared = project.prepared(reference_samples=12, draws=2)
    with pytest.raises(UserError, match="fewer --reference-samples"):
        tasks_of(prepared, 2)
    assert len(tasks_of(prepared, 1)) == 1


def test_few_images_for_repair_are_of_all_classes(prepared):
    source = prepared.source
    labels = source.dataset.train.labels
    for count, expected in ((3, [1, 1, 1]), (5, [1, 2, 2]), (8, [2, 3, 3])):
        rows = unlabelled(source.dataset, source.classes, source.drawn["reference"], count, 0)
        assert sorted(np.bincount(labels[rows])) == expected
        assert set(rows) <= set(source.drawn["reference"])
