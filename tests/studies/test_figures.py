"""Figures show what the study holds."""

from __future__ import annotations

import base64
import io

import optuna
import pytest
from optuna.trial import create_trial
from PIL import Image
from pxp_optimize.studies.best import best_trial
from pxp_optimize.studies.curves import curves, wilson
from pxp_optimize.studies.figures import FIGURES, draw_all, register_figure
from pxp_optimize.studies.figures.parameters import importances
from pxp_optimize.studies.figures.style import BEST, OTHERS, THEMES, span_of, spread, template
from pxp_optimize.studies.maps import MAPS, KeptMaps, MapRow, keep_maps, kept_maps
from scipy.stats import binomtest

from .conftest import RATES, curve

plotly = pytest.importorskip("plotly.graph_objects")


def named(figure) -> dict:
    return {trace.name: trace for trace in figure.data}


@pytest.mark.parametrize(("right", "count"), [(0, 10), (7, 10), (97, 100), (50, 50)])
def test_the_interval_is_wilsons(right, count):
    expected = binomtest(right, count).proportion_ci(0.95, "wilson")
    assert wilson(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_curves_are_the_fixed_ones_and_the_best(finished_study):
    found = curves(finished_study, "holdout")
    assert [(line.name, line.trial, line.best, line.auc) for line in found] == [
        ("epsilon", 0, False, 0.28),
        ("zplus", 1, False, 0.2),
        ("", 20, True, 0.35),
    ]
    assert best_trial(finished_study).number == 20
    assert found[-1].accuracy == curve(0.35)
    assert found[-1].low == pytest.approx([wilson(value, 50)[0] for value in curve(0.35)])
    on_search = curves(finished_study, "search")[-1]
    assert on_search.accuracy == finished_study.trials[20].user_attrs["accuracy"]
    assert on_search.high == pytest.approx([wilson(value, 100)[1] for value in on_search.accuracy])


def test_a_fixed_composite_that_is_best_is_drawn_once(finished_study):
    finished_study.set_user_attr("rescored", {"0": {"auc": 0.9, "on": "x"}, "21": {"auc": 0.1, "on": "x"}})
    assert [(line.label, line.trial) for line in curves(finished_study, "holdout")] == [
        ("zplus", 1),
        ("best: epsilon", 0),
    ]


def test_the_figure_of_the_holdout_has_lines_bands_and_labels(finished_study):
    figure = FIGURES["holdout"](finished_study)
    assert figure is not None
    lines = named(figure)
    assert list(lines["best: trial 20  0.350"].x) == RATES
    assert list(lines["best: trial 20  0.350"].y) == curve(0.35)
    band = lines["best: trial 20, 95 %"]
    assert list(band.x) == [*RATES, *reversed(RATES)]
    highs, lows = band.y[: len(RATES)], list(reversed(band.y[len(RATES) :]))
    for low, high, value in zip(lows, highs, curve(0.35), strict=True):
        assert (low, high) == pytest.approx(wilson(value, 50))
    texts = [note.text for note in figure.layout.annotations]
    assert sorted(texts) == ["best: trial 20  0.350", "epsilon  0.280", "zplus  0.200"]
    assert "units removed" not in figure.layout.xaxis.title.text
    assert "filters removed" in figure.layout.xaxis.title.text


def test_history_shows_every_trial_the_highest_so_far_and_the_best_fixed_one(finished_study):
    figure = FIGURES["history"](finished_study)
    complete = [trial for trial in finished_study.trials if trial.values]
    lines = named(figure)
    assert list(lines["trials"].y) == [trial.value for trial in complete]
    assert list(lines["trials"].marker.symbol[:3]) == ["circle", "circle", "circle-open"]
    assert list(lines["highest so far"].y)[:4] == [0.3, 0.3, 0.3, 0.3]
    assert lines["highest so far"].y[-1] == max(trial.value for trial in complete)
    assert (list(lines["best 0.400"].x), list(lines["best 0.400"].y)) == ([20], [pytest.approx(0.4)])
    assert list(lines["epsilon, the best fixed composite, 0.300"].y) == [0.3, 0.3]


def test_values_far_below_the_others_are_left_out_and_counted():
    span = span_of([0.5, 0.51, 0.52, 0.53, 0.54, 0.1])
    assert 0.1 < span.low < 0.5
    assert (span.below, "1 below" in span.note) == (1, True)
    assert span_of([0.1, 0.5]).note == ""
    assert span_of([0.3]).low < 0.3 < span_of([0.3]).high


def test_all_trials_have_their_curve(finished_study):
    figure = FIGURES["trials"](finished_study)
    complete = [trial for trial in finished_study.trials if trial.values]
    assert len(figure.data) == len(complete)
    assert figure.data[-1].name == "trial 20, 0.4000"
    assert {tuple(trace.y) for trace in figure.data} == {
        tuple(round(value, 5) for value in trial.user_attrs["accuracy"]) for trial in complete
    }


def test_layers_lose_what_the_ranking_says(finished_study):
    figure = FIGURES["layers"](finished_study)
    (heat,) = figure.data
    assert list(heat.x) == RATES
    assert list(heat.y) == ["conv (4)", "fc (4)"]
    assert [list(row) for row in heat.z] == [[0, 0, 0, 0.5], [0, 0.5, 1, 1]]


def strip(width: int) -> str:
    out = io.BytesIO()
    Image.new("P", (width, 8)).save(out, "png")
    return base64.b64encode(out.getvalue()).decode()


def keep(study: optuna.Study, trial: int, rate: float) -> KeptMaps:
    """Maps of two images by two composites, before and after pruning where there is a rate."""
    lefts = [0, 9, 20, 29] if rate else [0, 11]
    rows = [
        MapRow(strip(8), strip(lefts[-1] + 8), "cat", "cow", "dog" if rate else None),
        MapRow(strip(8), strip(8), "x" * 40),
    ]
    found = KeptMaps(trial, rate, ["best: trial 20", "epsilon"], [8, 8], lefts, rows)
    keep_maps(study, found)
    return found


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_heat_maps_stand_under_their_names(finished_study, rate):
    assert FIGURES["maps"](finished_study) is None
    kept = keep(finished_study, 20, rate)
    assert kept_maps(finished_study) == kept
    figure = FIGURES["maps"](finished_study)
    sources = [trace.source.partition(",")[2] for trace in figure.data]
    assert sources == [source for row in kept.rows for source in (row.image, row.maps)]
    image, maps = figure.data[:2]
    notes = {note.text: note for note in figure.layout.annotations}
    assert notes["best:<br>trial 20"].font.color == BEST
    for index, name in enumerate(("best:<br>trial 20", "epsilon")):
        own = kept.lefts[2 * index : 2 * index + 2] if rate else kept.lefts[index : index + 1]
        middle = maps.x0 - 0.5 + (own[0] + own[-1] + 8) / 2
        assert notes[name].x == pytest.approx(middle)
    assert "cat<br>is: cow" + bool(rate) * "<br>pruned: dog" in notes
    assert "x" * 13 + "…" in notes
    whole = [note for note in figure.layout.annotations if note.text == "whole"]
    assert len(whole) == (2 if rate else 0)
    assert ("50%" in figure.layout.meta["caption"]) == bool(rate)
    assert image.y0 < figure.data[2].y0  # the first image is at the top
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]


def test_heat_maps_of_an_earlier_best_say_which_it_was(finished_study):
    keep(finished_study, 21, 0.5)
    texts = {note.text for note in FIGURES["maps"](finished_study).layout.annotations}
    assert {"trial 21", "epsilon"} <= texts
    assert not any("best" in text for text in texts)


def test_heat_maps_that_were_being_replaced_are_not_mixed(finished_study):
    keep(finished_study, 20, 0.5)
    finished_study._storage.set_study_system_attr(finished_study._study_id, f"{MAPS}:1", {"trial": 21})
    assert kept_maps(finished_study) is None
    assert FIGURES["maps"](finished_study) is None


def test_importance_is_of_parameters_that_enough_trials_have(finished_study):
    found = importances(finished_study)
    assert set(found) == {"low.rule", "low.gamma"}
    assert sum(found.values()) == pytest.approx(1)
    assert list(found) == sorted(found, key=lambda name: -found[name])
    assert found["low.gamma"] > found["low.rule"]  # the AUC grows with gamma
    bars = FIGURES["importance"](finished_study).data[0]
    assert dict(zip(bars.y, bars.x, strict=True)) == {name: value for name, value in found.items() if value >= 0.01}
    young = optuna.create_study(direction="maximize")
    for trial in finished_study.trials[:8]:
        young.add_trial(trial)
    assert importances(young) == {}


def test_slices_show_each_value_and_its_auc(finished_study):
    figure = FIGURES["slices"](finished_study)
    traces = named(figure)
    some = [trial for trial in finished_study.trials if "low.gamma" in trial.params and trial.values]
    assert list(traces["low.gamma"].x) == [trial.params["low.gamma"] for trial in some]
    assert list(traces["low.gamma"].y) == [trial.value for trial in some]
    kinds = {axis.title.text: axis.type for axis in figure.select_xaxes()}
    assert kinds.items() >= {"low.gamma": "log", "low.rule": "category"}.items()


def test_parallel_lines_end_at_the_auc():
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    study.set_user_attr("rates", RATES)
    for _ in range(20):
        trial = study.ask()
        gamma, rule = trial.suggest_float("gamma", 0.1, 10, log=True), trial.suggest_categorical("rule", ["a_b", "c"])
        study.tell(trial, gamma / 10 + (rule == "c"))
    figure = FIGURES["parallel"](study)
    order = {text.replace("<br>", "_"): place for place, text in enumerate(figure.layout.xaxis.ticktext)}
    assert set(order) == {"gamma", "rule", "AUC"}
    assert order["AUC"] == 2
    values = sorted(trial.value for trial in study.trials)
    ends = sorted(trace.y[2] for trace in figure.data)
    assert ends == pytest.approx([(v - values[0]) / (values[-1] - values[0]) for v in values], abs=1e-4)
    best = next(trace for trace in figure.data if trace.name.startswith(f"trial {study.best_trial.number},"))
    assert best.y[2] == 1
    assert figure.data[-1] is best  # on top


def test_the_front_is_of_trials_that_none_beats():
    study = optuna.create_study(directions=["maximize", "maximize"])
    study.set_user_attr("rates", RATES)
    for values in ((0.5, 0.1), (0.4, 0.3), (0.3, 0.2), (0.1, 0.4)):
        attrs = {"accuracy": curve(values[0]), "costs": [1, 0.8, 0.5, 0.1]}
        study.add_trial(create_trial(values=values, user_attrs=attrs))
    lines = named(FIGURES["front"](study))
    assert list(zip(lines["front"].x, lines["front"].y, strict=True)) == [(0.4, 0.1), (0.3, 0.4), (0.1, 0.5)]
    assert list(zip(lines["trials"].x, lines["trials"].y, strict=True)) == [(0.2, 0.3)]
    (cost,) = FIGURES["cost"](study).data
    assert list(cost.x) == pytest.approx([0, 0.2, 0.5, 0.9])
    assert list(cost.y) == curve(0.5)
    study.set_user_attr("config", {"objective": "macs"})  # alone, too
    assert "multiply-adds saved" in FIGURES["cost"](study).layout.title.text


def test_old_studies_have_figures_without_what_they_lack(old_study):
    drawn = draw_all(old_study)
    assert set(drawn) == {"search", "history", "trials", "importance", "slices"}
    assert all("95 %" not in trace.name for trace in drawn["search"].data)  # no number of samples, no interval


def test_a_study_without_trials_has_no_figures():
    study = optuna.create_study(direction="maximize")
    study.set_user_attr("rates", RATES)
    assert draw_all(study) == {}


def test_a_figure_of_ones_own_is_drawn_with_the_others(finished_study, monkeypatch):
    monkeypatch.setattr(FIGURES, "_pieces", dict(FIGURES._pieces))
    register_figure("mine", lambda study: plotly.Figure(plotly.Bar(y=[len(study.trials)])))
    assert draw_all(finished_study)["mine"].data[0].y == (24,)
    with pytest.raises(ValueError, match="there already"):
        register_figure("history", lambda study: None)


def test_labels_are_moved_apart_within_the_axis():
    placed = spread([0.1, 0.1, 0.1, 0.9], 0.1, 0, 1)
    assert placed == pytest.approx([0.1, 0.2, 0.3, 0.9])
    assert spread([0.95, 0.96, 0.97], 0.1, 0, 1) == pytest.approx([0.8, 0.9, 1.0])


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", list(THEMES))
def test_lines_and_their_labels_are_read_on_both_papers(theme):
    paper = luminance(THEMES[theme]["paper"])
    for colour in (BEST, *OTHERS):
        high, low = sorted((paper, luminance(colour)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 3.8, colour


def test_both_themes_differ_in_colours_only():
    light, dark = (template(theme).to_plotly_json()["layout"] for theme in ("light", "dark"))
    assert light.keys() == dark.keys()
    assert light["paper_bgcolor"] == THEMES["light"]["paper"] != dark["paper_bgcolor"]
    assert light["font"]["size"] == dark["font"]["size"]
