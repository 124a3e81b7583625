"""What heat maps are judged by in a study whose objective is faithfulness."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...attribution.faithfulness import Ends, Flipping, measure_ends, probabilities

if TYPE_CHECKING:
    from .task import Samples, Task


VERSION = 1
"""Raised whenever heat maps get another value."""


@dataclass(frozen=True)
class Explaining:
    """What heat maps are judged by in a study.

    flipping: the regions, and how they are removed. target: which class is explained, "predicted" or "true". quality:
    the second objective, of `QUALITIES`, or None. ends: by samples, what no heat map changes.
    """

    flipping: Flipping
    target: str = "predicted"
    quality: str | None = None
    ends: dict[tuple[int, str], Ends] = field(default_factory=dict, compare=False, repr=False)

    @property
    def parts(self) -> tuple[float, ...]:
        return self.flipping.parts

    def mark(self) -> dict[str, Any]:
        """What of it a fingerprint keeps."""
        flipping = self.flipping
        return {
            "version": VERSION,
            "regions": flipping.patches.edge,
            "replace": flipping.replace,
            "steps": flipping.steps,
            "target": self.target,
        }

    def described(self, by_name: bool) -> tuple[str, ...]:
        """Lines that say what it is. by_name: with the options that change it."""
        flipping, patches = self.flipping, self.flipping.patches
        return (
            f"maps    of the {self.target} class; {len(patches)} regions of {patches.edge} x {patches.edge} pixels are "
            f"removed in {len(flipping.parts) - 1} steps, replaced by {flipping.replace}"
            f"{' (--explain-target, --regions, --replace)' * by_name}",
        )

    def ends_of(self, task: Task, samples: Samples) -> Ends:
        """The explained class, its probability for whole images and for those with nothing left; measured once."""
        key = task.measured(samples)
        if key not in self.ends:
            targets = samples.targets if self.target == "true" else None
            probability = probabilities(task.graph.network, task.logits, task.precision)
            self.ends[key] = task.batching.run(
                lambda size: measure_ends(probability, samples.inputs, targets, self.flipping, size)
            )
        return self.ends[key]
