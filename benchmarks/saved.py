"""Networks that save the same multiply-adds, in one table: what `rivals.py` and `mimic.py` share."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from arguments import add_task
from pxp_optimize.optimize.evaluation.task import Task
from pxp_optimize.optimize.options import Options
from pxp_optimize.optimize.study.prepare import Prepared, prepare
from pxp_optimize.pruning import Graph, Masks, compact, correct, macs, without_constants
from torch import Tensor, nn

Found = tuple[float, Tensor]
"""What part of the multiply-adds is saved, and which holdout images are right."""


@dataclass(frozen=True)
class Case:
    """A network with its images. only: prunable layers that may lose units. targets: parts to save, ascending."""

    prepared: Prepared
    options: Options
    only: frozenset[str]
    targets: tuple[float, ...]

    @property
    def task(self) -> Task:
        return self.prepared.task

    @property
    def graph(self) -> Graph:
        return self.task.graph

    @property
    def image(self) -> Tensor:
        return self.task.holdout.inputs[0:1]

    def saved(self, network: nn.Module) -> float:
        return 1 - macs(network, self.image) / macs(self.graph.network, self.image)

    def measured(self, network: nn.Module) -> Found:
        holdout = self.task.holdout
        return self.saved(network), correct(network, holdout.inputs, holdout.targets, logits=self.task.logits)

    def part_saving(self, masks: Callable[[float], Masks], target: float) -> float:
        """The lowest part, to a thousandth, whose masks save as much; 1 where none does."""
        low, high = 0, 1000
        while low < high:
            middle = (low + high) // 2
            small = without_constants(compact(self.graph, masks(middle / 1000)).network)
            low, high = (low, middle) if self.saved(small) >= target else (middle + 1, high)
        return low / 1000


def arguments(text: str | None) -> argparse.ArgumentParser:
    """The options of a table of networks at the same multiply-adds."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task(parser, search_samples=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--saved", default="0.3,0.5,0.7")
    parser.add_argument("--only", default="", help="regular expression: the layers that may lose units")
    parser.add_argument("--rows", default="", help="regular expression: the rows to measure")
    parser.add_argument("--json", help="add a line for each row here, and take those that are there from it")
    return parser


def case_of(args: argparse.Namespace, **more: Any) -> Case:
    """What the options say. more: options of a study."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    keys = ("model", "weights", "data", "image_size", "reference_samples", "search_samples", "holdout_samples", "seed")
    given: dict[str, Any] = {key: getattr(args, key) for key in keys}
    given |= {key: getattr(args, key) for key in ("mean", "std") if getattr(args, key)}
    options = Options.parsed(**given, **more, device="cpu", objective="macs")
    prepared = prepare(options)
    only = [name for name in prepared.task.graph.units(prepared.task.units) if re.search(args.only, name)]
    return Case(prepared, options, frozenset(only), tuple(map(float, args.saved.split(","))))


def measure(
    args: argparse.Namespace, case: Case, rows: Mapping[str, Callable[[], Iterator[Found]]], beside: str
) -> None:
    """Measures rows and prints the table. beside: the row that the others' differences are to."""
    known = _known(args.json) if args.json else {}
    for name, row in rows.items():
        if name in known or not re.search(args.rows, name):
            continue
        start = time.process_time()
        try:
            cells = [[saved, right.tolist()] for saved, right in row()]
        except Exception as error:  # what another library cannot prune is a result, too
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        known[name] = {"row": name, "cells": cells, "seconds": time.process_time() - start}
        shown = [f"{saved:.3f}: {sum(right) / len(right):.3f}" for saved, right in cells]
        print(name, shown, f"{known[name]['seconds']:.0f} s", file=sys.stderr, flush=True)
        if args.json:
            with open(args.json, "a", encoding="utf-8") as file:
                file.write(json.dumps(known[name]) + "\n")
    whole = case.measured(case.graph.network)[1].double()
    print(f"{args.model}, {len(case.only)} layers, {len(whole)} holdout images, unpruned {_with_error(whole)}")
    print_table({name: known[name] for name in rows if name in known}, case.targets, beside)


def _known(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            return {row["row"]: row for row in map(json.loads, file)}
    except FileNotFoundError:
        return {}


def _with_error(values: Tensor) -> str:
    return f"{float(values.mean()):.3f} ± {float(values.std() / len(values) ** 0.5):.3f}"


def print_table(known: Mapping[str, Any], targets: Sequence[float], beside: str) -> None:
    """Accuracy at each part, with standard errors; and the difference to one of the rows."""
    print("| | " + " | ".join(f"{target:.0%} saved" for target in targets) + " |")
    print("|---" * (1 + len(targets)) + "|")
    for name, row in known.items():
        cells = []
        for index, (saved, right) in enumerate(row["cells"]):
            values = torch.tensor(right, dtype=torch.float64)
            cell = _with_error(values)
            if abs(saved - targets[index]) > 0.005:
                cell += f" (at {saved:.0%})"
            if beside in known and name != beside:
                difference = values - torch.tensor(known[beside]["cells"][index][1], dtype=torch.float64)
                cell += f", {float(difference.mean()):+.3f} ± {float(difference.std() / len(values) ** 0.5):.3f}"
            cells.append(cell)
        print(f"| {name} | " + " | ".join(cells) + " |")
