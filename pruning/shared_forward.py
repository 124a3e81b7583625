"""Networks pruned from one, run together: what they have in common is computed once.

Masks are nested, so the network at one rate begins as the one at the rate before it, up to the first layer that has
lost a unit in between. Most rankings let the units of early layers go late, and early layers are most of the work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .modules import Add, ScatterAdd, is_relu
from .network import Network, Step

GROUP_BYTES = 2**30
"""Bytes of weights that are enough to wait in memory and be run together."""


class Family:
    """Runs networks on the same images: the logits that each one has alone, to the last bit.

    A step that equals the one of its name in the network before (`same_module`), and reads the same values, gives
    the same output to the last bit, and is not run again. Memory holds, besides one network's activations, those
    few that later networks begin with.

    networks: in the order of their rates, at least one. A module that is no `Network` is run as it is.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        calls: list[_Call] = []
        self._ends: list[tuple[int, int]] = []  # of each network: the call after its last one, where its logits are
        before: dict[str, _Call] = {}
        self.networks = tuple(networks)
        in_steps = [_in_steps(network) for network in self.networks]
        self._ordered = in_steps[0].ordered
        for network in in_steps:
            before = self._add(network, before, calls)
        last_read = {slot: index for index, call in enumerate(calls) for slot in call.inputs}
        for end, result in self._ends:  # the caller reads it then
            last_read[result] = max(end, last_read.get(result, -1))
        self._calls = calls
        self._expired = [
            tuple(slot for slot in {*call.inputs, call.output} if last_read.get(slot, -1) <= index)
            for index, call in enumerate(calls)
        ]
        self._overwrite_inputs()

    def __len__(self) -> int:
        return len(self.networks)

    def _add(self, network: Network, before: dict[str, _Call], calls: list[_Call]) -> dict[str, _Call]:
        """Appends what a network does that `before` does not; its steps by name."""
        modules = network.modules_by_step()
        slots, known = {0: 0}, {}
        for step in network.steps:
            inputs = tuple(slots[slot] for slot in step.inputs)
            module, call = modules[step.name], before.get(step.name)
            if call is None or call.inputs != inputs or not same_module(call.module, module):
                call = _Call(module, module, inputs, len(calls) + 1)
                calls.append(call)
            slots[step.output], known[step.name] = call.output, call
        self._ends.append((len(calls), slots[network.result]))
        return known

    def _overwrite_inputs(self) -> None:
        """Lets a ReLU write into its input, where nothing else reads that: another reader's output may be a view."""
        makers = {call.output: call.module for call in self._calls}
        readers = Counter(slot for call in self._calls for slot in call.inputs)
        for index, (call, expired) in enumerate(zip(self._calls, self._expired, strict=True)):
            slot = call.inputs[0] if len(call.inputs) == 1 else 0
            if is_relu(call.module) and readers[slot] == 1 and slot in expired and isinstance(makers.get(slot), FRESH):
                self._calls[index] = call._replace(run=torch.relu_)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """The logits of each network, shape (batch, classes)."""
        values, logits = {0: self._ordered(images)}, []
        ends = iter(self._ends)
        end, result = next(ends)
        for index, (call, expired) in enumerate(zip(self._calls, self._expired, strict=True)):
            while end == index:
                logits.append(values[result])
                end, result = next(ends)
            values[call.output] = call.run(*[values[slot] for slot in call.inputs])
            for slot in expired:
                values.pop(slot, None)
        return logits + [values[result] for result in (result, *(result for _, result in ends))]


def _in_steps(network: nn.Module) -> Network:
    if isinstance(network, Network):
        return network
    return Network([Step("model", (0,), 1)], {"model": network}, 1)


class _Call(NamedTuple):
    """One step that is run. module: of the network; run: what is called in its place. Slots as in `Step`, but of
    all networks together."""

    module: nn.Module
    run: Any
    inputs: tuple[int, ...]
    output: int


FRESH = (nn.Conv2d, nn.Linear, Add, ScatterAdd)
"""Modules whose output lies in memory of its own."""


def same_module(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules compute the same, to the last bit: of one type, with equal settings and tensors."""
    if a is b:
        return True
    if type(a) is not type(b) or a._modules or b._modules:
        return False
    first, second = _state(a), _state(b)
    return first.keys() == second.keys() and all(_equal(first[key], second[key]) for key in first)


def _state(module: nn.Module) -> dict[str, Any]:
    settings = {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "training"}
    return {**settings, **module._parameters, **module._buffers}


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and torch.equal(a, b))
    return type(a) is type(b) and bool(a == b)


def groups(networks: Iterable[Network]) -> Iterator[list[Network]]:
    """The networks in their order, as many together as it takes to have `GROUP_BYTES` bytes of weights."""
    group: list[Network] = []
    size = 0
    for network in networks:
        group.append(network)
        size += network_bytes(network)
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def network_bytes(network: nn.Module) -> int:
    """Bytes of a network's weights and constants."""
    return sum(tensor.nbytes for tensor in network.state_dict().values())
