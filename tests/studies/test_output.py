"""Reports: the page opens without a network and says what the study holds; files of other formats hold the curves."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import optuna
import pytest
from optuna.trial import create_trial
from pxp_optimize.studies.curves import curves
from pxp_optimize.studies.dashboard import curve_svg
from pxp_optimize.studies.errors import UserError
from pxp_optimize.studies.figures import draw_all
from pxp_optimize.studies.internals import snapshot
from pxp_optimize.studies.output import FORMATS, check_report, figure, write_report
from pxp_optimize.studies.page import page
from pxp_optimize.studies.summary import findings, settings, standing, study_note, trial_note

from .conftest import RATES, curve


def visible(text: str) -> str:
    """A page without its programs and styles."""
    return re.sub(r"<(script|style)>.*?</\1>", "", text, flags=re.DOTALL)


def test_the_page_needs_no_network(finished_study):
    text = page(finished_study)
    assert not re.search(r"""(src|href)\s*=|url\(|@import|<link|<iframe""", visible(text))
    assert "http" not in visible(text)
    assert text.count("plotly.js v") >= 1
    assert text.count("<script>") == 2


def test_the_page_says_what_came_out(finished_study):
    text = visible(page(finished_study))
    for part in (
        "The best is trial 20: AUC 0.4000 on the search images, 0.3500 on the holdout images.",
        "the search alone put trial 21 first",
        "trial 20 0.4000, trial 21 0.3000",
        "The search gained 0.0700 on the holdout images over the best fixed composite, epsilon (0.2800).",
        "1 of 24 trials failed",
        "<td>best (trial 20)</td><td class=number>0.4000</td><td class=number>0.3500</td>",
        "<td>seed</td><td>3</td>",
        "100 search, 50 holdout",
    ):
        assert part in text, part


def test_what_is_read_of_a_snapshot_is_what_is_read_of_the_study(finished_study, monkeypatch):
    def told(study: optuna.Study) -> list:
        notes = [text for trial in study.trials for text in (trial_note(study, trial), curve_svg(study, trial))]
        figures = {name: drawn.to_json() for name, drawn in draw_all(study).items()}
        return [study_note(study), *notes, figures, visible(page(study, draw_all(study))).partition("<footer>")[0]]

    expected, seen = told(finished_study), snapshot(finished_study)
    monkeypatch.setattr(finished_study._storage, "get_all_trials", lambda *args, **how: pytest.fail("asked again"))
    monkeypatch.setattr(finished_study._storage, "get_study_user_attrs", lambda *args: pytest.fail("asked again"))
    assert told(seen) == expected


def test_where_there_is_no_gain_the_page_says_so(finished_study):
    holdout = finished_study.user_attrs["holdout"]
    finished_study.set_user_attr("holdout", {**holdout, "0": {"auc": 0.36, "accuracy": curve(0.36)}})
    text = " ".join(findings(finished_study))
    assert "No gain over the fixed composites on holdout samples: epsilon has 0.3600" in text
    assert "gained" not in text
    finished_study.set_user_attr("rescored", {"0": {"auc": 0.9, "on": "x"}, "21": {"auc": 0.1, "on": "x"}})
    assert "No gain: the best is one of the fixed composites" in " ".join(findings(finished_study))


def test_a_study_that_runs_has_a_page(old_study):
    old_study.set_user_attr("config", {"trials": 40})
    old_study.ask()
    assert standing(old_study) == "23 of 40 trials finished, 1 of them stopped early, 1 running"
    text = visible(page(old_study))
    assert "1 running" in text
    assert "The holdout is still unseen" in text
    assert "it was not scored again" in text


def test_a_study_that_has_only_begun_has_a_page():
    study = optuna.create_study(study_name="new", direction="maximize")
    study.set_user_attr("rates", RATES)
    study.set_user_attr("fingerprint", {"model": "small"})
    assert "No trial is complete yet." in visible(page(study))


def test_names_are_text_on_the_page(finished_study):
    study = optuna.create_study(study_name="<b>&</script>", direction="maximize")
    for key, value in finished_study.user_attrs.items():
        study.set_user_attr(key, value)
    accuracy = curve(0.4)
    attrs = {"accuracy": accuracy, "fixed": "</script><img src=x>", "composite": {"groups": {}}}
    study.add_trial(create_trial(value=0.4, user_attrs=attrs))
    text = page(study)
    assert "<img" not in visible(text)
    assert "&lt;b&gt;&amp;&lt;/script&gt;" in text
    script = text.rpartition("<script>")[2]
    assert script.count("</script>") == 1


def test_trials_of_other_programs_are_refused(finished_study):
    finished_study.add_trial(create_trial(value=0.99))
    with pytest.raises(UserError, match="was not made by pxp-optimize"):
        page(finished_study)


@pytest.mark.parametrize("kind", ["html", "csv", "json"])
def test_studies_of_other_programs_are_refused(tmp_path, kind):
    study = optuna.create_study(study_name="theirs")
    study.add_trial(create_trial(value=1.0))
    with pytest.raises(UserError, match="'theirs' was not made by pxp-optimize"):
        write_report(study, tmp_path / f"a.{kind}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_there_are_no_curves_before_a_trial_is_complete(tmp_path, kind):
    study = optuna.create_study(study_name="new", direction="maximize")
    study.set_user_attr("rates", RATES)
    study.set_user_attr("fingerprint", {"model": "small"})
    with pytest.raises(UserError, match="has no finished trial yet"):
        write_report(study, tmp_path / f"a.{kind}")


def test_csv_and_json_hold_the_curves(finished_study, tmp_path):
    lines = [line for samples in ("holdout", "search") for line in curves(finished_study, samples)]
    write_report(finished_study, tmp_path / "a.csv")
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [(int(row["trial"]), row["samples"], float(row["rate"]), float(row["accuracy"])) for row in rows] == [
        (line.trial, line.samples, rate, accuracy)
        for line in lines
        for rate, accuracy in zip(line.rates, line.accuracy, strict=True)
    ]
    assert [float(row["low"]) for row in rows[:4]] == lines[0].low
    assert {row["trial"] for row in rows if row["best"] == "1"} == {"20"}
    write_report(finished_study, tmp_path / "a.json")
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["format"] == "pxp-curves/1"
    assert [entry["accuracy"] for entry in document["curves"]] == [line.accuracy for line in lines]


@pytest.mark.parametrize("kind", ["html", "csv", "json"])
def test_only_an_earlier_report_is_replaced(finished_study, tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    write_report(finished_study, path)
    write_report(finished_study, path)
    path.write_text("somebody's work")
    with pytest.raises(UserError, match="left as it is"):
        write_report(finished_study, path)
    assert path.read_text() == "somebody's work"


def test_pictures_of_others_are_not_replaced(tmp_path):
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4\n%%EOF\n")
    for kind in ("png", "pdf"):
        assert not FORMATS[kind].ours(tmp_path / f"a.{kind}")
        (tmp_path / f"empty.{kind}").touch()
        assert FORMATS[kind].ours(tmp_path / f"empty.{kind}")


def test_the_ending_says_the_format_or_is_refused(tmp_path):
    assert check_report(tmp_path / "a.CSV") == "csv"
    assert check_report(tmp_path / "a", "json") == "json"
    with pytest.raises(UserError, match="does not say what to write"):
        check_report(tmp_path / "a.txt")
    with pytest.raises(UserError, match="give one of them"):
        check_report(tmp_path / "a.csv", "json")
    with pytest.raises(UserError, match="is the database"):
        check_report(tmp_path / "b.html", storage=str(tmp_path / "b.html"))


def test_pictures_without_kaleido_name_the_extra(finished_study, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    for kind in ("png", "pdf"):
        with pytest.raises(UserError, match=re.escape("pip install 'pxp-optimize[images]'")):
            write_report(finished_study, tmp_path / f"a.{kind}")
    assert not list(tmp_path.glob("a.p*"))


def test_pictures_are_drawn(finished_study, tmp_path):
    pytest.importorskip("kaleido")
    from PIL import Image

    for kind in ("png", "pdf"):
        write_report(finished_study, tmp_path / f"a.{kind}", figure="history")
        assert FORMATS[kind].ours(tmp_path / f"a.{kind}")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size[0] == 1440
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert (0xD5, 0x5E, 0x00) in colours  # the best trial's mark
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_figures_are_given_by_name(old_study):
    assert figure(old_study).layout.title.text == "Accuracy on the search images"  # there is no holdout
    with pytest.raises(UserError, match="no figure 'x': choose from holdout, search"):
        figure(old_study, "x")
    with pytest.raises(UserError, match="nothing for the figure 'layers'"):
        figure(old_study, "layers")


def test_settings_leave_out_what_an_old_study_does_not_know(old_study, finished_study):
    assert settings(finished_study)["units"] == "8 filters in 2 layers"
    finished_study.set_user_attr("fingerprint", {"model": "small", "units": "filters"})
    finished_study.set_user_attr("units", {})
    finished_study.set_user_attr("config", {})
    found = settings(finished_study)
    assert (found["model"], found["units"], found["schedule"]) == ("small", "filters", "oneshot")
    assert not {"seed", "samples", "classes"} & found.keys()


def test_notes_say_which_is_best_and_what_a_trial_tried(finished_study):
    note = study_note(finished_study)
    assert "The best is trial 20" in note
    assert "| best (trial 20) | 0.4000 | 0.3500 |" in note
    trial = trial_note(finished_study, finished_study.trials[0], "/artifacts/1/1/x")
    assert trial.startswith("**pxp-optimize:** trial 0 (epsilon), AUC 0.3000 on the search images.")
    assert "![Accuracy over the part of the units removed](/artifacts/1/1/x)" in trial
    assert "| 0.25 | 40.0% | 37.3% |" in trial
    failed = trial_note(finished_study, finished_study.trials[-1])
    assert "failed: relevance of layer fc is not finite" in failed


def test_a_file_that_cannot_be_read_is_left(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="left as it is"):
        check_report(tmp_path / "a.csv")
