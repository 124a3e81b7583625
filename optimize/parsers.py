"""What a person may write for an option, and what it then means. Nothing here imports torch: `--help` stays fast."""

from __future__ import annotations

import contextlib
import csv
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from ..pruning.cost import COSTS
from ..pruning.names import NO_GATES, UNIT_KINDS, unit_kinds
from ..pruning.registry import Registry
from ..pruning.repair import NONE, REPAIRS, check_repair
from ..studies.best import AUC, FAITHFULNESS
from ..studies.wording import did_you_mean

SPACES = ("auto", "depth", "type", "layer", "paper")
DEFAULT_RATES = "0:0.95:0.05"

LISTS = ("mean", "std", "classes", "rates", "units", "schedule", "repair", "objective")
"""Options that take a list in a TOML file."""

QUALITIES: Registry[Callable[..., Any]] = Registry(
    "quality",
    {
        "complexity": ".evaluation.faithfulness:complexity",
        "stability": ".evaluation.faithfulness:stability",
        AUC: ".evaluation.evaluate:pruned_by",
    },
    __package__,
)
"""What else a composite of heat maps may be judged by, as a second objective: from a task, a method, samples and their
targets a value of each image, the higher, the better."""
register_quality = QUALITIES.register

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
        raise ValueError(f"{text!r} leaves the rates: each is 0 or more, and below 1")
    count = math.floor((stop - start) / step + 1e-9) + 1
    # rounded, so that a rate is 0.15 and not 0.15000000000000002
    return [round(start + index * step, 10) for index in range(count)]


def parse_flat(value: object) -> float:
    """A difference in accuracy, from 0 to 0.1.

    Raises:
        ValueError: another one.
    """
    (number,) = _numbers([value], value)
    if not 0 <= number <= 0.1:
        raise ValueError(f"{value!r} is not a difference in accuracy from 0 to 0.1")
    return number


def parse_rate(value: object) -> float:
    """A pruning rate: 0 or more, below 1.

    Raises:
        ValueError: not a number, or out of range.
    """
    (rate,) = _numbers([value], value)
    if not 0 <= rate < 1:
        raise ValueError(f"{value!r} is not 0 or more, and below 1")
    return rate


def parse_share(value: object) -> float:
    """A part of the accuracy to keep: above 0, at most 1.

    Raises:
        ValueError: not a number, or out of range.
    """
    (share,) = _numbers([value], value)
    if not 0 < share <= 1:
        raise ValueError(f"{value!r} is not a part to keep: above 0, at most 1")
    return share


def parse_count(value: object) -> float:
    """A number of parameters or multiply-adds, above 0: 3000000, 500k, 3M or 1.2G.

    Raises:
        ValueError: no such number.
    """
    text = str(value).strip()
    factor = {"k": 1e3, "m": 1e6, "g": 1e9}.get(text[-1:].lower())
    try:
        (count,) = _numbers([text if factor is None else text[:-1]], value)
    except ValueError:
        raise ValueError(f"{value!r} is not a number such as 500k, 3M or 1.2G") from None
    if count <= 0:
        raise ValueError(f"{value!r} must be above 0")
    return count * (factor or 1)


def parse_classes(value: object) -> tuple[str, ...] | int:
    """Which classes: their names or indices, or a number of them to draw.

    So "3" draws three classes, and "3,5" or "cat,dog" or a list are these two. A name with a comma stands in quotes:
    '"cat, tabby",dog'.

    Raises:
        ValueError: fewer than two classes, or one named twice.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    parts = split_names(value) if isinstance(value, str) else _items(value)
    names = tuple(text for part in parts if (text := str(part).strip()))
    if len(names) == 1 and names[0].isdecimal() and isinstance(value, str):
        if int(names[0]) < 2:
            raise ValueError(f"{names[0]} classes cannot be told apart: at least 2")
        return int(names[0])
    if len(names) < 2:
        raise ValueError(f"{value!r} names one class: give a list such as 3,5 or a number to draw")
    if len(set(names)) < len(names):
        raise ValueError(f"{value!r} names a class twice")
    return names


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


def parse_schedule(value: object) -> tuple[str, ...]:
    """When relevance is recomputed: "auto", "oneshot", "every:RATE" or "steps:N"; or several of them, to search.

    Raises:
        ValueError: something else, a number out of range, one that is named twice, or "auto" beside others.
    """
    return _several(value, _schedule)


def _schedule(text: str) -> str:
    kind, _, number = text.partition(":")
    if kind in ("auto", "oneshot") and not number:
        return kind
    with contextlib.suppress(ValueError):
        if kind == "every" and 0.001 <= float(number) < 1:
            return f"every:{float(number):g}"
        if kind == "steps" and 2 <= int(number) <= 1000:
            return f"every:{1 / int(number):g}"
    raise ValueError(f"{text!r} is not auto, oneshot, every:RATE (such as every:0.05) or steps:N (such as steps:10)")


def parse_repair(value: object) -> tuple[str, ...]:
    """A repair (`pruning.repair.check_repair`) or "auto", or several of them, to search.

    Raises:
        ValueError: something else, one that is named twice, or "auto" beside others.
    """
    return _several(value, _repair)


def _repair(text: str) -> str:
    if text != "auto":
        try:
            check_repair(text)
        except ValueError:
            known = ", ".join(("auto", NONE, *REPAIRS))
            raise ValueError(f'{text!r} is not {known}, or repairs joined by "+"') from None
    return text


def parse_objective(value: object) -> tuple[str, ...]:
    """An objective, or two of them: one of `objectives`.

    Raises:
        ValueError: something else.
    """
    items = value.split(",") if isinstance(value, str) else map(str, _items(value))
    found, known = tuple(item.strip() for item in items), objectives()
    for several in (found, tuple(map(str.lower, found))):
        if ",".join(several) in known:
            return several
    names, turned = [*map(repr, known)], repr(",".join(found[::-1]))
    hint = did_you_mean(turned if turned in names else repr(",".join(found)), names, "")
    raise ValueError(f"{value!r} is not one of {', '.join(names)}{hint and '; '}{hint}")


def objectives() -> tuple[str, ...]:
    """What trials may be judged by: the area over the units or over a cost, or both of a pair; or their heat maps."""
    pruning = ("auc", *COSTS, *(f"auc,{cost}" for cost in COSTS))
    return (*pruning, FAITHFULNESS, *(f"{FAITHFULNESS},{quality}" for quality in QUALITIES))


def _several(value: object, parse: Callable[[str], str]) -> tuple[str, ...]:
    texts = list(map(str, value)) if isinstance(value, (list, tuple)) else str(value).split(",")
    found = tuple(parse(text.strip()) for text in texts)
    if "auto" in found and len(found) > 1:
        raise ValueError(f"{value!r}: auto stands alone")
    if not found or len(set(found)) < len(found):
        raise ValueError(f"{value!r} names one twice" if found else f"{value!r} names none")
    return found


def parse_units(value: object) -> str:
    """Kinds of units, in alphabetical order joined by "+", with "-gates" behind them or not; or "auto".

    value: such text, or a list of kinds.

    Raises:
        ValueError: an unknown kind, or one named twice.
    """
    text = "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    kinds, end = unit_kinds(text), NO_GATES if text.endswith(NO_GATES) else ""
    if text == "auto":
        return text
    for kind in kinds:
        if kind not in UNIT_KINDS or kinds.count(kind) > 1:
            raise ValueError(
                f"{value!r} is not made of {', '.join(UNIT_KINDS)} (joined by +; -gates may end them), or auto"
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
