"""The options of a run: one dataclass that the command line, the TOML file and the code share.

Each field is an option. Its metadata hold what a person sees (the help line) and what a value must be (the
parser or the choices), so that an option is declared once. Nothing here imports torch: `--help` stays fast.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..pruning.names import PRECISIONS
from ..studies.errors import UserError
from .search.pruners import NONE, PRUNERS
from .search.samplers import AUTO, multi_objective, sampler_names

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
from .parsers import (
    DEFAULT_RATES,
    LISTS,
    Parser,
    count_from,
    objectives,
    parse_batch_size,
    parse_channels,
    parse_classes,
    parse_deviation,
    parse_objective,
    parse_rates,
    parse_repair,
    parse_schedule,
    parse_seconds,
    parse_space,
    parse_units,
)

GIVEN = "(given)"
"""What `data` is where a program gives images, instead of naming them."""


def _option(
    default: Any,
    help: str,
    *,
    parse: Parser | None = None,
    choices: Callable[[], Sequence[str]] | None = None,
    metavar: str | None = None,
    unset: str | None = None,
    shown: str | None = None,
    alias: str | None = None,
) -> Any:
    """A field with what the command line needs: `unset` says what None stands for, `alias` is another name. What
    `choices` gives is asked for when a value is checked: users may have registered more."""
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
    classes: tuple[str, ...] | int | None = _option(
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
    schedule: tuple[str, ...] = _option(
        ("auto",),
        "When relevance is recomputed: `oneshot` ranks all units once (the paper's way), every:0.05 again on the "
        "network as pruned so far after each such step, steps:N in N steps. Several, joined by commas, are searched; "
        "composites that are known before take the first. `auto` is every:0.1.",
        parse=parse_schedule,
        metavar="SCHEDULE",
        shown="auto",
    )
    repair: tuple[str, ...] = _option(
        ("auto",),
        "What is done to a pruned network, without labels or training, from the reference images: `none`, "
        "`batchnorm` (its statistics re-estimated where it follows a layer), "
        "`least-squares` (the layers behind pruned units refitted). "
        "Or both, batchnorm+least-squares. Several, joined by commas, are searched. `auto` is least-squares.",
        parse=parse_repair,
        metavar="REPAIR",
        shown="auto",
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
    objective: tuple[str, ...] = _option(
        ("auc",),
        "What trials are judged by: `auc`, the area under accuracy against the part of the units that is gone, or "
        "against the part of the multiply-adds (`macs`), the weights (`params`) or the time (`latency`) that is saved, "
        "up to 80 %; then units are ranked by relevance over a power of what they cost. With two (`auc,macs`) the "
        "front of the trials that none beats in both is listed, and the one with the highest AUC exported.",
        parse=parse_objective,
        metavar="|".join(objectives()),
        shown="auc",
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
        choices=sampler_names,
    )
    pruner: str = _option(
        "none",
        "Optuna's pruner that stops a trial once it is worse on the search samples it has seen (in up to "
        "20 chunks): wilcoxon stops what is surely worse than the best one; none measures all samples.",
        choices=lambda: (*PRUNERS, NONE),
    )
    seed: int = _option(
        0,
        "Seed of samples and search: it repeats a run. (Weights and split of the digits are always the same.)",
        parse=count_from(0),
        metavar="N",
    )
    workers: int | None = _option(
        None,
        "Processes that run trials at once. What a trial is proposed from depends on how many there are: the same seed "
        "and number give the same study.",
        parse=count_from(1, 1024),
        metavar="N",
        unset="one for each GPU, on the CPU one for each core, up to 4",
    )
    storage: str = _option(
        "sqlite:///pxp.db",
        "What keeps every trial: an SQLite file, a journal (pxp.journal), the URL of a database, or grpc://HOST:PORT.",
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
        choices=lambda: PRECISIONS,
    )
    skip_broken: bool = _option(False, "Leave out images that cannot be read instead of stopping.")
    quiet: bool = _option(False, "Show nothing but the results.")
    verbose: bool = _option(False, "Show Optuna's log as well, and a traceback with an error.")

    @classmethod
    def parsed(cls, **values: Any) -> Options:
        """From values as people write them: text as on the command line, numbers, lists.

        Raises:
            UserError: no such option (with the nearest one), or a value that it does not take.
        """
        return cls().changed(**values)

    def changed(self, **values: Any) -> Options:
        """These options with other values, as `parsed` takes them."""
        known = {option.name: option for option in fields(self)}
        for name in values:
            if name not in known:
                raise UserError(f"unknown option {name!r}: {_nearest(name, known)}")
        return replace(self, **{name: _parsed(known[name], value) for name, value in values.items()})

    def check(self) -> None:
        """Refuse options that contradict each other, before anything is loaded.

        Raises:
            UserError: what contradicts what.
        """
        several = len(self.objective) > 1
        if self.draws > 1 and self.pruner != NONE:
            raise UserError(f"--pruner {self.pruner} races on one draw: give --draws 1, or --pruner none")
        if several and self.pruner != NONE:
            raise UserError(f"--pruner {self.pruner} knows one objective: give --objective auc, or --pruner none")
        if self.objective != ("auc",) and self.pruner != NONE:
            raise UserError(f"--pruner {self.pruner} races by the AUC: give --objective auc, or --pruner none")
        if several and self.sampler not in (AUTO, *multi_objective()):
            known = ", ".join(multi_objective())
            raise UserError(f"--sampler {self.sampler} knows one objective: give --objective auc, or one of {known}")
        if self.repair == (NONE,) and self.repair_samples is not None:
            raise UserError(f"--repair-samples {self.repair_samples}: --repair none reads no images; leave one out")

    def stored(self) -> dict[str, Any]:
        """As JSON, as a study keeps it: words of a list joined as on the command line."""
        return {name: _joined(value) for name, value in asdict(self).items()}


def _parsed(option: Field[Any], value: Any) -> Any:
    if value is None and option.default is None:
        return None
    hints = option.metadata
    try:
        if hints["choices"] and value not in (known := hints["choices"]()):
            raise ValueError(f"{value!r} is not one of {', '.join(known)}")
        if option.type == "bool" and not isinstance(value, bool):
            raise ValueError(f"{value!r} is not True or False")
        return hints["parse"](value) if hints["parse"] else value
    except ValueError as error:
        raise UserError(f"{option.name}: {error}") from error


def _joined(value: Any) -> Any:
    if isinstance(value, tuple) and value and all(isinstance(item, str) for item in value):
        return ",".join('"' + item.replace('"', '""') + '"' if {",", '"'} & set(item) else item for item in value)
    return value


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


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
    except (ValueError, RecursionError) as error:  # also bytes that are no text, numbers of thousands of digits
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
            raise UserError(f"{path}: {key!r} is a list, but takes one value")
        if name in flags and not isinstance(value, bool):
            raise UserError(f"{path}: {key!r} is {value!r}, but takes true or false")
        if "\0" in str(value):
            raise UserError(f"{path}: {key!r} holds a character of code 0")
        values[name] = value
    return values
