"""Studies of heat maps: nothing is pruned, trials are judged by the symmetric relevance gain."""

from __future__ import annotations

import contextlib
import json
import shutil

import numpy as np
import optuna
import pytest
import torch
from PIL import Image
from pxp_optimize.attribution import heat_maps, load_composite, relevance_gain
from pxp_optimize.optimize import UserError, optimize
from pxp_optimize.optimize.evaluation.evaluate import evaluate
from pxp_optimize.optimize.options import Options
from pxp_optimize.optimize.search.explained import KNOWN, input_part, known_heat_maps, pixel_bounds
from pxp_optimize.optimize.study.explain import coloured
from pxp_optimize.optimize.study.run import make_space
from pxp_optimize.studies.best import best_trial
from pxp_optimize.studies.comparison import is_csv, is_document
from pxp_optimize.studies.faithfulness import interval
from pxp_optimize.studies.figures import FIGURES, draw_all
from pxp_optimize.studies.output import write_report
from pxp_optimize.studies.report import fixed_trials
from pxp_optimize.studies.storage import open_storage
from scipy.stats import sem

STUDY = "network:small-images-faithfulness"
TRIALS = 17


def load(project) -> optuna.Study:
    return optuna.load_study(study_name=STUDY, storage=open_storage(str(project.folder / "maps.db")))


@pytest.fixture(scope="module")
def searched(project):
    options = project.options[: project.options.index("--rates")]  # with it those go that say how to prune
    more = ["--storage", "maps.db", "--export", "maps.json", "--objective", "faithfulness", "--trials", str(TRIALS)]
    result = project.run(*options, *more)
    assert result.returncode == 0, result.stderr
    return project, options, result


@pytest.fixture(scope="module")
def prepared(project):
    return project.prepared(objective="faithfulness", batch_size=7)


def test_known_composites_come_first_and_the_search_tries_rules_of_the_input(searched):
    trials = load(searched[0]).trials
    names = [trial.user_attrs["fixed"] for trial in trials if "fixed" in trial.user_attrs]
    assert names[:4] == ["epsilon", "zplus", "alpha2-beta1", "gamma0.25"]
    assert set(KNOWN) <= set(names)
    assert [trial.number for trial in trials[: len(names)]] == list(range(len(names)))
    proposed = [trial for trial in trials if "given" not in trial.user_attrs]
    assert len(proposed) == TRIALS - len(names) > 0
    for trial in proposed:
        assert "low.stem.rule" in trial.params
        assert not {"aggregation", "normalization"} & set(trial.params)


def test_a_trial_keeps_both_curves_and_the_gain_of_each_image(searched):
    study = load(searched[0])
    assert study.metric_names == ["SRG"]
    parts = study.user_attrs["rates"]
    assert (parts[0], parts[-1]) == (0, 1)
    for trial in study.trials:
        least, most = (np.array(trial.user_attrs[key]) for key in ("least_first", "most_first"))
        assert (least[0], least[-1]) == (most[0], most[-1])
        assert trial.value == pytest.approx(np.trapezoid(least - most, parts), abs=1e-6)
        assert trial.value == pytest.approx(np.mean(trial.user_attrs["each"]), abs=1e-5)
        assert sum(trial.user_attrs["chunks"]) / len(trial.user_attrs["chunks"]) == pytest.approx(trial.value)


def test_what_is_reported(searched):
    project, _, result = searched
    study = load(project)
    best = best_trial(study)
    document = json.loads((project.folder / "maps.json").read_text())
    found, holdout = document["result"], study.user_attrs["holdout"][str(best.number)]
    assert (found["objective"], found["srg"], found["holdout_srg"]) == ("faithfulness", best.value, holdout["auc"])
    assert (found["regions"], found["replace"], found["target"]) == (2, "blur", "predicted")
    assert load_composite(document).groups == load_composite(best.user_attrs["composite"]).groups
    assert f"{holdout['auc']:.4f}" in result.stdout
    assert "gain: " in result.stdout
    assert "explain:   pxp-optimize explain --study" in result.stdout
    assert "pxp-optimize prune" not in result.stdout
    assert "not saved" not in result.stderr
    assert "AUC" not in result.stdout + result.stderr
    assert "accuracy" not in result.stdout + result.stderr
    assert {"flipping", "history", "maps"} <= set(draw_all(study))
    bands = [trace for trace in FIGURES["flipping"](study).data if trace.fill]
    assert len(bands) == 2  # of the best one's two curves
    assert len(bands[0].y) == 2 * len(study.user_attrs["rates"])
    middle = (np.array(bands[0].y) + np.array(bands[0].y)[::-1])[: len(study.user_attrs["rates"])] / 2
    assert middle == pytest.approx(holdout["least_first"])
    assert not {"holdout", "search", "layers", "trials"} & set(draw_all(study))


def test_it_goes_on_by_its_name(searched):
    project, _, _ = searched
    shutil.copy(project.folder / "maps.db", project.folder / "more.db")
    more = project.run("--study", STUDY, "--storage", "more.db", "--export", "more.json", "--trials", str(TRIALS + 1))
    assert more.returncode == 0, more.stderr
    study = optuna.load_study(study_name=STUDY, storage=open_storage(str(project.folder / "more.db")))
    assert len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))) == TRIALS + 1


def test_its_files_are_written_again(searched):
    project, _, _ = searched
    for name in ("maps.html", "maps.csv", "maps-report.json"):
        for _ in range(2):
            write_report(load(project), project.folder / name)
    page = (project.folder / "maps.html").read_text()
    assert "symmetric relevance gain" in page
    assert (project.folder / "maps.csv").read_text().startswith("study,composite,trial,best,samples,removed,")
    exported = project.run("export", "--storage", "maps.db", "--trial", "1", "-o", "one.json")
    assert "SRG" in exported.stdout
    pruned = project.run("prune", "--storage", "maps.db", "-o", "x.safetensors")
    assert pruned.returncode == 2
    assert "prunes nothing" in pruned.stderr.strip().splitlines()[-1]


def test_methods_are_compared_over_images(searched):
    project, _, _ = searched
    out = ["--output", "maps-compare.json", "--csv", "maps-compare.csv"]
    compared = project.run("compare", "--storage", "maps.db", *out, "-q")
    assert compared.returncode == 0, compared.stderr
    assert is_document(project.folder / "maps-compare.json")
    assert is_csv(project.folder / "maps-compare.csv")
    study = load(project)
    document = json.loads((project.folder / "maps-compare.json").read_text())
    found = {method["name"]: method for method in document["methods"]}
    assert {"epsilon", "gradient_times_input", "integrated_gradients", "smoothgrad", "random"} <= set(found)
    zplus = next(trial for trial in study.trials if trial.user_attrs.get("fixed") == "zplus")
    own, best = (study.user_attrs["holdout"][str(trial.number)] for trial in (zplus, best_trial(study)))
    assert found["zplus"]["srg"]["value"] == pytest.approx(own["auc"], abs=1e-5)
    assert found["zplus"]["replaced"]["blur"] == pytest.approx(own["auc"], abs=1e-5)
    if "zplus" not in document["best"] and zplus.number != best_trial(study).number:
        expected = interval(np.array(own["each"]) - np.array(best["each"]))
        assert found["zplus"]["difference"]["value"] == pytest.approx(expected.value, abs=1e-5)
        assert found["zplus"]["difference"]["p"] == pytest.approx(expected.p, rel=1e-2, abs=1e-9)
    assert abs(found["random"]["srg"]["value"]) < 0.2
    assert set(found["random"]["replaced"]) == {"blur", "mean", "neighbours"}


def test_heat_maps_are_drawn(searched):
    project, _, _ = searched
    drawn = project.run("explain", "--storage", "maps.db", "--images", "images/val", "-o", "drawn", "--most", "4", "-q")
    assert drawn.returncode == 0, drawn.stderr
    files = sorted((project.folder / "drawn").iterdir())
    assert len(files) == 4
    with Image.open(files[0]) as picture:
        assert picture.width > 4 * picture.height * 0.8
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
    values = np.array([[-2.0, 0.0, 1.0]], np.float32)
    low, zero, high = coloured(values)[0].astype(int)
    assert zero.sum() < min(low.sum(), high.sum())
    assert low[2] > low[0]
    assert high[0] > high[2]
    nothing = project.run("explain", "--storage", "maps.db", "--images", "cache", "-q")
    assert nothing.returncode == 2
    assert "no image in it" in nothing.stderr


def test_a_study_of_other_regions_is_refused(searched):
    project, options, _ = searched
    before = project.files()
    more = ["--storage", "maps.db", "--export", "maps.json", "--objective", "faithfulness"]
    result = project.run(*options, *more, "--regions", "4", "--replace", "mean")
    assert result.returncode == 2
    assert "explaining regions: stored 2, now 4" in result.stderr.strip().splitlines()[-1]
    assert "explaining replace: stored blur, now mean" in result.stderr.strip().splitlines()[-1]
    assert project.files() == before


def test_a_training_image_of_each_class_is_enough(project):
    options = ["--objective", "faithfulness", "--trials", "1", "--rescore", "1", "--storage", "few.db"]
    images = project.folder / "few"
    shutil.copytree(project.folder / "images", images)
    for folder in (images / "train").iterdir():
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()
    model = ["--model", "network:small", "--weights", "weights.pt", "--data", "few", "--device", "cpu"]
    done = project.run(*model, "--image-size", "16", "--mean", "0.5", "--std", "0.25", *options)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "faithfulness", "rates": "0,0.5"}, "prunes nothing, and has no use for --rates"),
        ({"objective": "faithfulness", "repair": "none"}, "no use for --repair"),
        ({"objective": "faithfulness,complexity", "draws": 2}, "no use for --draws"),
        ({"objective": "faithfulness", "units": "filters"}, "no use for --units"),
        ({"objective": "faithfulness,auc", "regions": 4, "units": "filters", "rates": "0,0.5"}, None),
        ({"objective": "auc", "regions": 4}, "judges no heat maps, and has no use for --regions"),
        ({"objective": "macs", "replace": "mean"}, "no use for --replace"),
        ({"explain_target": "true"}, "no use for --explain-target"),
    ],
)
def test_options_of_another_objective_are_refused(options, message):
    with contextlib.nullcontext() if message is None else pytest.raises(UserError, match=message):
        Options.parsed(**options).check()


def test_a_trial_is_what_the_functions_give(prepared):
    task = prepared.task
    composite = load_composite({"groups": {key: {"rule": "zplus"} for key in ("low", "mid", "high", "classifier")}})
    found = evaluate(task, composite)
    x = task.search.inputs[0 : len(task.search)]
    with torch.no_grad():
        targets = task.graph.network(x).argmax(1)
    maps = heat_maps(task.graph, composite, x, targets)
    gains = relevance_gain(task.graph, maps, x, targets)
    assert found.each == pytest.approx(gains.tolist(), abs=1e-5)
    assert found.auc == pytest.approx(float(gains.mean()), abs=1e-6)
    ends = task.explaining.ends_of(task, task.search)
    for errors in found.errors:  # both curves begin and end alike
        assert errors[0] == pytest.approx(sem(ends.whole.double()))
        assert errors[-1] == pytest.approx(sem(ends.bare.double()))


def test_a_race_that_sees_all_is_the_whole(prepared):
    composite = load_composite({"groups": {key: {"rule": "gamma"} for key in ("low", "mid", "high", "classifier")}})
    seen: list[float] = []
    raced = evaluate(prepared.task, composite, stop=lambda index, value: bool(seen.append(value)))
    whole = evaluate(prepared.task, composite)
    assert raced.each == pytest.approx(whole.each, abs=1e-6)
    assert seen == pytest.approx(whole.chunks, abs=1e-6)
    stopped = evaluate(prepared.task, composite, stop=lambda index, value: True)
    assert stopped.stopped
    assert stopped.samples == len(stopped.each) < len(whole.each)
    assert stopped.auc == pytest.approx(whole.chunks[0], abs=1e-6)


def test_the_space_finds_known_composites_again(prepared):
    options = Options.parsed(objective="faithfulness")
    space = make_space(options, prepared)
    bounds = pixel_bounds(prepared.task.search.inputs)
    assert bounds == {"low": pytest.approx((-2.0,) * 3), "high": pytest.approx((2.0,) * 3)}
    trial = optuna.trial.FixedTrial(
        {"low.stem.rule": "zbox", **{f"{k}.rule": "zplus" for k in ("low", "mid", "high", "classifier")}}
    )
    composite = space.suggest(trial)
    assert composite.groups["low.stem"].parameters == {name: tuple(of) for name, of in bounds.items()}
    assert space.params_of(composite) == trial.params
    assert input_part({"fc": {"group": "classifier", "type": "linear"}}) is None


def test_a_transformer_is_explained_as_by_the_authors_of_attnlrp(project):
    prepared = project.prepared(model="network:transformer", weights="default", objective=("faithfulness",))
    space = make_space(Options.parsed(objective="faithfulness"), prepared)
    known = known_heat_maps(space, prepared.layers, pixel_bounds(prepared.task.search.inputs))
    composite = known["attnlrp-gamma"]
    assert {(spec.rule, spec.parameters["gamma"]) for spec in composite.groups.values()} == {("gamma", 0.05)}
    assert composite.softmax == "attnlrp"
    assert space.suggest(optuna.trial.FixedTrial(space.params_of(composite))) == composite
    assert evaluate(prepared.task, composite).auc != 0


def test_second_objectives_make_a_front(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(24, 2),
    ).eval()
    data = torch.randn(24, 3, 8, 8), torch.arange(24) % 2
    for name, low in (("complexity", 0), ("stability", -1)):
        result = optimize(
            model,
            reference=data,
            search=data,
            trials=3,
            objective=f"faithfulness,{name}",
            storage=str(tmp_path / f"{name}.db"),
            quiet=True,
        )
        assert result.study.metric_names == ["SRG", name]
        complete = result.study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
        assert len(complete) == 3
        for trial in complete:
            assert low <= trial.values[1] <= 1
            assert trial.values[1] != 0
        assert name in str(result.table())
        if name == "complexity":
            assert {line.name for line in result.compare()} >= {"epsilon", "random"}
        with pytest.raises(UserError, match="prunes nothing"):
            result.prune(rate=0.5)


def test_one_composite_for_heat_maps_and_for_pruning(tmp_path):
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(8, 2)).eval()
    data = torch.randn(24, 3, 8, 8), torch.arange(24) % 2
    how = {"reference": data, "search": data, "trials": 4, "rates": (0.0, 0.5, 0.75), "quiet": True}
    both = optimize(model, objective="faithfulness,auc", storage=str(tmp_path / "both.db"), **how)
    assert both.study.metric_names == ["SRG", "auc"]
    pruned = optimize(model, objective="auc", storage=str(tmp_path / "auc.db"), **how)
    fixed = [
        {name: trial.values[-1] for name, trial in fixed_trials(of.study).items() if trial.values}
        for of in (both, pruned)
    ]
    common = sorted(set(fixed[0]) & set(fixed[1]))
    assert len(common) == 4
    assert [fixed[0][name] for name in common] == pytest.approx([fixed[1][name] for name in common])
    assert {"aggregation", "normalization"} <= set(make_space(Options.parsed(), both.prepared).parameters())


def test_an_interval_of_paired_differences():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        found = interval(rng.normal(0.3, 1, 25))
        inside += found.low <= 0.3 <= found.high
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
    assert 365 <= inside <= 395  # 95 % of 400 are 380
    assert interval(np.zeros(5)).p == 1
