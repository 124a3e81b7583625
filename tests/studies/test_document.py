"""Export: the documented JSON, without the model, and back again bit for bit."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pxp_optimize.attribution import Composite, load_composite
from pxp_optimize.optimize.search.samplers import make_sampler
from pxp_optimize.optimize.search.space import GROUPS, Space
from pxp_optimize.studies.document import check_target, composite_document, layers_of, write_json
from pxp_optimize.studies.errors import UserError

GROUP_OF = {"conv1": "low", "layer2.0.conv1": "mid", "layer4.0.conv1": "high", "fc": "classifier"}
LAYERS = {name: {"group": group, "type": "3x3"} for name, group in GROUP_OF.items()}
MARK = {"model": "resnet18", "units": "filters", "rates": [0.0, 0.5]}


@pytest.fixture
def study() -> optuna.Study:
    """Six trials, the third the best, and one that waits."""
    study = optuna.create_study(study_name="toy", direction="maximize", sampler=make_sampler("random", 0))
    study.set_user_attr("fingerprint", MARK)
    study.set_user_attr("layers", LAYERS)
    for value in (0.1, 1 / 3, 0.9, 0.2, 0.3, 0.4):
        trial = study.ask()
        trial.set_user_attr("composite", Space(GROUPS).suggest(trial).to_dict())
        trial.set_user_attr("accuracy", [1.0, value])
        study.tell(trial, value)
    study.enqueue_trial({})
    return study


def test_the_best_trial_as_documented(study):
    study.set_user_attr("holdout", {"2": {"auc": 0.8, "accuracy": [0.9, 0.7]}})
    document = composite_document(study)
    composite = study.trials[2].user_attrs["composite"]
    assert list(document) == ["format", "model", "units", "groups", "ranking", "pruning", "layers", "result"]
    assert document["format"] == "pxp-composite/1"
    assert document["model"] == "resnet18"
    assert document["units"] == "filters"
    assert document["groups"] == composite["groups"]
    assert document["layers"] == {name: composite["groups"][group] for name, group in GROUP_OF.items()}
    assert document["pruning"] == {"schedule": "oneshot", "repair": "none"}
    assert document["result"] == {
        "auc": 0.9,
        "holdout_auc": 0.8,
        "study": "toy",
        "trial": 2,
        "rates": [0.0, 0.5],
        "accuracy": [1.0, 0.9],
    }


def test_one_trial_without_a_holdout_score(study):
    document = composite_document(study, 1)
    assert document["result"]["auc"] == 1 / 3
    assert "holdout_auc" not in document["result"]


def test_a_file_gives_the_same_composite_back(study, tmp_path: Path):
    for number in range(6):
        path = tmp_path / f"{number}.json"
        document = composite_document(study, number)
        write_json(path, document)
        assert json.loads(path.read_text()) == document
        loaded = load_composite(path)
        kept = Composite.from_dict(study.trials[number].user_attrs["composite"])
        assert replace(loaded, layers={}) == kept
        assert loaded.layers == {name: kept.groups[group] for name, group in GROUP_OF.items()}


def test_what_cannot_be_exported_is_named(study):
    for number, message in ((6, "trial 6 of study 'toy' is waiting"), (7, "study 'toy' has no trial 7")):
        with pytest.raises(UserError, match=message):
            composite_document(study, number)
    empty = optuna.create_study(study_name="empty")
    with pytest.raises(UserError, match="not made by pxp-optimize"):
        composite_document(empty)
    empty.set_user_attr("fingerprint", MARK)
    empty.set_user_attr("layers", LAYERS)
    with pytest.raises(UserError, match="no finished trial"):
        composite_document(empty)


def test_a_file_gives_the_traced_network_the_same_rules(study):
    """The database holds only what `layers_of` kept; composite, network and file must agree."""
    from pxp_optimize.pruning import trace
    from torchvision.models import resnet18

    graph = trace(resnet18(num_classes=3))
    study.set_user_attr("layers", json.loads(json.dumps(layers_of(graph))))
    for trial in study.trials[:6]:
        document = composite_document(study, trial.number)
        specs = Composite.from_dict(trial.user_attrs["composite"]).resolve(graph)
        assert load_composite(document).resolve(graph) == specs
        assert document["layers"] == {name: spec.to_dict() for name, spec in specs.items()}
        assert list(document["layers"]) == list(graph.groups)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive_bit_for_bit(tmp_path_factory, number):
    path = tmp_path_factory.mktemp("numbers") / "a.json"
    write_json(path, {"number": number})
    assert json.loads(path.read_text())["number"].hex() == number.hex()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch):
    path = tmp_path / "best.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["best.json"]


def test_targets_that_cannot_be_written(tmp_path: Path):
    check_target(tmp_path / "new.json")
    with pytest.raises(UserError, match="is a folder"):
        check_target(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        check_target(tmp_path / "none" / "a.json")
    precious = tmp_path / "precious.db"
    for content, allowed in ((b"SQLite format 3", False), (b"", True), (b' \n{"a": 1}', False), (b"\xff{", False)):
        precious.write_bytes(content)
        if allowed:
            check_target(precious)
        else:
            with pytest.raises(UserError, match="no composite"):
                check_target(precious)
    with pytest.raises(UserError, match="cannot write"):
        write_json(tmp_path, {"a": 1})
    assert [file.name for file in tmp_path.iterdir()] == ["precious.db"]


@pytest.mark.parametrize("content", ["", '{"format": "pxp-composite/1"}', None])
def test_an_earlier_composite_may_be_replaced(tmp_path, content):
    path = tmp_path / "best.json"
    if content is not None:
        path.write_text(content)
    check_target(path, str(tmp_path / "pxp.db"))


def test_nothing_else_is_replaced(tmp_path):
    (tmp_path / "package.json").write_text('{"my": "settings"}')
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("package.json", "pipe", "link", "pxp.db"):
        with pytest.raises(UserError, match=r"another file|database of the studies"):
            check_target(tmp_path / name, f"sqlite:///{tmp_path}/pxp.db")
    assert (tmp_path / "package.json").read_text() == '{"my": "settings"}'
