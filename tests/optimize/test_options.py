"""Options: what is parsed, what is refused, and how."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pxp_optimize.optimize.config_file import read_config
from pxp_optimize.optimize.options import Options
from pxp_optimize.optimize.parsers import (
    count_from,
    parse_batch_size,
    parse_channels,
    parse_classes,
    parse_deviation,
    parse_objective,
    parse_rates,
    parse_schedule,
    parse_seconds,
    parse_units,
)
from pxp_optimize.optimize.search.samplers import AUTO
from pxp_optimize.pruning import Schedule
from pxp_optimize.studies.errors import UserError


def test_default_rates_are_twenty_clean_numbers():
    assert Options().rates == tuple(step * 5 / 100 for step in range(20))


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("0:0.9:0.3", (0.0, 0.3, 0.6, 0.9)),
        ("0:0.95:0.5", (0.0, 0.5)),
        ("0,0.1,0.5", (0.0, 0.1, 0.5)),
        ([0, 0.1, 0.5], (0.0, 0.1, 0.5)),
        ("0,0.9:0.98:0.04", (0.0, 0.9, 0.94, 0.98)),
        ("0:0.4:0.2,0.9", (0.0, 0.2, 0.4, 0.9)),
    ],
)
def test_rates(text, rates):
    assert parse_rates(text) == rates


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "0",
            "0:1",
            "0:0.9:0",
            "0:0.9:-0.1",
            "0.9:0:0.1",
            "0:1:0.1",
            "a:b:c",
            "0,x",
            "0,0.5,0.2",
            "0,0",
        ),
        *(
            "0.1,0.5",
            "0,1",
            "-0.1,0.5",
            "0,nan",
            "0:0.9:1e-9",
            "0:inf:0.1",
            "0:1e300:0.1",
            "-1e300:0.5:0.1",
            "0:0.5:0.1,0.5",
            "0,0.5:0.9",
            "0,,0.5",
            5,
            [0, True],
            [0, None],
        ),
    ],
)
def test_malformed_rates_are_refused(text):
    with pytest.raises(ValueError, match=r"^.+$"):
        parse_rates(text)


@given(st.integers(2, 400), st.floats(1e-3, 0.2))
def test_a_range_has_its_stop_and_ascends(steps, step):
    stop = (steps - 1) * step
    if stop < 1:
        rates = parse_rates(f"0:{stop!r}:{step!r}")
        assert len(rates) == steps
        assert rates[-1] == pytest.approx(stop, abs=1e-9)


@pytest.mark.parametrize(
    ("value", "classes"),
    [
        ("3", 3),
        (3, 3),
        ("3,5", ("3", "5")),
        ("cat, dog", ("cat", "dog")),
        (["cat", 5], ("cat", "5")),
        ("3,5,", ("3", "5")),
    ],
)
def test_classes(value, classes):
    assert parse_classes(value) == classes


@pytest.mark.parametrize("value", ["1", 1, 0, "cat", ["cat"], [3], "cat,cat", "", True, 2.5])
def test_classes_that_are_none_or_one_are_refused(value):
    with pytest.raises(ValueError, match=r"^.+$"):
        parse_classes(value)


@pytest.mark.parametrize(("value", "objective"), [("AUC", ("auc",)), ("auc, macs", ("auc", "macs"))])
def test_objectives(value, objective):
    assert parse_objective(value) == objective


@pytest.mark.parametrize(("value", "meant"), [("macs,auc", "auc,macs"), ("mac", "macs"), ("latancy", "latency")])
def test_objectives_that_are_nearly_one(value, meant):
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        parse_objective(value)


def test_channels_are_one_or_three():
    assert parse_channels("0.5") == parse_channels(0.5) == parse_channels([0.5]) == (0.5,)
    assert parse_channels("0.1,0.2,0.3") == (0.1, 0.2, 0.3)
    for bad in ("0.1,0.2", "x", "", None):
        with pytest.raises(ValueError, match=r"^.+$"):
            parse_channels(bad)
    with pytest.raises(ValueError, match="above 0"):
        parse_deviation("0.5,0,0.5")


def test_a_class_name_with_a_comma_stands_in_quotes():
    assert parse_classes('"cat, tabby", dog') == ("cat, tabby", "dog")
    names = parse_classes(["cat, tabby", '5" disk'])
    assert names == ("cat, tabby", '5" disk')
    stored = Options.parsed(classes=names).stored()["classes"]  # as a study keeps them
    assert parse_classes(stored) == names
    with pytest.raises(ValueError, match="is no list"):
        parse_classes('"cat, tabby')


def test_units_are_kinds_joined_by_plus():
    for good in ("auto", "filters", "heads+neurons", "filters-gates", "filters+neurons-gates"):
        assert parse_units(good) == good
    assert parse_units("neurons+heads") == "heads+neurons"
    for bad in ("", "channels", "filters+", "auto+heads", "heads+heads", "auto-gates", "-gates", "gates", None):
        with pytest.raises(ValueError, match="filters, neurons, heads"):
            parse_units(bad)


def test_whole_numbers_are_whole():
    parse = count_from(1)
    assert parse("7") == parse(7) == 7
    for bad in ("7.5", 7.5, "x", True, 0, "-1"):
        with pytest.raises(ValueError, match=r"^.+$"):
            parse(bad)


def test_batches_have_a_size_or_auto():
    assert parse_batch_size("auto") == "auto"
    assert parse_batch_size("7") == parse_batch_size(7) == 7
    for bad in ("", "Auto", 0, "-1", 2.5, True, None):
        with pytest.raises(ValueError, match=r"^.+$"):
            parse_batch_size(bad)


def test_seconds_are_above_zero():
    assert parse_seconds("90") == parse_seconds(90) == 90.0
    for bad in ("0", "-1", "soon", "nan"):
        with pytest.raises(ValueError, match=r"^.+$"):
            parse_seconds(bad)


def test_every_option_has_help_and_its_default_is_allowed():
    for option in fields(Options):
        assert option.metadata["help"], option.name
        choices = option.metadata["choices"]
        assert choices is None or option.default in choices()
        parse = option.metadata["parse"]
        if parse and option.default is not None:
            assert parse(option.default) == option.default
    assert Options().sampler == AUTO


def test_config_is_toml_with_the_command_lines_names(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text('model = "vgg16"\nsearch-samples = 500\nreference_samples = 3\nrates = [0, 0.5]\n')
    assert read_config(path) == {
        "model": "vgg16",
        "search_samples": 500,
        "reference_samples": 3,
        "rates": [0, 0.5],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle = 'x'", r"unknown key 'modle': did you mean model\?"),
        ("zzz = 1", "unknown key 'zzz': see"),
        ("config = 'other.toml'", "unknown key 'config'"),
        ("[model]\nname = 'x'", "'model' is a table"),
        ("model = ", "is not TOML"),
        ("batch-size = 1\nbatch_size = 2", "given twice"),
        ("quiet = 1", "'quiet' is 1, but takes true or false"),
        ("verbose = 'yes'", "'verbose' is 'yes', but takes true or false"),
        ("model = ['vgg16', 'resnet18']", "'model' is a list, but takes one value"),
        ('export = "a\\u0000b"', "'export' holds a character of code 0"),
    ],
)
def test_config_mistakes_are_named(tmp_path: Path, text, message):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_config(path)


def test_config_that_is_not_there(tmp_path: Path):
    with pytest.raises(UserError, match="cannot read"):
        read_config(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("auto", ("auto",)),
        ("oneshot", ("oneshot",)),
        ("every:0.050", ("every:0.05",)),
        ("steps:10", ("every:0.1",)),
        ("steps:10, oneshot", ("every:0.1", "oneshot")),
        (["steps:10", "oneshot"], ("every:0.1", "oneshot")),
    ],
)
def test_schedules(text, parsed):
    assert parse_schedule(text) == parsed == parse_schedule(parsed)
    for name in parsed:
        if name != "auto":
            assert str(Schedule.parse(name)) == name


@pytest.mark.parametrize("text", ["", "every", "every:0", "every:2", "steps:1", "steps:x", "auto:1", 5])
def test_no_schedules(text):
    with pytest.raises(ValueError, match="every:RATE"):
        parse_schedule(text)


def test_values_are_parsed_as_on_the_command_line():
    options = Options.parsed(
        rates=[0, 0.5], schedule="oneshot,every:0.1", repair=["none"], objective="auc,macs", trials=3
    )
    assert options.rates == (0.0, 0.5)
    assert options.schedule == ("oneshot", "every:0.1")
    assert options.repair == ("none",)
    assert options.objective == ("auc", "macs")
    assert Options.parsed(**{name: value for name, value in options.stored().items() if value is not None}) == options


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trails": 5}, "unknown option 'trails': did you mean trials"),
        ({"rates": "0:2"}, "rates: '0:2' is not start:stop:step"),
        ({"sampler": "best"}, "sampler: 'best' is not one of auto"),
        ({"quiet": 1}, "quiet: 1 is not True or False"),
        ({"objective": "macs,auc"}, "objective: 'macs,auc' is not one of"),
    ],
)
def test_values_that_an_option_does_not_take(values, message):
    with pytest.raises(UserError, match=message):
        Options.parsed(**values)
