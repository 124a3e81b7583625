"""Numbers in words."""

from __future__ import annotations

import pytest
from pxp_optimize.studies.wording import counted, part_of


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0%"),
        (0.001, "0.1%"),
        (0.006, "1%"),
        (0.5, "50%"),
        (-0.003, "-0.3%"),
        (0.994, "99%"),
        (0.996, "99.6%"),
        (1, "100%"),
        (1.2, "120%"),
    ],
)
def test_a_part_is_all_or_nothing_only_where_it_is(value, words):
    assert part_of(value) == words


def test_one_thing_is_one():
    assert [counted(n, "trial") for n in (0, 1, 2)] == ["0 trials", "1 trial", "2 trials"]
