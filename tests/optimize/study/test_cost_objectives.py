"""Studies whose trials are judged by the area over a cost, with units ranked by relevance over their price."""

from __future__ import annotations

import json

import optuna
import pytest
import torch
from pxp_optimize.attribution import load_composite
from pxp_optimize.optimize.options import Options
from pxp_optimize.optimize.search.space import FIXED, HALF_PRICED, PRICED
from pxp_optimize.optimize.study.costs import timed
from pxp_optimize.optimize.study.explain import shown_methods
from pxp_optimize.optimize.study.prepare import prepare
from pxp_optimize.pruning import END, LayerTimes, area_saved, auc
from pxp_optimize.studies.best import RESCORED, SAVED, auc_of, best_trial, score_of, search_best
from pxp_optimize.studies.figures import FIGURES
from pxp_optimize.studies.report import title
from pxp_optimize.studies.storage import open_storage
from pxp_optimize.studies.summary import findings, headings, table

STUDY = "network:small-images-filters-{}"


def load(project, name: str) -> optuna.Study:
    return optuna.load_study(
        study_name=STUDY.format(name), storage=open_storage(str(project.folder / f"cost-{name}.db"))
    )


def command(project, cost: str, *more: str) -> list[str]:
    names = ["--storage", f"cost-{cost}.db", "--export", f"cost-{cost}.json"]
    return [*project.options, *names, "--objective", cost, "--trials", "10", *more]


@pytest.fixture(scope="module", params=["macs", "params", "latency"])
def searched(request, project):
    result = project.run(*command(project, request.param))
    assert result.returncode == 0, result.stderr
    return project, request.param, result


def test_a_trial_is_judged_by_its_area(searched):
    project, cost, _ = searched
    study = load(project, cost)
    assert study.metric_names == [f"area over {cost}"]
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 10
    rates = study.user_attrs["rates"]
    for trial in study.trials:
        accuracy, costs = trial.user_attrs["accuracy"], trial.user_attrs["costs"]
        curve = [*accuracy, *trial.user_attrs.get("beyond", [])]
        assert len(costs) == len(curve)
        assert trial.value == pytest.approx(area_saved(costs, curve))
        assert auc_of(trial) == pytest.approx(auc(rates, accuracy))
        assert len(costs) == len(rates) or 1 - costs[len(rates) - 1] < END
    assert score_of(search_best(study)) == study.best_value


def test_known_composites_are_tried_with_and_without_prices(searched):
    project, cost, _ = searched
    trials = load(project, cost).trials[:8]
    assert [trial.user_attrs["fixed"] for trial in trials] == [*FIXED, *(f"{name}{PRICED}" for name in FIXED)]
    for trial in trials:
        ranking = trial.user_attrs["composite"]["ranking"]
        assert ranking.get("cost_exponent", 0) == trial.user_attrs["fixed"].endswith(PRICED)
        assert ranking.get("cost", "macs") == (cost if "cost_exponent" in ranking else "macs")
        assert ("seconds" in ranking) == (cost == "latency" and "cost_exponent" in ranking)


def test_what_is_reported(searched):
    project, cost, result = searched
    study = load(project, cost)
    best = best_trial(study)
    found = json.loads((project.folder / f"cost-{cost}.json").read_text())["result"]
    holdout = study.user_attrs["holdout"][str(best.number)]
    assert (found["objective"], found["area"], found["auc"]) == (cost, best.value, auc_of(best))
    assert (found["holdout_area"], found["holdout_auc"]) == (holdout["area"], holdout["auc"])
    assert set(found["saved"]) == {"rate", "macs", "params", "latency"}
    assert found["saved"] == study.user_attrs[SAVED][str(best.number)]
    assert all("area" in score for score in study.user_attrs[RESCORED].values())
    assert f"{best.value:.4f}" in result.stdout
    assert f"{holdout['area']:.4f}" in result.stdout
    assert f"{found['saved']['macs']:.0%} of macs" in result.stdout
    listed = project.run("studies", "--storage", f"cost-{cost}.db")
    assert f"area {search_best(study).value:.4f} over {cost}" in listed.stdout
    exported = project.run("export", "--storage", f"cost-{cost}.db", "--trial", "0", "-o", "first.json")
    assert exported.stdout.rstrip().endswith(f"area {study.trials[0].value:.4f} over {cost}")
    pruned = project.run("prune", "--storage", f"cost-{cost}.db", "--rate", "0.3", "-o", "reported.pt2")
    assert "(--" not in pruned.stdout  # a study has its options
    assert ("the same, by the study's table" in pruned.stdout) == (cost == "latency")
    assert ("of the measured latency" in result.stdout) == (cost == "latency")


def test_report_and_dashboard_speak_of_areas(searched):
    project, cost, result = searched
    study = load(project, cost)
    best = best_trial(study)
    assert "not saved" not in result.stderr
    text = " ".join(findings(study))
    assert f"The best is {title(best)}: area {best.value:.4f} on the search images" in text
    assert f"{study.user_attrs['holdout'][str(best.number)]['area']:.4f} on the holdout images" in text
    assert f"trial {best.number} {study.user_attrs[RESCORED][str(best.number)]['area']:.4f}" in text
    heads, rows = headings(study), {row[0]: row[1:] for row in table(study)}
    assert heads[1:3] == ("area, search", "area, holdout")
    assert rows["epsilon"][0] == f"{study.trials[0].value:.4f}"
    history = {trace.name: trace for trace in FIGURES["history"](study).data}
    assert list(history["trials"].y) == [trial.value for trial in study.trials]
    lines = {trace.name: trace for trace in FIGURES["cost"](study).data}
    assert f"epsilon  {study.user_attrs['holdout']['0']['area']:.3f}" in lines or best.number == 0
    titles = [name.removeprefix("best: ") for name in shown_methods(study, most=9)]
    plain = {name.removesuffix(PRICED).removesuffix(HALF_PRICED) for name in titles}
    assert len(plain) == len(titles)  # prices change no heat map
    page = project.run("report", "--storage", f"cost-{cost}.db", "-o", f"cost-{cost}.html")
    assert page.returncode == 0, page.stderr
    assert f"{best.value:.4f}" in (project.folder / f"cost-{cost}.html").read_text()


def test_the_search_has_an_exponent(searched):
    project, cost, _ = searched
    result = project.run(*command(project, cost, "--trials", "24"))
    assert result.returncode == 0, result.stderr
    trials = [trial for trial in load(project, cost).trials if "given" not in trial.user_attrs]
    assert len(trials) == 6
    for trial in trials:
        exponent = trial.params["cost_exponent"]
        assert 0 <= exponent <= 1.5
        assert trial.user_attrs["composite"]["ranking"]["cost_exponent"] == exponent


def test_the_pruned_network_is_the_studys(searched):
    """By the command, which prepares the study's task, and by its JSON and images alone."""
    project, cost, _ = searched
    study = load(project, cost)
    number = next(t.number for t in study.trials if t.user_attrs.get("fixed") == f"zplus{PRICED}")
    out = f"cost-{cost}.safetensors"
    pruned = project.run(
        "prune", "--storage", f"cost-{cost}.db", "--trial", str(number), "--rate", "0.5", "-o", out, "-q"
    )
    assert pruned.returncode == 0, pruned.stderr
    exported = project.run("export", "--storage", f"cost-{cost}.db", "--trial", str(number), "-o", "priced.json")
    assert exported.returncode == 0, exported.stderr
    document = json.loads((project.folder / "priced.json").read_text())
    composite = load_composite(document)
    assert (composite.cost_exponent, composite.cost) == (1.0, cost)
    assert composite.to_dict()["ranking"] == study.trials[number].user_attrs["composite"]["ranking"]


def test_methods_are_compared_by_the_area(searched):
    project, cost, _ = searched
    out = ["--output", f"cost-{cost}-compare.json", "--csv", f"cost-{cost}-compare.csv"]
    for _ in range(2 if cost == "macs" else 1):  # the second time over the first one's files
        compared = project.run("compare", "--storage", f"cost-{cost}.db", "--seeds", "2", *out, "-q")
        assert compared.returncode == 0, compared.stderr
    assert "area less the best's" in compared.stdout
    document = json.loads((project.folder / f"cost-{cost}-compare.json").read_text())
    found = {method["name"]: method for method in document["methods"]}
    assert f"zplus{PRICED}" in found
    for method in found.values():
        assert method["area"]["value"] == pytest.approx(sum(method["area_by_draw"]) / 2)
        assert 0 <= method["area"]["value"] <= 1
        assert "auc" not in method


def test_another_objective_is_refused(searched):
    project, cost, _ = searched
    before = project.files()
    for other in ("auc", f"auc,{cost}", "params" if cost == "macs" else "macs"):
        result = project.run(*command(project, cost, "--objective", other, "--study", STUDY.format(cost)))
        assert result.returncode == 2
        assert f"was made with --objective {cost}, not {other}" in result.stderr.strip().splitlines()[-1]
    assert project.files() == before


def test_a_race_is_refused(project):
    result = project.run(*command(project, "macs", "--pruner", "wilcoxon"))
    assert result.returncode == 2
    assert "--pruner wilcoxon races by the AUC" in result.stderr


def test_layers_are_timed_in_the_precision_of_the_study(monkeypatch):
    under_autocast = []

    def measure(graph, batch, advance):
        under_autocast.append(torch.is_autocast_enabled("cpu"))
        return LayerTimes(batch, {}, {})

    monkeypatch.setattr(LayerTimes, "measure", staticmethod(measure))
    for precision in ("fp32", "bf16"):
        options = Options.parsed(model="mobilenet_v3_small", objective="latency", precision=precision, device="cpu")
        timed(prepare(options), None)
    assert under_autocast == [False, True]
