"""Which images are a study's samples: drawn by class and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...studies.errors import UserError
from .datasets import Dataset, Indices, Split

DEFAULT_SAMPLES = 500  # at most, for search and for holdout each, to keep a trial short


def pick_classes(dataset: Dataset, wanted: Sequence[str] | int | None, seed: int) -> tuple[int, ...]:
    """The class indices that `--classes` asks for, ascending.

    wanted: None for all, a number of classes to draw by `seed`, or names or indices (a name wins over an index).

    Raises:
        UserError: an unknown class, or fewer than two classes.
    """
    names = dataset.classes
    if wanted is None:
        return tuple(range(len(names)))
    if isinstance(wanted, int):
        if not 2 <= wanted <= len(names):
            raise UserError(f"--classes {wanted}: {dataset.name} has {len(names)} classes; draw 2 to {len(names)}")
        drawn = np.random.default_rng(seed).choice(len(names), wanted, replace=False)
        return tuple(sorted(drawn.tolist()))
    chosen: set[int] = set()
    for part in wanted:
        if part in names:
            chosen.add(names.index(part))
        elif part.isdecimal() and int(part) < len(names):
            chosen.add(int(part))
        else:
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise UserError(f"--classes: {dataset.name} has no class {part!r}; it has {shown}")
    if len(chosen) < 2:
        raise UserError(f"--classes {', '.join(wanted)}: name at least two classes")
    return tuple(sorted(chosen))


def draw_splits(
    dataset: Dataset,
    classes: Sequence[int],
    reference_per_class: int,
    search: int | None,
    holdout: int | None,
    seed: int,
) -> dict[str, Indices]:
    """Draw a study's samples: `reference` from `dataset.train`, `search` and `holdout` from `dataset.val`.

    search, holdout: how many in all. They are disjoint, and each has its share of every class (one image at
    least), in random order. None: at most 500, and at most half of the validation images of these classes
    or what the other one leaves. What a class gives depends on the seed and on how many are asked of it only.

    Raises:
        UserError: a class has too few images.
    """

    def rows(split: Split, label: int) -> Indices:
        rng = np.random.default_rng((seed, label))
        return rng.permutation(np.flatnonzero(split.labels == label))

    train = [rows(dataset.train, label) for label in classes]
    val = [rows(dataset.val, label) for label in classes]
    for label, of_train, of_val in zip(classes, train, val, strict=True):
        name = dataset.classes[label]
        if len(of_train) < reference_per_class:
            raise UserError(
                f"class {name} has {len(of_train)} training images, {reference_per_class} are asked for; "
                "lower --reference-samples or leave it out with --classes"
            )
        if len(of_val) < 2:
            raise UserError(
                f"class {name} has too few validation images ({len(of_val)}): one is needed for the search "
                "and one for the holdout; add images or leave it out with --classes"
            )

    sizes = np.array([len(r) for r in val])
    total = int(sizes.sum())
    half = min(DEFAULT_SAMPLES, total // 2)
    if search is None:
        search = half if holdout is None else max(min(half, total - holdout), len(sizes))
    if holdout is None:
        holdout = max(min(half, total - search), len(sizes))
    for option, asked in (("--search-samples", search), ("--holdout-samples", holdout)):
        if asked < len(sizes):
            raise UserError(f"{option} {asked}: fewer than the {len(sizes)} classes; ask for one a class at least")
    if search + holdout > total:
        raise UserError(
            f"{search} search and {holdout} holdout samples are asked for, but {dataset.name} has {total} "
            "validation images of these classes; lower --search-samples or --holdout-samples"
        )
    of_search = share(search, sizes - 1)
    of_holdout = share(holdout, sizes - of_search)
    order = np.random.default_rng(seed)
    return {
        "reference": np.concatenate([r[:reference_per_class] for r in train]),
        # Taken from both ends, so that the size of one does not change which images the other gets.
        "search": order.permutation(np.concatenate([r[:n] for r, n in zip(val, of_search, strict=True)])),
        "holdout": order.permutation(np.concatenate([r[::-1][:n] for r, n in zip(val, of_holdout, strict=True)])),
    }


def unlabelled(dataset: Dataset, classes: Sequence[int], reference: Indices, count: int, seed: int) -> Indices:
    """Rows of the training split for what needs no labels: the reference samples, then others of these classes,
    whatever class they are of. Of fewer than the reference samples as many of each class, as far as that goes.

    Raises:
        UserError: the training split has fewer.
    """
    labels = dataset.train.labels
    others = np.setdiff1d(np.flatnonzero(np.isin(labels, classes)), reference)
    if count > len(reference) + len(others):
        raise UserError(
            f"--repair-samples {count}: {dataset.name} has {len(reference) + len(others)} training images of these "
            "classes; give fewer"
        )
    if count < len(reference):
        of_class = labels[reference]
        turn = np.array([np.count_nonzero(of_class[:row] == label) for row, label in enumerate(of_class)])
        return reference[np.sort(np.argsort(turn, kind="stable")[:count])]
    return np.concatenate([reference, np.random.default_rng((seed, count)).permutation(others)])[:count]


def share(total: int, capacity: Indices) -> Indices:
    """Share `total` out in proportion to `capacity`, at least one each, by largest remainders."""
    spare = capacity - 1
    exact = (total - len(capacity)) * spare / max(spare.sum(), 1)
    counts = np.floor(exact).astype(np.int64)
    missing = total - len(capacity) - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return 1 + counts


def draw_rows(labels: Indices, rows: Indices, counts: int | Mapping[int, int], seed: int, option: str) -> Indices:
    """Some of these rows, in their order: so many of each class, or so many in all, of each class in proportion.

    Raises:
        UserError: a class has fewer, or there are more classes than samples asked for. option: its name.
    """
    of_class = {label: rows[labels[rows] == label] for label in np.unique(labels[rows]).tolist()}
    if isinstance(counts, int):
        sizes = np.array([len(own) for own in of_class.values()])
        if not len(sizes) <= counts <= sizes.sum():
            raise UserError(f"{option} is {counts}: from {len(sizes)} (one a class) to {sizes.sum()} are there")
        counts = dict(zip(of_class, share(counts, sizes).tolist(), strict=True))
    chosen = []
    for label, count in counts.items():
        own = of_class.get(label, rows[:0])
        if len(own) < count:
            raise UserError(f"{option}: class {label} has {len(own)} samples, {count} are asked for")
        chosen.append(np.random.default_rng((seed, label)).permutation(own)[:count])
    return np.sort(np.concatenate(chosen))


def halves(labels: Indices, rows: Indices, seed: int) -> tuple[Indices, Indices]:
    """Two halves of these rows, class by class, in their order; of an odd number the first gets one more."""
    first = []
    for label in np.unique(labels[rows]).tolist():
        own = np.random.default_rng((seed, label)).permutation(rows[labels[rows] == label])
        first.append(own[: (len(own) + 1) // 2])
    chosen = np.sort(np.concatenate(first))
    return chosen, np.setdiff1d(rows, chosen)
