"""Samples that lie in a file: the same ones, in batches, and nothing of them left behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pxp_optimize.attribution import Composite, RuleSpec, collect_relevance
from pxp_optimize.optimize.data.prefetch import Prefetcher, Store
from pxp_optimize.optimize.evaluation.evaluate import evaluate
from pxp_optimize.optimize.evaluation.task import Images
from pxp_optimize.optimize.options import Options
from pxp_optimize.optimize.study.prepare import prepare
from pxp_optimize.studies.errors import UserError
from pxp_optimize.studies.fingerprint import difference

GAMMA = Composite.uniform(RuleSpec("gamma"))
MAPS = Path("/proc/self/maps")


def test_memory_is_given_until_the_budget_is_spent(tmp_path: Path) -> None:
    store = Store(200, tmp_path / "cache")
    found = [store.room(shape) for shape in ((10, 15), (3, 50), (50,), (1,))]
    assert [in_file for _, in_file in found] == [False, True, False, True]
    assert [tuple(tensor.shape) for tensor, _ in found] == [(10, 15), (3, 50), (50,), (1,)]
    assert all(tensor.dtype == torch.uint8 for tensor, _ in found)
    for value, (tensor, _) in enumerate(found):
        tensor.fill_(value)
    assert all(bool((tensor == value).all()) for value, (tensor, _) in enumerate(found))


@pytest.mark.skipif(not MAPS.exists(), reason="tells by Linux's /proc what is mapped")
def test_the_file_has_no_name_and_goes_with_the_tensor(tmp_path: Path) -> None:
    tensor, _ = Store(0, tmp_path).room((1 << 20,))
    part = tensor.view(1024, 1024)[::2]
    del tensor
    assert str(tmp_path) in MAPS.read_text()
    assert list(tmp_path.iterdir()) == []
    del part
    assert str(tmp_path) not in MAPS.read_text()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_nothing_is_left_of_a_process_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pxp_optimize.optimize.data.prefetch import Store\n"
        "kept = Store(0, Path(sys.argv[1])).room((1 << 20,))[0].fill_(7)\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match=r"^cannot keep 3 MiB of samples in .*No space left.*--sample-memory.*$"):
        Store(0, tmp_path).room((3 << 20,))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^cannot keep"):
        Store(0, tmp_path / "file").room((1,))


# -- batches ahead of time ---------------------------------------------------------------------------------------

PIXELS = torch.randint(256, (23, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SLICES = st.builds(slice, st.integers(0, 25), st.integers(0, 25), st.integers(1, 3))


def check_batches(ahead: Prefetcher, slices: list[slice]) -> None:
    """All batches against the pixels, only when all are there: none may lie in a buffer that is used again."""
    batches = [ahead[item] for item in slices]
    for item, batch in zip(slices, batches, strict=True):
        assert batch.device.type == ahead.device.type
        assert torch.equal(batch.cpu(), PIXELS[item])


@given(st.lists(SLICES, max_size=8))
def test_batches_in_any_order_are_those_of_the_pixels(slices: list[slice]) -> None:
    check_batches(Prefetcher(PIXELS, torch.device("cpu")), slices)


@pytest.mark.parametrize("size", [1, 4, 23, 64])
def test_the_next_batch_is_read_before_it_is_asked_for(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[range] = []
    copy = Prefetcher._copy
    monkeypatch.setattr(Prefetcher, "_copy", lambda self, rows: asked.append(rows) or copy(self, rows))
    ahead = Prefetcher(PIXELS, torch.device("cpu"))
    one_pass = [slice(start, start + size) for start in range(0, 23, size)]
    check_batches(ahead, one_pass * 2)
    ahead._reader.shutdown()
    rows = [range(23)[item] for item in one_pass]
    assert asked == [*rows, *rows, rows[0]]  # each once: none was read again when it was asked for


def test_an_error_of_the_reader_comes_through_and_is_over_then(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = Prefetcher(PIXELS, torch.device("cpu"))
    copy = Prefetcher._copy
    failures = iter([False, True, False, False, False])

    def failing(self: Prefetcher, rows: range):
        if next(failures):
            raise torch.cuda.OutOfMemoryError
        return copy(self, rows)

    monkeypatch.setattr(Prefetcher, "_copy", failing)
    assert torch.equal(ahead[0:8], PIXELS[0:8])
    with pytest.raises(torch.cuda.OutOfMemoryError):
        ahead[8:16]
    assert torch.equal(ahead[0:4], PIXELS[0:4])
    assert torch.equal(ahead[4:8], PIXELS[4:8])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("size", [1, 4, 23, 64])
def test_batches_on_cuda(size: int) -> None:
    ahead = Prefetcher(PIXELS, torch.device("cuda"))
    check_batches(ahead, [slice(start, start + size) for start in range(0, 23, size)] * 3)
    assert all(buffer is None or buffer.is_pinned() for buffer in ahead._buffers)


# -- a study on them ---------------------------------------------------------------------------------------------


@pytest.fixture
def options(small_options) -> Options:
    return small_options.changed(rates=(0.0, 0.3, 0.6), batch_size=8, schedule="every:0.3")


def same(first, second) -> None:
    """Two prepared studies: fingerprints, relevance and curves, to the last bit."""
    assert difference(first.fingerprint, second.fingerprint) == []
    relevance = [
        collect_relevance(task.graph, GAMMA, task.reference.inputs, task.reference.targets, batch_size=8)
        for task in (first.task, second.task)
    ]
    assert all(torch.equal(relevance[0][name], relevance[1][name]) for name in relevance[0])
    for samples in ("search", "holdout"):
        found, expected = (evaluate(one.task, GAMMA, getattr(one.task, samples)) for one in (first, second))
        assert (found.accuracy, found.ranking_hash) == (expected.accuracy, expected.ranking_hash)


def test_a_study_on_samples_in_a_file_is_the_same(options, project):
    first, second = prepare(options.changed(sample_memory=0)), prepare(options)
    assert first.task.search.inputs.in_file
    assert not second.task.search.inputs.in_file
    assert "reference, search, holdout on disk (--sample-memory)" in "\n".join(first.description)
    assert "on disk" not in "\n".join(second.description)
    same(first, second)


def test_batches_ahead_of_time_give_the_same_study(options):
    first, second = prepare(options.changed(sample_memory=0)), prepare(options)
    task = first.task
    for samples in (task.reference, task.search, task.holdout):
        images: Images = samples.inputs
        object.__setattr__(images, "ahead", Prefetcher(images.pixels, torch.device("cpu")))
    same(first, second)


def test_broken_images_are_skipped_in_a_file_as_well(options, project):
    broken: Path = project.folder / "images" / "train" / "red" / "0.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    try:
        asked = options.changed(reference_samples=12, skip_broken=True)
        first, second = prepare(replace(asked, sample_memory=0)), prepare(asked)
    finally:
        broken.write_bytes(whole)
    assert len(first.task.reference) == 35
    assert torch.equal(first.task.reference.inputs.pixels, second.task.reference.inputs.pixels)
    same(first, second)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_study_on_samples_in_a_file_is_the_same_on_cuda(options):
    first, second = (prepare(options.changed(device="cuda", sample_memory=room)) for room in (0, None))
    assert first.task.search.inputs.ahead is not None
    same(first, second)
