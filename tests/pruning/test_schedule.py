from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pxp_optimize.pruning import Graph, Plan, Schedule, compact, prune_masks, pruned, trace
from torch import Tensor, nn

RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def scorer(calls: list[Graph] | None = None) -> Callable[[Graph], dict[str, Tensor]]:
    """Scores that differ from call to call, as relevance on a pruned network does; shaped by what is left."""

    def score(graph: Graph) -> dict[str, Tensor]:
        left = graph.units()
        if calls is not None:
            calls.append(graph)
        generator = torch.Generator().manual_seed(sum(left.values()))
        return {name: torch.rand(size, generator=generator) for name, size in left.items()}

    return score


@pytest.mark.parametrize("text, step", [("oneshot", None), ("every:0.05", 0.05), ("steps:10", 0.1), ("steps:4", 0.25)])
def test_parse(text: str, step: float | None) -> None:
    assert Schedule.parse(text).step == step


@pytest.mark.parametrize(
    "text", ["", "every", "every:", "every:0", "every:1", "every:x", "steps:1", "steps:2.5", "twice"]
)
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"oneshot, every:RATE .* or steps:N"):
        Schedule.parse(text)


@given(st.floats(0.01, 0.9))
def test_text_form_reads_back(step: float) -> None:
    schedule = Schedule.parse(f"every:{step:.4g}")
    assert Schedule.parse(str(schedule)) == schedule


def test_starts() -> None:
    assert Schedule.parse("oneshot").starts(0.9) == [0.0]
    assert Schedule.parse("every:0.25").starts(0.9) == [0.0, 0.25, 0.5, 0.75]
    assert Schedule.parse("every:0.3").starts(0.9) == pytest.approx([0.0, 0.3, 0.6])  # nothing is cut after 0.9


def test_once_is_one_ranking(everything: nn.Module) -> None:
    graph, calls = trace(everything), list[Graph]()
    plan = Plan.make(graph, scorer(calls), Schedule(), None, RATES[-1])
    assert calls == [graph]
    for rate in RATES:
        expected = prune_masks(scorer()(graph), rate)
        assert all(torch.equal(kept, expected[name]) for name, kept in plan.ranking.masks(rate).items())


@pytest.mark.parametrize("step", ["every:0.1", "every:0.25", "steps:3"])
def test_steps_see_what_is_left_and_masks_stay_nested(everything: nn.Module, step: str) -> None:
    graph, calls = trace(everything), list[Graph]()
    schedule = Schedule.parse(step)
    plan = Plan.make(graph, scorer(calls), schedule, None, RATES[-1])
    n_units = sum(graph.units().values())
    left = [n_units - int(n_units * start) for start in schedule.starts(RATES[-1])]
    assert [sum(seen.units().values()) for seen in calls] == left
    before = plan.ranking.masks(0)
    for rate in RATES:
        masks = plan.ranking.masks(rate)
        assert sum(int((~kept).sum()) for kept in masks.values()) == int(n_units * rate)
        assert all(bool((before[name] | ~kept).all()) for name, kept in masks.items())
        before = masks


def test_a_step_ranks_by_its_own_scores(everything: nn.Module) -> None:
    graph = trace(everything)
    plan = Plan.make(graph, scorer(), Schedule.parse("every:0.5"), None, 0.9)
    first = prune_masks(scorer()(graph), 0.5)
    small = compact(graph, first)
    second = prune_masks(scorer()(small), 0.5)
    masks = plan.ranking.masks(0.5 + 0.25)
    n_left = sum(small.units().values())
    expected = prune_masks(scorer()(small), int(graph_removed(graph, 0.75) - graph_removed(graph, 0.5)) / n_left)
    assert second.keys() == expected.keys()
    for name, kept in masks.items():
        whole = first[name].clone()
        whole[first[name]] = expected[name]
        assert torch.equal(kept, whole)


def graph_removed(graph: Graph, rate: float) -> int:
    return int(sum(graph.units().values()) * rate)


def test_unpruned_stays_as_it_is(everything: nn.Module) -> None:
    graph = trace(everything)
    whole = {name: torch.ones(size, dtype=torch.bool) for name, size in graph.units().items()}

    def repair(*arguments: object) -> Graph:
        raise AssertionError("nothing to repair")

    assert pruned(graph, whole, repair) is graph  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["steps:3", "steps:7", "every:0.05", "oneshot"])
def test_a_schedule_is_what_it_says(text: str) -> None:
    schedule = Schedule.parse(text)
    assert Schedule.parse(str(schedule)) == schedule
