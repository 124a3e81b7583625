"""Pieces that users add: one of each kind, registered from outside of the package and used."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import optuna
import pytest
import torch
from pxp_optimize.attribution import (
    CRITERIA,
    RULES,
    LinearRule,
    Parameter,
    RuleKind,
    Searched,
    collect_relevance,
    collect_scores,
    load_composite,
    register_criterion,
    register_rule,
)
from pxp_optimize.attribution.rules import Term, stabilize
from pxp_optimize.optimize import Sampler, optimize, register_dataset, register_sampler
from pxp_optimize.optimize.data.datasets import DATASETS, Dataset, Split
from pxp_optimize.optimize.options import Options
from pxp_optimize.optimize.search.samplers import SAMPLERS
from pxp_optimize.optimize.study.prepare import prepare
from pxp_optimize.pruning import (
    COSTS,
    REPAIRS,
    Graph,
    Masks,
    Repair,
    compact,
    make_repair,
    register_cost,
    register_repair,
    trace,
)
from pxp_optimize.studies.errors import UserError
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """What a test registers is gone after it."""
    tables = (RULES, CRITERIA, REPAIRS, COSTS, SAMPLERS, DATASETS)
    before = [dict(table._pieces) for table in tables]
    yield
    for table, pieces in zip(tables, before, strict=True):
        table._pieces = pieces


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()


X, Y = torch.randn(12, 3, 10, 10, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3


class Flattened(LinearRule):
    """Epsilon's rule on the output's absolute value to a power: an example of a rule of one's own."""

    def __init__(self, power: float, **known: bool) -> None:
        super().__init__(**known)
        self.power = power

    def terms(self, module: nn.Module, x: Tensor, output: Tensor, relevance: Tensor) -> list[Term]:
        return [Term(relevance / stabilize(output.sign() * output.abs() ** self.power), 1, 1)]


def test_a_rule(model, tmp_path):
    register_rule("flattened", RuleKind(Flattened, {"power": Parameter(1.0, 0.1, 2.0, Searched(0.5, 1.5))}))
    groups = ("low", "mid", "high", "classifier")
    found, plain = (
        collect_relevance(model, {"groups": dict.fromkeys(groups, rule)}, X, Y)
        for rule in ({"rule": "flattened", "power": 1.0}, {"rule": "epsilon"})
    )
    for name, relevance in plain.items():
        assert torch.allclose(found[name], relevance, rtol=1e-4)
    (tmp_path / "mine.toml").write_text(
        "[parts.low]\nrules = ['flattened', 'epsilon']\n[parts.mid]\nrules = ['zplus']\n"
        "[parts.classifier]\nrules = ['epsilon']\n"
    )
    result = optimize(
        model,
        reference=(X, Y),
        search=(X, Y),
        space=str(tmp_path / "mine.toml"),
        sampler="random",
        trials=16,
        rates=[0, 0.5],
        storage=str(tmp_path / "a.db"),
        quiet=True,
    )
    tried = [trial.user_attrs["composite"]["groups"]["low"] for trial in result.study.trials]
    powers = {spec["power"] for spec in tried if spec["rule"] == "flattened"}
    assert len(powers) > 1 and all(0.5 <= power <= 1.5 for power in powers)


def test_a_criterion(model):
    def last_first(graph, inputs, targets, units, batch_size, seed):
        return {name: torch.arange(size, 0, -1.0) for name, size in graph.units(units).items()}

    register_criterion("last_first", last_first)
    scores = collect_scores(model, "last_first", X, Y)
    assert [int(values.argmin()) for values in scores.values()] == [7, 7]


def test_a_repair(model, tmp_path):
    class Louder(Repair):
        """Makes up for what is gone by a factor."""

        name = "louder"

        def __call__(self, graph: Graph, small: Graph, masks: Masks) -> Graph:
            network = small.network
            with torch.no_grad():
                for layer in network.modules_by_step().values():
                    if isinstance(layer, nn.Linear):
                        layer.weight.mul_(1.5)
            return small

    register_repair("louder", Louder)
    graph = trace(model, X)
    masks = {"0": torch.arange(8) < 4, "2": torch.arange(8) < 8}
    plain = compact(graph, masks).network(X)
    made = make_repair("louder", graph, X)
    found = made(graph, compact(graph, masks), masks).network(X)
    bias = model[-1].bias
    assert torch.allclose(found - bias, 1.5 * (plain - bias), atol=1e-5)
    result = optimize(
        model,
        reference=(X, Y),
        search=(X, Y),
        repair="louder",
        trials=4,
        rates=[0, 0.5],
        storage=str(tmp_path / "a.db"),
        quiet=True,
    )
    assert result.study.user_attrs["fingerprint"]["repair"] == "louder"
    assert Options.parsed(repair="louder+least-squares").repair == ("louder+least-squares",)
    with pytest.raises(
        UserError, match=r"repair: 'louder\+quieter' is not auto, none, batchnorm, least-squares, louder"
    ):
        Options.parsed(repair="louder+quieter")


def test_a_sampler(model, tmp_path):
    register_sampler(
        "evenly", Sampler(lambda seed: optuna.samplers.QMCSampler(seed=seed, warn_independent_sampling=False))
    )
    result = optimize(
        model,
        reference=(X, Y),
        search=(X, Y),
        sampler="evenly",
        trials=12,
        rates=[0, 0.5],
        storage=str(tmp_path / "a.db"),
        quiet=True,
    )
    assert len(result.study.trials) == 12
    with pytest.raises(UserError, match=r"sampler: 'evenly2' is not one of auto, tpe, .*, evenly, grid"):
        Options.parsed(sampler="evenly2")


def test_a_data_set(project, small_options):
    def stripes(cache, progress):
        images = np.zeros((40, 16, 16, 3), dtype=np.uint8)
        labels = np.arange(40) % 3
        for image, label in zip(images, labels, strict=True):
            image[label::3] = 255
        split = Split(labels.astype(np.int64), images)
        return Dataset("stripes", ("first", "second", "third"), None, split, split)

    register_dataset("stripes", stripes)
    prepared = prepare(small_options.changed(data="stripes", reference_samples=4, rates=[0, 0.5]))
    assert prepared.fingerprint["data"] == "stripes"
    assert len(prepared.task.reference) == 12


def test_a_cost(model):
    register_cost("layers", lambda network, images: float(sum(isinstance(m, nn.Conv2d) for m in network.modules())))
    assert COSTS["layers"](trace(model, X).network, X) == 2.0


def test_names_are_taken_once_and_can_be_written():
    for name, message in (("epsilon", "is there already"), ("", "a name is made of"), ("a,b", "a name is made of")):
        with pytest.raises(ValueError, match=message):
            register_rule(name, RULES["epsilon"])


def test_what_is_registered_is_checked_in_composites():
    register_rule("mine", RuleKind(Flattened, {"power": Parameter(1.0, 0.1, 2.0)}))
    composite = load_composite({"groups": {"low": {"rule": "mine", "power": 0.5}}})
    assert composite.groups["low"].to_dict() == {"rule": "mine", "power": 0.5}
    with pytest.raises(ValueError, match=r"groups.low.power: must be in \[0.1, 2\]"):
        load_composite({"groups": {"low": {"rule": "mine", "power": 5}}})
