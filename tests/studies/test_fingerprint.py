"""Fingerprints: what differs is named."""

from __future__ import annotations

import json

import pytest
from pxp_optimize.studies.fingerprint import COSTS, GATES, difference, fingerprint, same_task

BASE = {
    "model": "resnet18",
    "weights": "a" * 64,
    "data": "digits",
    "image": {"size": 32, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)},
    "classes": ["0", "1"],
    "samples": {"search": {"count": 500, "hash": "b" * 64}},
    "units": "filters",
    "rates": [step / 20 for step in range(20)],
}


def test_it_survives_json():
    mark = fingerprint(**BASE)
    assert json.loads(json.dumps(mark)) == mark
    assert difference(json.loads(json.dumps(mark)), fingerprint(**BASE)) == []
    assert mark["schedule"] == "oneshot"
    assert mark["repair"] == "none"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "vgg16"}, "model: stored resnet18, now vgg16"),
        ({"weights": "c" * 64}, "weights: stored aaaaaaaaaaaa..., now cccccccccccc..."),
        (
            {"rates": [step / 10 for step in range(10)]},
            "rates: stored 20 from 0 to 0.95, now 10 from 0 to 0.9",
        ),
        ({"classes": ["0", "2"]}, "classes: stored 0, 1, now 0, 2"),
        (
            {"samples": {"search": {"count": 200, "hash": "b" * 64}}},
            "samples search count: stored 500, now 200",
        ),
        ({"image": {**BASE["image"], "size": 64}}, "image size: stored 32, now 64"),
        ({"repair": "batchnorm"}, "repair: stored none, now batchnorm"),
        ({"precision": "bf16"}, "precision: stored fp32, now bf16"),
        ({"gated": True}, f"gates: stored nothing, now {GATES}"),
        ({"units": "filters-gates"}, "units: stored filters, now filters-gates"),
    ],
)
def test_each_difference_is_named(change, named):
    assert difference(fingerprint(**BASE), fingerprint(**{**BASE, **change})) == [named]


def test_how_costs_are_found_matters_where_they_are_an_objective():
    assert difference(fingerprint(**BASE), fingerprint(**BASE, costs=True)) == [f"costs: stored nothing, now {COSTS}"]


def test_lists_of_the_same_ends_still_tell_apart():
    named = difference({"rates": [0, 0.1, 0.2, 0.9]}, {"rates": [0, 0.1, 0.3, 0.9]})
    assert named == ["rates number 3: stored 0.2, now 0.3"]


def test_a_study_from_before_there_were_precisions_is_fp32():
    now = fingerprint(**BASE)
    before = {key: value for key, value in now.items() if key != "precision"}
    assert len(before) == len(now) - 1
    assert difference(before, now) == []
    assert difference(before, fingerprint(**BASE, precision="tf32")) == ["precision: stored fp32, now tf32"]


def test_a_part_that_is_new_or_gone():
    assert difference({"model": "a"}, {"model": "a", "repair": "none"}) == ["repair: stored nothing, now none"]
    assert difference({"model": "a", "repair": "none"}, {"model": "a"}) == ["repair: stored none, now nothing"]


def test_what_measures_anew_does_not_ask_which_version_measured_before():
    now = fingerprint(**{**BASE, "repair": "least-squares"}, gated=True, costs=True)
    before = {**now, "definitions": 1, "gates": 1, "least-squares": 3, "gate costs": 1, "layer times": 1}
    del before["costs"]
    assert len(difference(before, now)) == 6
    assert same_task(before, now) == []
    assert same_task({**before, "model": "other"}, now) == ["model: stored other, now " + now["model"]]
