"""Batches by the memory there is, and what happens when it was not enough."""

from __future__ import annotations

import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pxp_optimize.attribution import Composite, RuleSpec
from pxp_optimize.optimize.commands.run import run
from pxp_optimize.optimize.evaluation import memory
from pxp_optimize.optimize.evaluation.evaluate import Baseline, evaluate, plan_of, scores
from pxp_optimize.optimize.evaluation.memory import (
    LARGEST,
    Batching,
    choose_batch_size,
    fitting_batch_size,
    free_memory,
    is_out_of_memory,
    keep_batch_size,
    sample_bytes,
)
from pxp_optimize.optimize.options import Options
from pxp_optimize.optimize.study.prepare import prepare
from pxp_optimize.pruning import Family, Network, trace
from pxp_optimize.studies.errors import UserError
from torch import nn

GAMMA = Composite.uniform(RuleSpec("gamma"))


@pytest.fixture
def options(small_options) -> Options:
    return small_options.changed(rates=(0.0, 0.3, 0.6), schedule="every:0.3")


# -- how large a batch is ----------------------------------------------------------------------------------------


@given(st.integers(1, 1 << 40), st.integers(0, 1 << 45), st.sampled_from(sorted(LARGEST)))
def test_batches_are_powers_of_two_that_fit(need, free, kind):
    size = fitting_batch_size(need, free, kind)
    assert 1 <= size <= LARGEST[kind]
    assert size & (size - 1) == 0
    assert size == 1 or size * need <= free / 2
    assert size == LARGEST[kind] or 2 * size * need > free // 2
    assert fitting_batch_size(need, 2 * free, kind) >= size


def test_what_a_sample_needs_grows_with_the_image_and_is_found_without_a_trace():
    """Against what is certain: inputs and outputs of the layers, which rules keep."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)),
    )
    graph = trace(model)
    targets = torch.zeros(1, dtype=torch.long)
    small, large = (sample_bytes(graph, "filters", torch.randn(2, 3, size, size), targets) for size in (32, 64))
    kept = 4 * 32 * 32 * (16 + 16 + 32 + 32)  # outputs of convolutions and activations, float32
    assert kept <= small <= 4 * kept
    assert small * 3.5 < large < small * 4.5
    assert all(not module._forward_hooks for module in graph.network.modules())


def test_there_is_free_memory():
    assert 1 << 20 < free_memory(torch.device("cpu")) < 1 << 50


def test_auto_is_64_here_and_less_where_memory_is_short(options, monkeypatch):
    assert options.batch_size == "auto"
    task = prepare(options).task
    assert task.batch_size == 64
    need = sample_bytes(task.graph, task.units, task.reference.inputs, task.reference.targets)
    monkeypatch.setattr(memory, "free_memory", lambda device: 2 * 10 * need)
    assert prepare(options).task.batch_size == 8
    monkeypatch.setattr(memory, "free_memory", lambda device: 0)
    assert prepare(options).task.batch_size == 1
    assert prepare(options.changed(batch_size=7)).task.batch_size == 7


def test_a_study_keeps_the_batches_it_began_with():
    study = optuna.create_study()
    first, second, other = Batching(64), Batching(16), Batching(256)
    keep_batch_size(study, first, "cpu")
    keep_batch_size(study, second, "cpu")
    keep_batch_size(study, other, "cuda")
    assert (first.size, second.size, other.size) == (64, 64, 256)
    assert study.user_attrs["batch_size"] == {"cpu": 64, "cuda": 256}


# -- when it was too large ---------------------------------------------------------------------------------------


def limited(monkeypatch, most: int, error: BaseException | None = None) -> list[int]:
    """Networks run out of memory in batches of more than `most` samples, except in the first batch of all, so
    that something has been summed by then. Returns the sizes of the batches, as they come."""
    seen: list[int] = []

    def shorten(owner: type, name: str) -> None:
        run = getattr(owner, name)

        def short(self: object, input: torch.Tensor) -> object:
            seen.append(len(input))
            if len(input) > most and len(seen) > 1:
                raise error or torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return run(self, input)

        monkeypatch.setattr(owner, name, short)

    shorten(Network, "forward")
    shorten(Family, "__call__")
    return seen


@pytest.mark.parametrize("method", [GAMMA, Baseline("integrated_gradients"), Baseline("taylor")], ids=str)
def test_relevance_starts_anew_with_half_the_batch(options, monkeypatch, method):
    task, plain = (prepare(options.changed(batch_size=size)).task for size in (12, 6))
    expected = scores(plain, method, plain.graph)
    seen = limited(monkeypatch, 6)
    got = scores(task, method, task.graph)
    assert 12 in seen
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert task.batch_size == 6


def test_a_trial_goes_on_with_smaller_batches_and_says_so_once(options, monkeypatch):
    task, plain = (prepare(options.changed(batch_size=size)).task for size in (24, 3))
    expected = evaluate(plain, GAMMA)
    told: list[str] = []
    task.batching.tell = told.append
    seen = limited(monkeypatch, 5)
    found = evaluate(task, GAMMA)
    assert (found.accuracy, found.ranking_hash) == (expected.accuracy, expected.ranking_hash)
    assert told == ["memory was too small for 24 images per batch: 3 from here on (--batch-size)"]
    seen.clear()
    evaluate(task, Composite.uniform(RuleSpec("epsilon")))
    evaluate(task.plain(), GAMMA)
    assert max(seen) == 3
    assert len(told) == 1


def test_evaluation_alone_may_run_out_of_memory(options, monkeypatch):
    task = prepare(options.changed(batch_size=30)).task
    expected = evaluate(prepare(options.changed(batch_size=15)).task, GAMMA)
    plan_of(task, GAMMA)
    limited(monkeypatch, 15)
    assert evaluate(task, GAMMA).accuracy == expected.accuracy
    assert task.batch_size == 15


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_running_out_of_memory_looks_like(error, is_one):
    assert is_out_of_memory(error) == is_one
    batching = Batching(4)

    def work(size: int) -> int:
        if size > 1:
            raise error
        return size

    if is_one:
        assert batching.run(work) == batching.size == 1
    else:
        with pytest.raises(type(error)):
            batching.run(work)
        assert batching.size == 4


def test_what_the_failed_pass_held_is_free_before_the_next():
    import weakref

    held: list[weakref.ref] = []

    def work(size: int) -> bool:
        assert all(ref() is None for ref in held)
        tensor = torch.ones(size)
        held.append(weakref.ref(tensor))
        if size > 1:
            raise torch.cuda.OutOfMemoryError
        return True

    assert Batching(8).run(work)
    assert len(held) == 4


def test_a_single_sample_that_does_not_fit_is_one_line(options, monkeypatch, capsys):
    limited(monkeypatch, 0)
    with pytest.raises(UserError, match=r"^[^\n]*too small: give a smaller --batch-size or --image-size[^\n]*$"):
        run(options.changed(trials=4, storage="full.db", export="full.json"))


def test_the_command_says_that_batches_became_smaller(options, monkeypatch, capsys):
    limited(monkeypatch, 10)
    assert run(options.changed(trials=4, storage="short.db", export="short.json")) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "memory" in line] == [
        "memory was too small for 64 images per batch: 8 from here on (--batch-size)"
    ]
    study = optuna.load_study(study_name="network:small-images-filters", storage="sqlite:///short.db")
    assert study.user_attrs["batch_size"] == {"cpu": 64}
    assert len(study.trials) == 4


def test_a_batch_on_the_cpu_takes_no_more_than_is_useful(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is free: a batch of large images would take all of it, and be no faster."""
    monkeypatch.setattr("pxp_optimize.optimize.evaluation.memory.free_memory", lambda device: 1 << 40)
    monkeypatch.setattr("pxp_optimize.optimize.evaluation.memory.sample_bytes", lambda *arguments: 1 << 26)
    graph = trace(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)), torch.zeros(2, 3, 8, 8)
    )
    assert choose_batch_size(graph, "filters", torch.zeros(2, 3, 8, 8), torch.zeros(2).long()) == 16
