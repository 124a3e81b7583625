"""The options of a run: one dataclass that the command line, the TOML file and the code share.

Each field is an option. Its metadata hold what a person sees (the help line) and what a value must be (the
parser or the choices), so that an option is declared once. Nothing here imports torch: `--help` stays fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import Any

from ..pruning.names import PRECISIONS
from ..studies.best import AUC, FAITHFULNESS
from ..studies.errors import UserError
from ..studies.wording import did_you_mean
from .parsers import (
    DEFAULT_RATES,
    Parser,
    count_from,
    parse_batch_size,
    parse_channels,
    parse_classes,
    parse_deviation,
    parse_flat,
    parse_objective,
    parse_rates,
    parse_repair,
    parse_schedule,
    parse_seconds,
    parse_space,
    parse_units,
)
from .search.pruners import NONE, PRUNERS
from .search.samplers import AUTO, multi_objective, sampler_names

GIVEN = "(given)"
"""What `data` is where a program gives images, instead of naming them."""


MODEL, DATA, PRUNING, SEARCH = "Model", "Data", "Pruning", "Search"
HEAT_MAPS, STORAGE, HARDWARE, OUTPUT = "Heat maps", "Storage", "Hardware", "Output"
SECTIONS = (MODEL, DATA, PRUNING, HEAT_MAPS, SEARCH, STORAGE, HARDWARE, OUTPUT)
"""Under which headings `--help` lists the options."""
OF_PRUNING = ("units", "rates", "flat", "schedule", "repair", "repair_samples", "reference_samples", "draws")
OF_HEATMAPS = ("regions", "replace", "explain_target")
"""Options that only some objectives have a use for."""


def _option(
    default: Any,
    section: str,
    brief: str,
    more: str = "",
    *,
    parse: Parser | None = None,
    choices: Callable[[], Sequence[str]] | None = None,
    metavar: str | None = None,
    unset: str | None = None,
    shown: str | None = None,
    alias: str | None = None,
) -> Any:
    """A field with what the command line needs.

    section: one of `SECTIONS`. brief: the option in a line. more: what else there is to know, for `run --help` and the
    documentation. unset: what None stands for. shown: the default in words, where its value is none. alias: another
    name. What `choices` gives is asked for when a value is checked: users may have registered more.
    """
    metadata: dict[str, Any] = {
        "section": section,
        "brief": brief,
        "help": f"{brief} {more}".strip(),
        "metavar": metavar,
    }
    metadata |= {"metavar": metavar, "parse": parse, "choices": choices, "alias": alias, "unset": unset, "shown": shown}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """What `pxp-optimize` runs. Field names are the command line's, with underscores."""

    model: str = _option(
        "resnet18",
        MODEL,
        "torchvision's name of a network, or FILE.py:FUNCTION of yours.",
        "`pxp-optimize models` lists the names. A function, also as package.module:function, returns a "
        "torch.nn.Module; it takes no argument, or num_classes.",
        metavar="NAME",
    )
    weights: str = _option(
        "default",
        MODEL,
        "A .pt, .pth or .safetensors file, or torchvision's name.",
        "`default` is trained here for the digits, torchvision's pretrained ones otherwise, and what a "
        "function returns.",
        metavar="NAME|FILE",
    )
    data: str = _option(
        "digits",
        DATA,
        "`digits`, `imagenette`, or a folder with one folder per class.",
        "The digits (1,797, handwritten) are embedded, Imagenette is downloaded. The class folders lie "
        "inside train/ and val/, or at the top.",
        metavar="NAME|DIR",
    )
    units: str = _option(
        "auto",
        PRUNING,
        "filters, neurons, heads, or several joined by +.",
        "Filters are of convolutions, neurons of linear layers, heads of attention; with -gates at the "
        "end (filters-gates) without layers that only feed gates. `auto` is filters-gates where there "
        "are such layers, else filters; heads for a transformer, neurons for an MLP, also of image patches.",
        parse=parse_units,
        metavar="KIND[+KIND]",
    )
    image_size: int | None = _option(
        None,
        MODEL,
        "Height and width of its input, in pixels.",
        parse=count_from(8),
        metavar="N",
        unset="the weights' own",
    )
    resize: int | None = _option(
        None,
        MODEL,
        "Smaller edge before the middle is cut out, in pixels.",
        "For weights from a file or a function, the default is --image-size.",
        parse=count_from(8),
        metavar="N",
        unset="the weights' own",
    )
    mean: tuple[float, ...] | None = _option(
        None,
        MODEL,
        "Subtracted from pixels in [0, 1]: one value, or three.",
        "Such as 0.485,0.456,0.406.",
        parse=parse_channels,
        metavar="X[,X,X]",
        unset="the weights' own",
    )
    std: tuple[float, ...] | None = _option(
        None,
        MODEL,
        "What pixels are divided by then: one value, or three.",
        parse=parse_deviation,
        metavar="X[,X,X]",
        unset="the weights' own",
    )
    classes: tuple[str, ...] | int | None = _option(
        None,
        DATA,
        "Only these, by name or index, or how many to draw.",
        "3,5 or cat,dog (a name with a comma in double quotes), or a single number; the network's other "
        "outputs are ignored.",
        parse=parse_classes,
        metavar="LIST|N",
        unset="all",
    )
    reference_samples: int = _option(
        10,
        DATA,
        "Training images per class that relevance is computed on.",
        parse=count_from(1),
        metavar="N",
    )
    draws: int = _option(
        1,
        SEARCH,
        "Draws of the reference images that trials are the mean over.",
        "Each is as costly as the first one: a composite that is best for one draw may not be for the next.",
        parse=count_from(1, 50),
        metavar="N",
    )
    search_samples: int | None = _option(
        None,
        DATA,
        "Validation images in all that trials are scored on.",
        "Of each class in proportion.",
        parse=count_from(1),
        metavar="N",
        unset="at most 500",
    )
    holdout_samples: int | None = _option(
        None,
        DATA,
        "Validation images in all that the results are reported on.",
        "The search never sees them.",
        parse=count_from(1),
        metavar="N",
        unset="at most 500",
    )
    rates: tuple[float, ...] = _option(
        parse_rates(DEFAULT_RATES),
        PRUNING,
        "Parts of the units to remove: start:stop:step, or a list.",
        "From 0 on; a list is 0,0.25,0.5 or 0,0.9:0.98:0.02.",
        parse=parse_rates,
        metavar="RATES",
        shown=DEFAULT_RATES,
    )
    flat: float = _option(
        0.02,
        PRUNING,
        "Accuracies so close count as equal: rates between are not measured.",
        "Where two rates, no more than 0.1 apart, differ by no more than that, the one between them gets the mean of "
        "both (with --pruner none, and where no cost is measured). 0 measures the network at every rate.",
        parse=parse_flat,
        metavar="X",
    )
    schedule: tuple[str, ...] = _option(
        ("auto",),
        PRUNING,
        "When relevance is computed: oneshot, every:R or steps:N.",
        "`oneshot` ranks all units once (the paper's way), every:0.05 again on the network as pruned so "
        "far after each such step, steps:N in N steps. Several, joined by commas, are searched; "
        "composites that are known before take the first. `auto` is every:0.1.",
        parse=parse_schedule,
        metavar="SCHEDULE",
        shown="auto",
    )
    repair: tuple[str, ...] = _option(
        ("auto",),
        PRUNING,
        "Of pruned networks: none, batchnorm or least-squares.",
        "Without labels or training, from the reference images: `batchnorm` re-estimates its statistics "
        "where it follows a layer, `least-squares` refits the layers behind pruned units. Or both, "
        "batchnorm+least-squares. Several, joined by commas, are searched. `auto` is least-squares.",
        parse=parse_repair,
        metavar="REPAIR",
        shown="auto",
    )
    repair_samples: int | None = _option(
        None,
        PRUNING,
        "Images that repairs read, without their labels.",
        "From the training images: the reference samples and as many more.",
        parse=count_from(2),
        metavar="N",
        unset="the reference samples",
    )
    space: str = _option(
        "auto",
        SEARCH,
        "What is searched: depth, type, layer, paper or FILE.toml.",
        "`depth` is a rule with its number per depth group, `type` per type of layer within one, `layer`"
        " the gamma of each layer (numbers only), `paper` the 256 composites of the paper, and a TOML "
        "file a space of your own. `auto` is depth, for transformers type.",
        parse=parse_space,
        metavar="NAME|FILE",
    )
    start_from: str | None = _option(
        None,
        SEARCH,
        "Composite to try early, such as an earlier best.json.",
        "Of this model or another one.",
        metavar="FILE",
        unset="none",
        alias="from",
    )
    objective: tuple[str, ...] = _option(
        ("auc",),
        SEARCH,
        "auc, macs, params, latency, faithfulness, or auc,macs.",
        "`auc` is the area under accuracy against the part of the units that is gone, `macs`, `params` "
        "and `latency` that against the part of the multiply-adds, the weights or the time that is "
        "saved, up to 80 %; then units are ranked by relevance over a power of what they cost. With two "
        "(`auc,macs`) the front of the trials that none beats in both is listed, and the one with the "
        "highest AUC exported. `faithfulness` prunes nothing: it judges heat maps, by the target's probability while "
        "image regions are removed, least relevant first against most relevant first; `faithfulness,auc` also prunes, "
        "and its front has composites for both.",
        parse=parse_objective,
        metavar="NAME[,NAME]",
        shown="auc",
    )
    regions: int | None = _option(
        None,
        HEAT_MAPS,
        "Edge of the square regions that are removed.",
        "For --objective faithfulness.",
        parse=count_from(1),
        metavar="N",
        unset="1/8 of the image",
    )
    replace: str = _option(
        "blur",
        HEAT_MAPS,
        "What replaces a region: blur, mean (colour) or neighbours.",
        "`neighbours` is an inpainting from what is left around. For --objective faithfulness.",
        metavar="NAME",
    )
    explain_target: str = _option(
        "predicted",
        HEAT_MAPS,
        "Which class heat maps explain.",
        "For --objective faithfulness.",
        choices=lambda: ("predicted", "true"),
        metavar="CLASS",
    )
    trials: int = _option(
        100, SEARCH, "Finished trials to reach, those of earlier runs included.", parse=count_from(1), metavar="N"
    )
    rescore: int = _option(
        3,
        SEARCH,
        "Best trials that are measured again before one is called best.",
        "On validation images left over or else with other reference images; the highest mean of both "
        "counts. 1 for none.",
        parse=count_from(1),
        metavar="N",
    )
    timeout: float | None = _option(
        None,
        SEARCH,
        "Start no trial after so many seconds of search.",
        parse=parse_seconds,
        metavar="SECONDS",
        unset="none",
    )
    sampler: str = _option(
        AUTO,
        SEARCH,
        "What proposes them.",
        "`local` changes one thing in one of the best so far, `grid` tries all of --space paper, the "
        "others are Optuna's. `auto` is local for a space of choices only (paper), cmaes for one of "
        "numbers only (layer), else tpe.",
        choices=sampler_names,
        metavar="NAME",
    )
    pruner: str = _option(
        "none",
        SEARCH,
        "What stops worse trials.",
        "Optuna's pruners, asked once a trial has seen another chunk of the search samples (up to 20): "
        "wilcoxon stops what is surely worse than the best one; none measures all samples.",
        choices=lambda: (*PRUNERS, NONE),
        metavar="NAME",
    )
    seed: int = _option(
        0,
        SEARCH,
        "Of samples and search: it repeats a run.",
        "Weights and split of the digits are always the same.",
        parse=count_from(0),
        metavar="N",
    )
    workers: int | None = _option(
        None,
        HARDWARE,
        "Processes that run trials at once.",
        "What a trial is proposed from depends on how many there are: the same seed and number give the same study.",
        parse=count_from(1, 1024),
        metavar="N",
        unset="one a GPU or core, up to 4",
    )
    storage: str = _option(
        "sqlite:///pxp.db",
        STORAGE,
        "SQLite file, journal, database or grpc URL.",
        "A journal's name ends in .journal; it is for folders that several machines share.",
        metavar="FILE|URL",
    )
    study: str | None = _option(
        None,
        STORAGE,
        "Name of the study in it; one that is there goes on.",
        "What is not given is then as the study has it.",
        metavar="NAME",
        unset="MODEL-DATA-UNITS",
    )
    no_pictures: bool = _option(
        False,
        STORAGE,
        "Keep no small pictures of images with the study.",
        "A run ends with heat maps of four holdout images, 64 pixels wide, for the report.",
    )
    export: str = _option("best.json", STORAGE, "File that the best composite is written to.", metavar="FILE")
    device: str = _option("auto", HARDWARE, "auto (the fastest), cpu, cuda, cuda:N or mps.", metavar="NAME")
    batch_size: int | str = _option(
        "auto",
        HARDWARE,
        "Images per batch: fewer need less memory.",
        "`auto` is the largest power of two that fits into half of the free memory, at most 64 on the "
        "CPU, 256 on CUDA.",
        parse=parse_batch_size,
        metavar="N",
    )
    sample_memory: int | None = _option(
        None,
        HARDWARE,
        "MiB for decoded images; others are on disk.",
        "In a temporary file, in the cache folder.",
        parse=count_from(0),
        metavar="MIB",
        unset="a quarter of the free memory",
    )
    precision: str = _option(
        "fp32",
        HARDWARE,
        "What accuracies are measured in.",
        "tf32 (CUDA) and bf16 are faster and coarser. Relevance and repair are always fp32.",
        choices=lambda: PRECISIONS,
        metavar="NAME",
    )
    skip_broken: bool = _option(False, DATA, "Leave out images that cannot be read.")
    quiet: bool = _option(False, OUTPUT, "Show nothing but the results.")
    verbose: bool = _option(False, OUTPUT, "Show Optuna's log as well, and a traceback with an error.")

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
                there = f"there are {', '.join(known)}"
                raise UserError(f"unknown option {name!r}: {did_you_mean(name, known, there)}")
        return replace(self, **{name: _parsed(known[name], value) for name, value in values.items()})

    def check(self) -> None:
        """Refuse options that contradict each other, before anything is loaded.

        Raises:
            UserError: what contradicts what.
        """
        self._check_objective()
        several = len(self.objective) > 1
        if self.draws > 1 and self.pruner != NONE:
            raise UserError(f"--pruner {self.pruner} races on one draw: give --draws 1, or --pruner none")
        if several and self.pruner != NONE:
            raise UserError(f"--pruner {self.pruner} knows one objective: give --objective auc, or --pruner none")
        if self.objective not in (("auc",), (FAITHFULNESS,)) and self.pruner != NONE:
            raise UserError(f"--pruner {self.pruner} races by the AUC: give --objective auc, or --pruner none")
        if several and self.sampler not in (AUTO, *multi_objective()):
            known = ", ".join(multi_objective())
            raise UserError(f"--sampler {self.sampler} knows one objective: give --objective auc, or one of {known}")
        if self.repair == (NONE,) and self.repair_samples is not None:
            raise UserError(f"--repair-samples {self.repair_samples}: --repair none reads no images; leave one out")

    @property
    def explains(self) -> bool:
        """Whether heat maps are judged."""
        return self.objective[0] == FAITHFULNESS

    @property
    def prunes(self) -> bool:
        """Whether networks are pruned."""
        return not self.explains or AUC in self.objective

    def _check_objective(self) -> None:
        """Refuse options that the objective has no use for."""
        unused = (*(() if self.prunes else OF_PRUNING), *(() if self.explains else OF_HEATMAPS))
        given = [option for option in fields(self) if option.name in unused]
        wrong = next((option for option in given if getattr(self, option.name) != option.default), None)
        if wrong is not None:
            why = "prunes nothing" if wrong.name in OF_PRUNING else "judges no heat maps"
            name = wrong.name.replace("_", "-")
            raise UserError(f"--objective {','.join(self.objective)} {why}, and has no use for --{name}: leave it out")

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
