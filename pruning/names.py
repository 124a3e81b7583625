"""What pruning offers by name. Nothing here imports torch: the options of a run are made of these."""

from __future__ import annotations

UNIT_KINDS = ("filters", "neurons", "heads")
PRECISIONS = ("fp32", "tf32", "bf16")
DEFAULT_RATES = tuple(round(0.05 * step, 2) for step in range(20))
