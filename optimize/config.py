"""The options of a run: one dataclass that the command line, the TOML file and the code share.

Each field is an option. Its metadata hold what a person sees (the help line) and what a value must be (the
parser or the choices), so that an option is declared once. Nothing here imports torch: `--help` stays fast.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .errors import UserError
from .pruners import NONE, PRUNERS
from .samplers import AUTO, GRID, SAMPLERS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPAIRS = ("auto", "none", "batchnorm", "least-squares", "batchnorm+least-squares")
PRECISIONS = ("fp32", "tf32", "bf16")
SPACES = ("auto", "depth", "type", "layer", "paper")
UNITS = ("auto", "filters", "neurons", "heads")
NO_GATES = "-gates"  # what ends units without those of layers that only feed gates
OBJECTIVES = ("auc", "auc,macs", "auc,latency")
DEFAULT_RATES = "0:0.95:0.05"

LISTS = ("mean", "std", "classes", "rates")
"""Options that take a list in a TOML file."""

Parser = Callable[[object], Any]


def parse_rates(value: object) -> tuple[float, ...]:
    """Pruning rates from a list such as "0,0.1,0.5", in which "start:stop:step" stands for evenly spaced ones (stop
    included where a step lands on it), or from a list of numbers.

    Raises:
        ValueError: not numbers, not ascending, outside [0, 1), fewer than two, or not starting at 0 (the
            unpruned network, against which the others are measured).
    """
    rates: list[float] = []
    for part in value.split(",") if isinstance(value, str) else _items(value):
        rates += _evenly(part, value) if isinstance(part, str) and ":" in part else _numbers([part], value)
    if len(rates) < 2:
        raise ValueError(f"{value!r} has fewer than two rates")
    if any(b <= a for a, b in itertools.pairwise(rates)):
        raise ValueError(f"{value!r} is not in ascending order")
    if rates[0] != 0:
        raise ValueError(f"{value!r} does not start at 0, the unpruned network")
    if rates[-1] >= 1:
        raise ValueError(f"{value!r} reaches 1 or more: a rate is the part of the units that is removed")
    return tuple(rates)


def _evenly(text: str, whole: object) -> list[float]:
    """The rates of "start:stop:step"."""
    parts = text.split(":")
    if len(parts) != 3:
        raise ValueError(f"{text!r} is not start:stop:step, such as {DEFAULT_RATES}")
    start, stop, step = _numbers(parts, whole)
    if step <= 0 or stop <= start:
        raise ValueError(f"{text!r} has no rates: step must be above 0 and stop above start")
    if step < 1e-4:
        raise ValueError(f"{text!r} has too small a step: at least 0.0001")
    if start < 0 or stop >= 1 + step:  # before there are too many of them
        raise ValueError(f"{text!r} leaves the rates, from 0 up to, but not, 1")
    count = math.floor((stop - start) / step + 1e-9) + 1
    # rounded, so that a rate is 0.15 and not 0.15000000000000002
    return [round(start + index * step, 10) for index in range(count)]


def parse_rate(value: object) -> float:
    """A pruning rate: 0 or more, below 1.

    Raises:
        ValueError: not a number, or out of range.
    """
    (rate,) = _numbers([value], value)
    if not 0 <= rate < 1:
        raise ValueError(f"{value!r} is not a rate: from 0 up to, but not, 1")
    return rate


def parse_classes(value: object) -> str:
    """Which classes, as `data.pick_classes` reads it: names or indices, or a number of them to draw.

    So "3" draws three classes, and "3,5" or "cat,dog" or a list are these two. A name with a comma stands in quotes:
    '"cat, tabby",dog'.

    Raises:
        ValueError: fewer than two classes, or one named twice.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    parts = split_names(value) if isinstance(value, str) else _items(value)
    names = [text for part in parts if (text := str(part).strip())]
    if len(names) == 1 and names[0].isdecimal() and isinstance(value, str):
        if int(names[0]) < 2:
            raise ValueError(f"{names[0]} classes cannot be told apart: at least 2")
    elif len(names) < 2:
        raise ValueError(f"{value!r} names one class: give a list such as 3,5 or a number to draw")
    elif len(set(names)) < len(names):
        raise ValueError(f"{value!r} names a class twice")
    return ",".join('"' + name.replace('"', '""') + '"' if {",", '"'} & set(name) else name for name in names)


def split_names(text: str) -> list[str]:
    """The parts of a list with commas; within double quotes a comma is part of a name.

    Raises:
        ValueError: quotes that do not end.
    """
    try:
        parts = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise ValueError(f"{text!r} is no list: {error}") from error
    return [part.strip() for part in parts]


def parse_channels(value: object) -> tuple[float, ...]:
    """One value for all channels or three for red, green and blue, in units of [0, 1].

    Raises:
        ValueError: another count, or not numbers.
    """
    parts = value.split(",") if isinstance(value, str) else [value] if _is_number(value) else _items(value)
    numbers = _numbers(parts, value)
    if len(numbers) not in (1, 3):
        raise ValueError(f"{value!r} has {len(numbers)} values: give one, or three for red, green and blue")
    return numbers


def parse_deviation(value: object) -> tuple[float, ...]:
    """As `parse_channels`, for values that divide: above 0."""
    numbers = parse_channels(value)
    if min(numbers) <= 0:
        raise ValueError(f"{value!r} must be above 0")
    return numbers


def parse_schedule(value: object) -> str:
    """When relevance is recomputed: "auto", "oneshot", "every:RATE" or "steps:N"; or a list of them, to search.

    Raises:
        ValueError: something else, a number out of range, one that is named twice, or "auto" in a list.
    """
    texts = str(value).split(",")
    if len(texts) > 1:
        return _several(texts, parse_schedule, value)
    kind, _, number = str(value).partition(":")
    if kind in ("auto", "oneshot") and not number:
        return kind
    with contextlib.suppress(ValueError):
        if kind == "every" and 0.001 <= float(number) < 1:
            return f"every:{float(number):g}"
        if kind == "steps" and 2 <= int(number) <= 1000:
            return f"every:{1 / int(number):g}"
    raise ValueError(f"{value!r} is not auto, oneshot, every:RATE (such as every:0.05) or steps:N (such as steps:10)")


def parse_repair(value: object) -> str:
    """A repair of `REPAIRS`, or a list of them, to search.

    Raises:
        ValueError: something else, one that is named twice, or "auto" in a list.
    """
    texts = str(value).split(",")
    if len(texts) > 1:
        return _several(texts, parse_repair, value)
    if value not in REPAIRS:
        raise ValueError(f"{value!r} is not {', '.join(REPAIRS)}")
    return str(value)


def _several(texts: Sequence[str], parse: Callable[[object], str], whole: object) -> str:
    found = [parse(text.strip()) for text in texts]
    if "auto" in found:
        raise ValueError(f"{whole!r}: auto stands alone")
    if len(set(found)) < len(found):
        raise ValueError(f"{whole!r} names one twice")
    return ",".join(found)


def parse_units(value: object) -> str:
    """Kinds of units joined by "+", in alphabetical order, with "-gates" behind them or not; or "auto".

    Raises:
        ValueError: an unknown kind, or one named twice.
    """
    text = str(value)
    kinds, end = text.removesuffix(NO_GATES).split("+"), NO_GATES if text.endswith(NO_GATES) else ""
    for kind in kinds:
        if kind not in UNITS or (kind == "auto" and (end or len(kinds) > 1)) or kinds.count(kind) > 1:
            raise ValueError(
                f"{value!r} is not made of {', '.join(UNITS[1:])} (joined by +; -gates may end them), or auto"
            )
    return "+".join(sorted(kinds)) + end


def parse_space(value: object) -> str:
    """A space by name, or the path of a TOML file (`spacefile.read_space`).

    Raises:
        ValueError: neither.
    """
    if value not in SPACES and not str(value).endswith(".toml"):
        raise ValueError(f"{value!r} is not {', '.join(SPACES)} or a .toml file")
    return str(value)


def count_from(minimum: int, maximum: int = 2**31 - 1) -> Parser:
    """A parser of whole numbers from `minimum` on, up to `maximum`."""

    def parse(value: object) -> int:
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if not isinstance(number, int) or isinstance(number, bool):
            raise ValueError(f"{value!r} is not a whole number")
        if number < minimum:
            raise ValueError(f"{number} is too small: at least {minimum}")
        if number > maximum:
            raise ValueError(f"{value!r:.20} is too large: at most {maximum}")
        return number

    return parse


def parse_batch_size(value: object) -> int | str:
    """A whole number from 1 on, or "auto"."""
    return "auto" if value == "auto" else count_from(1)(value)


def parse_seconds(value: object) -> float:
    """A time in seconds, above 0."""
    (seconds,) = _numbers([value], value)
    if seconds <= 0:
        raise ValueError(f"{value!r} must be above 0")
    return seconds


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _items(value: object) -> Sequence[object]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{value!r} is not a list")
    return value


def _numbers(parts: Sequence[object], whole: object) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in parts if not isinstance(part, bool))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if len(numbers) != len(parts) or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{whole!r} is not made of numbers")
    return numbers


def _option(
    default: Any,
    help: str,
    *,
    parse: Parser | None = None,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    unset: str | None = None,
    shown: str | None = None,
    alias: str | None = None,
) -> Any:
    """A field with what the command line needs: `unset` says what None stands for, `alias` is another name."""
    metadata = {"help": help, "parse": parse, "choices": choices, "metavar": metavar, "alias": alias}
    return field(default=default, metadata={**metadata, "unset": unset, "shown": shown})


@dataclass(frozen=True)
class Options:
    """What `pxp-optimize` runs. Field names are the command line's, with underscores."""

    model: str = _option(
        "resnet18",
        "Network to explain and prune: a torchvision classifier's name (`pxp-optimize models` lists them), "
        "or package.module:function or path/file.py:function that returns a torch.nn.Module.",
        metavar="NAME",
    )
    weights: str = _option(
        "default",
        "Its weights: `default` (trained here for the digits, torchvision's pretrained ones otherwise), "
        "a .pt, .pth or .safetensors file, or the name of torchvision weights.",
        metavar="NAME|FILE",
    )
    data: str = _option(
        "digits",
        "Images: `digits` (1,797 handwritten digits, embedded), `imagenette` (downloaded), or a folder "
        "with one sub-folder per class, inside train/ and val/ or at the top.",
        metavar="NAME|DIR",
    )
    units: str = _option(
        "auto",
        "What is pruned: filters of convolutions, neurons of linear layers, attention heads, or several joined "
        "by +; with -gates at the end (filters-gates) without layers that only feed gates. `auto` is filters-gates "
        "where there are such layers, else filters, or heads for a transformer.",
        parse=parse_units,
        metavar="KIND[+KIND]",
    )
    image_size: int | None = _option(
        None,
        "Height and width of the network's input, in pixels.",
        parse=count_from(8),
        metavar="N",
        unset="the weights' own",
    )
    resize: int | None = _option(
        None,
        "Smaller edge, in pixels, that images are resized to before the middle of --image-size is cut out.",
        parse=count_from(8),
        metavar="N",
        unset="the weights' own; --image-size for a file's or a function's",
    )
    mean: tuple[float, ...] | None = _option(
        None,
        "Mean that is subtracted from pixels in [0, 1]: one value, or three such as 0.485,0.456,0.406.",
        parse=parse_channels,
        metavar="X[,X,X]",
        unset="the weights' own",
    )
    std: tuple[float, ...] | None = _option(
        None,
        "Standard deviation that pixels are divided by: one value or three.",
        parse=parse_deviation,
        metavar="X[,X,X]",
        unset="the weights' own",
    )
    classes: str | None = _option(
        None,
        "Only these classes, by name or index (3,5 or cat,dog; a name with a comma in double quotes), or a single "
        "number to draw that many; the network's other outputs are ignored.",
        parse=parse_classes,
        metavar="LIST|N",
        unset="all",
    )
    reference_samples: int = _option(
        10,
        "Images per class that relevance is computed on, from the training images.",
        parse=count_from(1),
        metavar="N",
    )
    draws: int = _option(
        1,
        "Draws of the reference images that a trial's AUC is the mean over, each as costly as the first one: a "
        "composite that is best for one draw may not be for the next.",
        parse=count_from(1, 50),
        metavar="N",
    )
    search_samples: int | None = _option(
        None,
        "Images in all that a trial is scored on, of each class in proportion.",
        parse=count_from(1),
        metavar="N",
        unset="at most 500",
    )
    holdout_samples: int | None = _option(
        None,
        "Images in all that the search never sees and the results are reported on.",
        parse=count_from(1),
        metavar="N",
        unset="at most 500",
    )
    rates: tuple[float, ...] = _option(
        parse_rates(DEFAULT_RATES),
        "Parts of the units to remove, from 0 on: start:stop:step, or a list such as 0,0.25,0.5 or 0,0.9:0.98:0.02.",
        parse=parse_rates,
        metavar="RATES",
        shown=DEFAULT_RATES,
    )
    schedule: str = _option(
        "auto",
        "When relevance is recomputed: `oneshot` ranks all units once (the paper's way), every:0.05 again on the "
        "network as pruned so far after each such step, steps:N in N steps. Several, joined by commas, are searched; "
        "composites that are known before take the first. `auto` is every:0.1.",
        parse=parse_schedule,
        metavar="SCHEDULE",
    )
    repair: str = _option(
        "auto",
        "What is done to a pruned network, without labels or training, from the reference images: `none`, "
        "`batchnorm` (its statistics re-estimated where it follows a layer), "
        "`least-squares` (the layers behind pruned units refitted). "
        "Or both, batchnorm+least-squares. Several, joined by commas, are searched. `auto` is least-squares.",
        parse=parse_repair,
        metavar="REPAIR",
    )
    repair_samples: int | None = _option(
        None,
        "Images in all that repairs read, from the training images and without their labels: the reference samples "
        "and as many more.",
        parse=count_from(2),
        metavar="N",
        unset="the reference samples",
    )
    space: str = _option(
        "auto",
        "Which composites are searched: `depth` (a rule with its number per depth group), `type` (per type of "
        "layer within one), `layer` (gamma of each layer, numbers only), "
        "`paper` (the 256 of the paper), or a TOML file with a space of your own. `auto` is depth, for transformers "
        "type.",
        parse=parse_space,
        metavar="NAME|FILE",
    )
    start_from: str | None = _option(
        None,
        "Composite to try early, such as an earlier study's best.json, of this model or another one.",
        metavar="FILE",
        unset="none",
        alias="from",
    )
    objective: str = _option(
        "auc",
        "What trials are judged by: `auc`, the area under accuracy against the part of the units that is gone, or "
        "also, as a second objective, against the part of the multiply-adds (auc,macs) or of the time (auc,latency) "
        "that is saved. With two, the front of the trials that none beats in both is listed, and the one with the "
        "highest AUC exported.",
        choices=OBJECTIVES,
    )
    trials: int = _option(
        100, "Finished trials to reach, those of earlier runs included.", parse=count_from(1), metavar="N"
    )
    rescore: int = _option(
        3,
        "Trials with the highest AUC that are measured again, on validation images left over or else with other "
        "reference images, before the one with the highest mean of both is called best; 1 for none.",
        parse=count_from(1),
        metavar="N",
    )
    timeout: float | None = _option(
        None,
        "Start no trial after this many seconds of search.",
        parse=parse_seconds,
        metavar="SECONDS",
        unset="none",
    )
    sampler: str = _option(
        AUTO,
        "What proposes composites: `local` changes one thing in one of the best so far, `grid` tries all of --space "
        "paper, the others are Optuna's. `auto` is local for a space of choices only (paper), cmaes for one of numbers "
        "only (layer), else tpe.",
        choices=(AUTO, *SAMPLERS, GRID),
    )
    pruner: str = _option(
        "none",
        "Optuna's pruner that stops a trial once it is worse on the search samples it has seen (in up to "
        "20 chunks): wilcoxon stops what is surely worse than the best one; none measures all samples.",
        choices=(*PRUNERS, NONE),
    )
    seed: int = _option(
        0,
        "Seed of samples and search: it repeats a run. (Weights and split of the digits are always the same.)",
        parse=count_from(0),
        metavar="N",
    )
    storage: str = _option(
        "sqlite:///pxp.db",
        "Database that keeps every trial: a file, or a URL as SQLAlchemy reads it.",
        metavar="FILE|URL",
    )
    study: str | None = _option(None, "Name of the study in the database.", metavar="NAME", unset="MODEL-DATA-UNITS")
    export: str = _option("best.json", "File that the best composite is written to.", metavar="FILE")
    device: str = _option(
        "auto", "Where to compute: auto, cpu, cuda, cuda:N or mps. `auto` takes the fastest.", metavar="NAME"
    )
    batch_size: int | str = _option(
        "auto",
        "Images per batch: fewer need less memory. `auto` is the largest power of two that fits into half of the "
        "free memory, at most 64 on the CPU, 256 on CUDA.",
        parse=parse_batch_size,
        metavar="N",
    )
    sample_memory: int | None = _option(
        None,
        "MiB that decoded images may take on the device; those beyond lie in a temporary file in the cache folder.",
        parse=count_from(0),
        metavar="MIB",
        unset="a quarter of the free memory",
    )
    precision: str = _option(
        "fp32",
        "What accuracies are measured in: `fp32`, or faster and coarser `tf32` (CUDA only) or `bf16`. "
        "Relevance and repair are always fp32.",
        choices=PRECISIONS,
    )
    skip_broken: bool = _option(False, "Leave out images that cannot be read instead of stopping.")
    quiet: bool = _option(False, "Show nothing but the results.")
    verbose: bool = _option(False, "Show Optuna's log as well, and a traceback with an error.")


def read_config(path: str | Path) -> dict[str, Any]:
    """The options in a TOML file by field name, as written there (not yet parsed).

    Keys are the command line's names: `search-samples = 500`; underscores do as well.

    Raises:
        UserError: no such file, not TOML, an unknown key (named, with the nearest known one) or a table.
    """
    path = Path(path)
    try:
        data: Mapping[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    known = {option.name for option in fields(Options)}
    flags = {option.name for option in fields(Options) if option.type == "bool"}
    aliases = {option.metadata["alias"]: option.name for option in fields(Options) if option.metadata["alias"]}
    values = {}
    for key, value in data.items():
        name = aliases.get(key, key.replace("-", "_"))
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0].replace('_', '-')}?" if near else "see pxp-optimize --help"
            raise UserError(f"{path}: unknown key {key!r}: {hint}")
        if isinstance(value, dict):
            raise UserError(f"{path}: {key!r} is a table, but options stand at the top: trials = 50")
        if name in values:
            raise UserError(f"{path}: {key!r} is given twice")
        if isinstance(value, list) and name not in LISTS:
            joined = ("+" if name == "units" else ",").join(map(str, value))
            raise UserError(f'{path}: {key!r} is a list, but takes one value, which may name several: "{joined}"')
        if name in flags and not isinstance(value, bool):
            raise UserError(f"{path}: {key!r} is {value!r}, but takes true or false")
        if "\0" in str(value):
            raise UserError(f"{path}: {key!r} holds a character of code 0")
        values[name] = value
    return values
