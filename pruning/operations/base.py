"""The table of operations: for each, in one place, everything that the rest of the project asks of it.

An entry says which operations of ATen it covers, which step it makes of one (`build`), how live channels pass in a
compact network (`reduce`), the sign of its result, and how relevance passes. Without the last it cannot be registered:
a rule that is missing would silently pass the plain gradient.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from ..channels import State

if TYPE_CHECKING:
    from ..compaction import Compactor
    from ..graph.build import Builder


class Relevance(enum.Enum):
    """How relevance passes a step, from its output to its inputs."""

    RULE = "by the composite's rule for the layer"
    UNCHANGED = "unchanged, as through an activation"
    ROUTED = "by the gradient: each output is one of the inputs, or zero"
    SHARED = "in proportion to the two summands"
    SCATTERED = "as a sum's, where the summands have other channels"
    PROPORTIONAL = "in proportion to input times gradient, for what is linear in its inputs"
    PRODUCT = "to the signal that a gate scales, or half to each factor"
    NUMERATOR = "to the first input; the second one only scales"
    NORMALISED = "in proportion to input times gradient, the standard deviation being a constant"
    MATRIX_PRODUCT = "half to each factor, by input times gradient"
    SOFTMAX = "by the composite's rule for softmax"
    ATTENDED = "as that of a matrix product, as the rule for softmax says"
    STOPPED = "not at all: the result only scales something else"
    NONE = "has no input"


class Operation(ABC):
    """An entry of the table. relevance: how it passes; or a function from the module to a hook of zennit's kind."""

    relevance: Relevance | Callable[[nn.Module], Any]
    blind = False
    """Whether an input of zero gets no relevance, whatever the output's is."""
    passes_zeros = False
    """Whether an input of zero gets the relevance of outputs that may be blind to zeros further on."""

    views = False
    """Whether the result may lie in the memory of the first input."""

    def build(self, b: Builder, node: Any) -> int:
        """The slot of what an operation gives, with steps made for it."""
        raise NotImplementedError

    def nonnegative(self, module: Any, inputs: Sequence[bool]) -> bool:
        """Whether the result is never negative, given whether each input is."""
        return False

    def gate(self, module: Any, inputs: Sequence[bool]) -> bool:
        """Whether the result only scales what it is multiplied with, given whether each input does."""
        return False

    def heirs(self, module: Any, inputs: tuple[int, ...]) -> tuple[int, ...]:
        """Of the inputs' slots, those that get relevance; what only scales the others gets none."""
        if self.relevance is Relevance.STOPPED:
            return ()
        return inputs[:1] if self.relevance is Relevance.NUMERATOR else inputs

    @abstractmethod
    def reduce(self, module: Any, c: Compactor, inputs: tuple[int, ...]) -> tuple[int, State]:
        """The step with live channels only, added to `c`: its slot there, and what is live in its value."""


class KeepsSigns(Operation):
    """Of values that are never negative it makes such, and of gates a gate."""

    def nonnegative(self, module: Any, inputs: Sequence[bool]) -> bool:
        return all(inputs)

    def gate(self, module: Any, inputs: Sequence[bool]) -> bool:
        return all(inputs)


class Routing(KeepsSigns):
    relevance = Relevance.ROUTED
    passes_zeros = False


TARGETS: dict[str, Operation] = {}
"""Entries by the operation of ATen: "aten.conv2d.default"."""
MODULES: dict[type[nn.Module], Operation] = {}
"""Entries by the kind of module that their steps are."""

Entry = TypeVar("Entry", bound=type[Operation])


def operation(*targets: str, modules: Sequence[type[nn.Module]] = ()) -> Callable[[Entry], Entry]:
    """Registers an entry for operations of ATen, such as "aten.roll.default", and for the modules of its steps.

    Raises:
        TypeError: the entry does not say how relevance passes.
    """

    def register(entry: Entry) -> Entry:
        how = getattr(entry, "relevance", None)
        if not isinstance(how, Relevance) and not callable(how):
            raise TypeError(f"{entry.__name__} does not say how relevance passes: give it a `relevance`")
        made = entry()
        TARGETS.update(dict.fromkeys(targets, made))
        MODULES.update(dict.fromkeys(modules, made))
        return entry

    return register


def entry_of(module: nn.Module) -> Operation:
    """The entry for a step's module.

    Raises:
        KeyError: there is none.
    """
    for kind in type(module).__mro__:
        if kind in MODULES:
            return MODULES[kind]
    raise KeyError(f"no operation is registered for a {type(module).__name__}")
