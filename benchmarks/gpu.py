"""What a GPU buys and whether it is right there: run by hand, prints a line for each figure as it is measured.

    python benchmarks/gpu.py --json gpu.jsonl
    python benchmarks/gpu.py --device cpu --small     # to see that it runs
    python benchmarks/gpu.py --parts command --options "--model FILE.py:build --weights FILE --data DIR"

In this order, so that what matters most is measured even if the time runs out:

agreement: masks and curves of the same trial on the CPU and on the device (resnet18 at 32 pixels).
relevance: of each rule, against zennit's own rules on the model as loaded and against forward and backward alone, which
    is the least that it can cost; seconds for a batch, and what the memory plan says against the peak.
curve: twenty compact networks as one program, against masks on the dense network.
trial: a default trial by phase (resnet50 at 224 pixels, 100 reference and 500 search images), how many times the host
    waits for the device in one, and how busy the device is.
repair: least squares of a network with half of its filters; and fits of equal shape one by one and as one batch.
precision: accuracies in bf16 and tf32 against fp32: seconds, and predictions that differ.
workers: a search by the command (resnet18, digits) with one, two and four processes on the device, seconds by phase.
command: the same for a network and images of one's own (`--options`); left out without.

Images and weights are random, but for the last two: accuracies mean nothing here, and times do not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torchvision
from pxp_optimize.attribution import Composite, RuleSpec, collect_relevance, collect_scores
from pxp_optimize.optimize.evaluation.evaluate import evaluate, plan_of
from pxp_optimize.optimize.evaluation.memory import sample_bytes
from pxp_optimize.optimize.options import GIVEN, Options
from pxp_optimize.optimize.study.given import prepare_given
from pxp_optimize.optimize.study.prepare import Prepared
from pxp_optimize.pruning import DEFAULT_RATES, accuracy_curve, compact, computed_in, correct, nested, rank, trace
from pxp_optimize.pruning.repair.ridge import fit
from torch import Tensor, nn
from trial import RULES, dense_curve, worst_error, zennit_relevance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="small networks and few images")
    parser.add_argument("--parts", default="agreement,relevance,curve,trial,repair,precision,workers,command")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--options", default="", help="of the command, for the part `command`")
    parser.add_argument("--json", help="append each figure here as a line of JSON")
    args = parser.parse_args()
    bench = Bench(torch.device(args.device), args.small, args.rounds, args.json, shlex.split(args.options))
    name = torch.cuda.get_device_name() if bench.cuda else "CPU"
    bench.tell("machine", device=name, torch=torch.__version__, torchvision=torchvision.__version__)
    for part in args.parts.split(","):
        started = time.perf_counter()
        try:
            getattr(bench, part)()
        except Exception:  # the other parts are worth having
            traceback.print_exc()
            bench.tell(part, failed=traceback.format_exc().splitlines()[-1])
        bench.tell(f"{part} took", seconds=time.perf_counter() - started)


class Bench:
    """The parts, on one device."""

    def __init__(self, device: torch.device, small: bool, rounds: int, path: str | None, options: list[str]) -> None:
        self.device, self.small, self.rounds, self.path, self.options = device, small, rounds, path, options
        self.cuda = device.type == "cuda"

    def tell(self, what: str, **figures: Any) -> None:
        shown = "  ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in figures.items()
        )
        print(f"{what:34} {shown}", flush=True)
        if self.path:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"what": what, **figures}) + "\n")

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, sides: dict[str, Callable[[], Any]]) -> dict[str, float]:
        """The median of each side, run in turn, after one round that does not count."""
        found: dict[str, list[float]] = {name: [] for name in sides}
        for round_ in range(self.rounds + 1):
            for name, run in sides.items():
                self.wait()
                start = time.perf_counter()
                run()
                self.wait()
                if round_:
                    found[name].append(time.perf_counter() - start)
        return {name: statistics.median(values) for name, values in found.items()}

    def peak(self, run: Callable[[], Any]) -> float:
        """Bytes that a run adds on the device; NaN elsewhere than on CUDA."""
        if not self.cuda:
            return float("nan")
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        self.wait()
        return float(torch.cuda.max_memory_allocated() - before)

    def network(self, name: str) -> nn.Module:
        """With random weights, and BatchNorm statistics as of a trained one."""
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.normal_(module.running_mean, 0.0, 0.2)
        if isinstance(model, torchvision.models.VisionTransformer):
            nn.init.normal_(model.heads.head.weight, std=0.02)  # torchvision's is zero: no relevance at all
        return model.eval().requires_grad_(False)

    def images(self, count: int, size: int, seed: int = 0) -> Tensor:
        return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))

    def prepared(
        self, name: str, size: int, reference: int, search: int, device: torch.device, **more: Any
    ) -> Prepared:
        """A task of random images; the targets of the search are the network's own predictions."""
        model = self.network(name)
        inputs, others = self.images(reference, size), self.images(search, size, 1)
        with torch.inference_mode():
            labels = torch.cat(
                [model.to(self.device)(part.to(self.device)).argmax(1) for part in others.split(64)]
            ).cpu()
        options = Options.parsed(model=name, data=GIVEN, device=str(device), **more)
        targets = labels[torch.arange(reference) % search]
        return prepare_given(options, model.cpu(), (inputs, targets), (others, labels), (others, labels))

    # -- parts -----------------------------------------------------------------------------------------

    def agreement(self) -> None:
        size, count = 32, 24 if self.small else 100
        for rule in ("epsilon", "zplus", "gamma"):
            method = Composite.uniform(RuleSpec(rule))
            curves, orders = [], []
            for device in (torch.device("cpu"), self.device):
                task = self.prepared("resnet18", size, 20, count, device, rates=[0, 0.3, 0.6, 0.9]).task
                orders.append(plan_of(task, method).ranking.order.cpu())
                curves.append(evaluate(task, method).accuracy)
            same = float((orders[0] == orders[1]).double().mean())
            differ = max(abs(one - other) for one, other in zip(*curves, strict=True)) * count
            self.tell(f"agreement {rule}", places_in_the_ranking=same, predictions_that_differ=round(differ))

    def relevance(self) -> None:
        cases = [("resnet18", 64, 4)] if self.small else [("resnet50", 224, 64), ("resnet50", 224, 256)]
        cases += [("vit_b_16", 224, 2)] if self.small else [("vit_b_16", 224, 64), ("vit_b_16", 224, 256)]
        for name, size, batch in cases:
            self.relevance_of(name, size, batch)

    def relevance_of(self, name: str, size: int, batch: int) -> None:
        model = self.network(name).to(self.device)
        inputs, targets = self.images(batch, size).to(self.device), torch.arange(batch, device=self.device) % 1000
        graph = trace(model, inputs[:2])
        units = "filters" if name.startswith("resnet") else "heads"
        planned = float(batch * sample_bytes(graph, units, inputs, targets))
        for rule, (spec, theirs) in RULES.items():
            composite = Composite.uniform(spec, softmax="attnlrp" if units == "heads" else None)
            ours = partial(collect_relevance, graph, composite, inputs, targets, units, batch)
            least = partial(collect_scores, graph, "gradient", inputs, targets, units, batch)
            sides: dict[str, Callable[[], Any]] = {"ours": ours, "least": least}
            if units == "filters":
                sides["zennit"] = partial(zennit_relevance, model, name, theirs(), inputs, targets, batch)
            found = self.seconds(sides)
            more = {"of_least": found["ours"] / found["least"]}
            if "zennit" in found:
                with computed_in("fp32", self.device):
                    more["of_zennit"] = found["zennit"] / found["ours"]
                    more["error"] = worst_error(ours(), sides["zennit"]())
            self.tell(f"relevance {name} {batch} {rule}", **found, **more, peak=self.peak(ours), planned=planned)

    def curve(self) -> None:
        name, size, count, batch = ("resnet18", 64, 16, 8) if self.small else ("resnet50", 224, 500, 128)
        model = self.network(name).to(self.device)
        inputs = self.images(count, size).to(self.device)
        with torch.inference_mode():
            labels = torch.cat([model(part).argmax(1) for part in inputs.split(batch)])
        graph = trace(model, inputs[:2])
        relevance = collect_relevance(graph, Composite.uniform(RuleSpec("epsilon")), inputs[:batch], labels[:batch])
        masks = list(nested(rank(relevance), DEFAULT_RATES))
        sides = {
            "ours": lambda: accuracy_curve(graph, relevance, inputs, labels, DEFAULT_RATES, batch_size=batch),
            "masks": lambda: dense_curve(model, masks, inputs, labels, batch),
        }
        differ = max(abs(a - b) for a, b in zip(sides["ours"](), sides["masks"](), strict=True)) * count
        found = self.seconds(sides)
        self.tell(f"curve {name}", **found, ratio=found["masks"] / found["ours"], differ=round(differ))

    def trial(self) -> None:
        name, size = ("resnet18", 64) if self.small else ("resnet50", 224)
        reference, search = (10, 20) if self.small else (100, 500)
        task = self.prepared(name, size, reference, search, self.device).task
        self.tell(f"trial {name}", batch_size=task.batch_size)
        for rule in ("epsilon", "zplus"):
            fresh = replace(task, curves={}, plans={}, unpruned={}, variants={})
            with self.busy() as device:
                start = time.perf_counter()
                found = evaluate(fresh, Composite.uniform(RuleSpec(rule)))
                self.wait()
                whole = time.perf_counter() - start
            self.tell(f"trial {name} {rule}", seconds=whole, **found.seconds, device_busy=device.get("share", 0.0))
        fresh = replace(task, curves={}, plans={}, unpruned={}, variants={})
        waits = self.waits(lambda: evaluate(fresh, Composite.uniform(RuleSpec("epsilon"))))
        for place, count in sorted(waits.items(), key=lambda item: -item[1])[:12]:
            self.tell("host waits for the device", count=count, at=place)
        self.tell("host waits for the device", count=sum(waits.values()), at="all of a trial")

    def repair(self) -> None:
        name, size, reference = ("resnet18", 64, 10) if self.small else ("resnet50", 224, 100)
        task = self.prepared(name, size, reference, reference, self.device).task
        graph, mend = task.graph, task.repair
        chance = torch.Generator().manual_seed(0)
        scores = {layer: torch.rand(units, generator=chance) for layer, units in graph.units(task.units).items()}
        masks = {layer: mask.to(self.device) for layer, mask in rank(scores).masks(0.5).items()}
        small = compact(graph, masks)
        assert mend is not None
        mend(graph, small, masks)  # which notes what the unpruned network gives
        found = self.seconds({"seconds": lambda: mend(graph, small, masks)})
        waits = sum(self.waits(lambda: mend(graph, small, masks)).values())
        self.tell(f"repair {name}", **found, host_waits=waits, peak=self.peak(lambda: mend(graph, small, masks)))
        for features, units in (
            ((64, 64), (576, 64)) if self.small else ((256, 64), (576, 64), (1152, 128), (2304, 256))
        ):
            x = torch.randn(8, 8 * max(features, 256), features, generator=chance).to(self.device)
            y = torch.randn(8, x.shape[1], units, generator=chance).to(self.device)
            prior = torch.randn(8, units, features, generator=chance).to(self.device)
            found = self.seconds(
                {
                    "one_by_one": lambda x=x, y=y, prior=prior: list(map(fit, x, y, prior)),
                    "together": partial(fit, x, y, prior),
                }
            )
            self.tell(f"8 fits of {features} features, {units} units", **found)

    def precision(self) -> None:
        name, size, count, batch = ("resnet18", 64, 16, 8) if self.small else ("resnet50", 224, 500, 128)
        graph = trace(self.network(name).to(self.device), self.images(2, size).to(self.device))
        inputs = self.images(count, size).to(self.device)
        labels = correct_labels(graph.network, inputs, batch)
        kinds = ("fp32", "bf16", *(["tf32"] if self.cuda else []))
        sides = {
            kind: partial(correct, graph.network, inputs, labels, batch_size=batch, precision=kind) for kind in kinds
        }
        found = self.seconds(sides)
        differ = {f"differ_{kind}": count - int(run().sum()) for kind, run in sides.items()}
        self.tell(f"precision {name}", **found, **differ)

    def workers(self) -> None:
        trials = 2 if self.small else 12
        more = ["--rates", "0,0.5", "--search-samples", "50", "--holdout-samples", "50"] if self.small else []
        with tempfile.TemporaryDirectory() as cache:
            for count in (1, 2) if self.small else (1, 2, 4):
                options = ["--model", "resnet18", "--trials", str(trials), "--workers", str(count), *more]
                self.tell(f"{trials} trials by {count}", **self.phases(options, cache))

    def command(self) -> None:
        if self.options:
            with tempfile.TemporaryDirectory() as cache:
                self.tell("command", **self.phases(self.options, cache))

    def phases(self, options: list[str], cache: str) -> dict[str, float]:
        """Seconds of each phase of a run of the command, as its last lines say. cache: for the trained network."""
        with tempfile.TemporaryDirectory() as folder:
            run = subprocess.run(
                [sys.executable, "-m", "pxp_optimize.optimize.commands.main", *options, "--device", str(self.device)],
                cwd=folder,
                env={**os.environ, "XDG_CACHE_HOME": cache},
                text=True,
                capture_output=True,
                check=False,
            )
        if run.returncode:
            raise RuntimeError(run.stderr.strip().splitlines()[-1])
        line = next(line for line in run.stderr.splitlines() + run.stdout.splitlines() if line.startswith("time "))
        phases = re.findall(r"([a-z ]+?) (?:(\d+) min )?(\d+) s", line.removeprefix("time"))
        return {name.strip(): 60 * int(minutes or 0) + int(seconds) for name, minutes, seconds in phases}

    # -- what a device does -----------------------------------------------------------------------------

    @contextmanager
    def busy(self) -> Iterator[dict[str, float]]:
        """The part of the time in which the device runs kernels, by torch's profiler."""
        found: dict[str, float] = {}
        if not self.cuda:
            yield found
            return
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            start = time.perf_counter()
            yield found
            self.wait()
            spent = time.perf_counter() - start
        kernels = sum(event.self_device_time_total for event in profile.key_averages())
        found["share"] = kernels / 1e6 / spent

    def waits(self, run: Callable[[], Any]) -> dict[str, int]:
        """How often the host waited for the device, by the place in the project's code; nothing where it is none."""
        found: dict[str, int] = {}
        if not self.cuda:
            return found

        def note(message: Any, *_: Any, **__: Any) -> None:
            if "synchroniz" in str(message):
                frames = [frame for frame in traceback.extract_stack() if "pxp_optimize" in frame.filename]
                place = (
                    f"{frames[-1].filename.split('pxp_optimize/')[-1]}:{frames[-1].lineno}" if frames else "elsewhere"
                )
                found[place] = found.get(place, 0) + 1

        shown = warnings.showwarning
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.showwarning = note
                run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
            warnings.showwarning = shown
        return found


@torch.inference_mode()
def correct_labels(network: nn.Module, inputs: Tensor, batch: int) -> Tensor:
    """What the network predicts in fp32."""
    with computed_in("fp32", inputs.device):
        return torch.cat([network(part).argmax(1) for part in inputs.split(batch)])


if __name__ == "__main__":
    main()
