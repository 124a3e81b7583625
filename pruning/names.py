"""What pruning offers by name. Nothing here imports torch: the options of a run are made of these."""

from __future__ import annotations

UNIT_KINDS = ("filters", "neurons", "heads")
NO_GATES = "-gates"
"""What ends the units that leave out those of layers that only feed gates: "filters-gates"."""
PRECISIONS = ("fp32", "tf32", "bf16")
DEFAULT_RATES = tuple(round(0.05 * step, 2) for step in range(20))


def unit_kinds(units: str) -> list[str]:
    """The kinds that units are made of: filters and neurons of "filters+neurons" and of "filters+neurons-gates"."""
    return units.removesuffix(NO_GATES).split("+")
