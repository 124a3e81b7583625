"""The last step after pruning and repair: training without labels, to give what the unpruned network gives.

Repairs fit one layer after the other in closed form. Here all layers of the network that was chosen are trained
together, by Adam, so that its features before pooling and its logits come nearer to the unpruned network's on the same
few images: feature mimicking as in MiR (Wang et al. 2022, arXiv 2201.02620) and PRACTISE (Wang and Wu 2022, arXiv
2202.07861), which need no labels and overfit less than training by few labels does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .compaction import Compactor, check_masks
from .convolution import convolution, plain
from .curve import Batches
from .graph import Graph
from .masks import Masks
from .network import BATCH, Network
from .precision import computed_in
from .repair import make_repair
from .schedule import pruned

LEARNING_RATE = 5e-4
"""At the beginning; it falls to zero along half a cosine."""
IN_BATCH = 32
TEMPERATURE = 2.0
"""That logits are divided by before they are compared."""
LEAST = 1e-6
"""Variance of features, at least: where they are all the same, errors are measured in this."""
SAME = 0.8
"""Part of the images of which the unpruned network must say the same class when they are changed in a way, for batches
to be changed so: mirrored photographs show what they showed, mirrored digits do not."""
HELD_OUT = 0.2
"""Part of the images that says how many steps help."""
CHECKS = 10
"""How often it is asked."""


@dataclass(frozen=True)
class Picked:
    """Some of the images, by their indices."""

    images: Batches
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: slice) -> Tensor:
        return torch.cat([self.images[row : row + 1] for row in self.rows[item]])


@torch.inference_mode(False)
@computed_in("fp32")
def mimic(
    graph: Graph,
    small: Graph,
    masks: Masks,
    images: Batches,
    steps: int,
    *,
    repair: str = "none",
    seed: int = 0,
    logits: Tensor | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Graph:
    """A pruned network trained to give what the unpruned one gives: features before pooling, and logits.

    Its weights end halfway between what they were and what training makes of them, which is better than either on
    images that were not seen (Wortsman et al. 2022, arXiv 2109.01903). How many steps help is found first, with a part
    of the images (`HELD_OUT`) kept back from repair and training: the network is repaired by the others and trained so
    often as is asked for, and the number of steps after which the loss on those kept back was lowest is what the
    network then gets, from all images. It may be none: then it stays as it is. The same seed gives the same network on
    the same machine.

    Args:
        graph: the unpruned network.
        small: its compact form under the masks, repaired from the images. It is not changed.
        masks: which units it has, as `compact` takes them.
        images: float images, (n, channels, height, width), unlabelled.
        steps: of Adam, at most; each reads `IN_BATCH` images, averaged with one another, and mirrored and shifted where
            the unpruned network bears it (`SAME`).
        repair: what repaired it, by name.
        seed: of what is held out and of the batches.
        logits: indices of those that compete; None for all.
        advance: told of each step that is done, of twice as many at most.

    Raises:
        ValueError: fewer than two images.
    """
    if steps == 0 or small is graph:
        return small
    if len(images) < 2:
        raise ValueError("mimicking needs two images or more: one is held out")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    n_held = max(1, round(HELD_OUT * len(images)))
    held, others = Picked(images, sorted(order[:n_held])), Picked(images, sorted(order[n_held:]))
    goals = _Goals(graph, masks, logits)
    goals.find_changes(others, seed)
    start = pruned(graph, masks, make_repair(repair, graph, others))
    _, best = goals.trained(start, others, steps, steps, seed, held, advance)
    return goals.trained(small, images, steps, best, seed, None, advance)[0] if best else small


class _Goals:
    """What a compact form of a graph is to give: the values of the graph that come last before positions are pooled,
    those of their channels that it has; and the logits."""

    def __init__(self, graph: Graph, masks: Masks, logits: Tensor | None) -> None:
        self.logits = None if logits is None else logits.clone()  # it may have been made in inference mode
        self.network = plain(graph.network)
        compactor = Compactor(graph, check_masks(graph, masks))
        left = {step.output for step in compactor.run().network.steps}
        features = [slot for slot in unpooled(graph.network) if compactor.slots[slot] in left]
        self.live = [compactor.states[slot] for slot in features]
        self.slots = features
        self.small_slots = [compactor.slots[slot] for slot in features]
        self.changes: list[Change] = []

    @torch.no_grad()
    def find_changes(self, images: Batches, seed: int) -> None:
        """Which ways to change images the unpruned network bears."""
        chance, same = torch.Generator().manual_seed(seed), dict.fromkeys(CHANGES, 0)
        for start in range(0, len(images), IN_BATCH):
            batch = images[start : start + IN_BATCH]
            said = self._classes(batch)
            for change in same:
                same[change] += int((self._classes(change(batch, chance)) == said).sum())
        self.changes = [change for change, count in same.items() if count >= SAME * len(images)]

    def _classes(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        return (logits if self.logits is None else logits.index_select(1, self.logits)).argmax(1)

    @torch.no_grad()
    def goals(self, images: Tensor) -> list[Tensor]:
        """The features, and last the logits."""
        *features, logits = _values(self.network, images, self.slots)
        kept = (
            value if state is None else value.index_select(state.dim, state.live)
            for value, state in zip(features, self.live, strict=True)
        )
        return [*kept, logits]

    def loss(self, network: Network, images: Tensor, goals: Sequence[Tensor]) -> Tensor:
        """How far a network is from the goals: squared errors of features, each in units of its goal's variance, and
        the divergence of the probabilities, softened."""
        *features, logits = _values(network, images, self.small_slots)
        pair = [each if self.logits is None else each.index_select(1, self.logits) for each in (logits, goals[-1])]
        found, wanted = (F.log_softmax(each / TEMPERATURE, 1) for each in pair)
        loss = F.kl_div(found, wanted, reduction="batchmean", log_target=True) * TEMPERATURE**2
        for value, goal in zip(features, goals, strict=False):
            loss = loss + F.mse_loss(value, goal) / goal.var().clamp(min=LEAST) / len(features)
        return loss

    @torch.enable_grad()
    def trained(
        self,
        small: Graph,
        images: Batches,
        steps: int,
        until: int,
        seed: int,
        held: Batches | None,
        advance: Callable[[int], None],
    ) -> tuple[Graph, int]:
        """Halfway to a network after the first `until` of the steps; and after which of them (0 for none) the loss of
        that on the images that are held out was lowest."""
        before = plain(small.network)
        network = copy.deepcopy(before).requires_grad_()
        optimizer = torch.optim.Adam([value for value in network.parameters() if value.numel()], LEARNING_RATE)
        chance = torch.Generator().manual_seed(seed)
        lowest, best = math.inf, 0
        every = -(-steps // CHECKS)
        for step in range(until + 1):
            if held is not None and (step % every == 0 or step == until):
                found = self._mean_loss(_halfway(before, network), held)
                if found < lowest:
                    lowest, best = found, step
            if step == until:
                break
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / steps)) / 2
            batch = Picked(images, _drawn(len(images), chance))[:]
            for change in self.changes:
                half = (torch.rand(len(batch), generator=chance) < 0.5).to(batch.device)
                batch = torch.where(half.view(-1, 1, 1, 1), change(batch, chance), batch)
            batch = averaged(batch, chance)
            optimizer.zero_grad()
            self.loss(network, batch, self.goals(batch)).backward()
            optimizer.step()
            advance(1)
        network = _halfway(before, network)
        modules = {name: convolution(module) for name, module in network.modules_by_step().items()}
        return replace(small, network=small.network.replaced(modules)), best

    @torch.no_grad()
    def _mean_loss(self, network: Network, images: Batches) -> float:
        total = 0.0
        for start in range(0, len(images), IN_BATCH):
            batch = images[start : start + IN_BATCH]
            total += float(self.loss(network, batch, self.goals(batch))) * len(batch)
        return total / len(images)


def unpooled(network: Network) -> list[int]:
    """The slots of the features before pooling: going back from the logits, of each way the first value that has maps
    or tokens and that no layer without weights has made smaller. Empty for a network without any."""
    makers, shapes, modules = {step.output: step for step in network.steps}, network.shapes(), network.modules_by_step()
    found: dict[int, None] = {}
    ahead = [network.result]
    while ahead:
        slot = ahead.pop()
        if slot not in makers:
            continue
        step, shape = makers[slot], shapes[slot]
        pools = not [*modules[step.name].parameters()] and any(
            math.prod(shape) < math.prod(shapes[given]) for given in step.inputs
        )
        if len(shape) > 2 and shape[0] == BATCH and not pools:
            found[slot] = None
        else:
            ahead += step.inputs
    return list(found)


Change = Callable[[Tensor, torch.Generator], Tensor]


def mirrored(images: Tensor, chance: torch.Generator) -> Tensor:
    """Left and right exchanged."""
    return images.flip(3)


def shifted(images: Tensor, chance: torch.Generator) -> Tensor:
    """The images moved by up to an eighth of their size, their edges continued."""
    height, width = images.shape[2:]
    down, right = height // 8, width // 8
    padded = F.pad(images, (right, right, down, down), mode="replicate")
    rows = torch.randint(2 * down + 1, (len(images),), generator=chance).tolist()
    columns = torch.randint(2 * right + 1, (len(images),), generator=chance).tolist()
    parts = [
        image[:, row : row + height, column : column + width]
        for image, row, column in zip(padded, rows, columns, strict=True)
    ]
    return torch.stack(parts)


CHANGES: tuple[Change, ...] = (mirrored, shifted)
"""Ways to make other images of those that there are."""


def averaged(images: Tensor, chance: torch.Generator) -> Tensor:
    """The images, each averaged with another one by a random weight: what the unpruned network gives for these is a
    goal like any other (see `repair.images`)."""
    count = len(images)
    weight = torch.rand(count, generator=chance)
    weight = weight.to(images.device, images.dtype).view(-1, *[1] * (images.dim() - 1))
    other = images[torch.randperm(count, generator=chance).to(images.device)]
    return other + weight * (images - other)


@torch.no_grad()
def _halfway(before: Network, after: Network) -> Network:
    """The network whose weights lie in the middle between those of two."""
    network = copy.deepcopy(after).requires_grad_(False)
    for value, old in zip(network.parameters(), before.parameters(), strict=True):
        value.lerp_(old, 0.5)
    return network


def _drawn(count: int, chance: torch.Generator) -> list[int]:
    """The images of a batch."""
    return torch.randperm(count, generator=chance)[:IN_BATCH].tolist()


def _values(network: Network, images: Tensor, slots: Sequence[int]) -> list[Tensor]:
    """The values of some slots, and last the logits, for a batch of images."""
    wanted = {*slots, network.result}
    found = {
        step.output: visit.outputs[0]
        for step, visit in zip(network.steps, network.walk([images]), strict=True)
        if step.output in wanted
    }
    return [found[slot] for slot in (*slots, network.result)]
