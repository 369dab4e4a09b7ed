"""What papers print beside what was measured: each line of the file has a place or a reason, and none is on a toy."""

import csv
import json
from collections import Counter

import pandas as pd
import pytest

from slugbench.bench import Row
from slugbench.bench.plan import load_suite, parse_spec, reproductions, resolved
from slugbench.bench.registry import load
from slugbench.reports import html, latex, markdown, published, text, tidy
from slugbench.reports.glossary import about
from slugbench.reports.tables import boards

from ..toys import ROOT

FIVE = ("Elon_Musk", "Jeff_Bezos", "Mark_Zuckerberg", "Taylor_Swift", "Kim_Kardashian")
METRICS = {"fa@1": "oracle", "ra@1": "higher", "util@1": "higher", "t_total": "lower"}


def params_of(task):
    load()
    _, params, _ = resolved("task", parse_spec(task))
    return json.dumps(params, sort_keys=True)


def run_of(task="", *, requests=FIVE, methods=("slug", "ga", "svd", "original"), value=0.25, metrics=METRICS, targets=1):
    """A finished run, every value the same."""
    task = task or load_suite("clip-celeba").tasks[0]
    facts = {"suite": "x", "task": parse_spec(task).name, "task_params": params_of(task), "pool": "test", "base_seed": 0}
    facts |= {"method_params": "{}", "method_seed": 0, "device": "cuda", "threads": 1, "concurrent": False, "status": "ok"}
    facts |= {"started": "2026-01-02T03:04:05+00:00", "provenance": "0" * 12}
    rows = [
        Row(**facts, cell=f"{request}-{method}", request=request, targets=json.dumps([request][:targets]), method=method,
            metric=metric, value=value, better=better)
        for request in requests for method in methods for metric, better in metrics.items()
    ]  # fmt: skip
    return pd.DataFrame([vars(row) for row in rows], columns=list(Row.columns()))


def board_of(*arguments, **more):
    (board,) = boards(run_of(*arguments, **more), [{}])
    return board


# ---------------------------------------------------------------- the file


def test_each_line_of_the_file_has_a_place_or_a_reason_and_never_both():
    with (ROOT / "reports" / "published.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(published.records()) == 216
    for line in lines:
        assert (len(published.places(line)) == 1) != (published.reason(line) is not None), line


def test_each_reason_is_for_a_line_of_the_file():
    named = {(line["benchmark"], line[column]) for line in published.records() for column in ("method", "metric")}
    assert set(published.UNMAPPED) <= named


def test_no_number_is_in_the_file_twice():
    keys = Counter((line["benchmark"], line["method"], line["metric"]) for line in published.records())
    assert max(keys.values()) == 1


def test_places_are_tasks_methods_and_metrics_that_there_are():
    registry = load()
    elsewhere = {"fmn", "seot", "spm", "ediff", "shs"}  # of UnlearnCanvas, whose images come under any name
    for experiment in published.EXPERIMENTS:
        assert experiment.task in registry.names("task")
        assert set(experiment.methods.values()) <= {*registry.names("method"), *elsewhere}
        assert set(experiment.params) <= set(registry.get("task", experiment.task).parameters())
        for metric in experiment.metrics.values():
            assert about(metric.removeprefix("1 - ")).text


def test_shares_are_fractions_and_what_was_unlearned_is_what_is_left():
    found = {(p.benchmark, p.method, p.metric): p.value for line in published.records() for _, p in published.places(line)}
    assert found["clip-celeba", "original", "fa@1"] == pytest.approx(0.7305)
    assert found["clip-celeba", "ga", "mia_cc3m"] == pytest.approx(0.8996)
    assert found["cifar10-random10", "salun", "acc_forget"] == pytest.approx(1 - 0.0285)
    assert found["cifar10-random10", "salun", "acc_retain"] == pytest.approx(0.9393)  # the test accuracy
    assert found["cifar10-class", "ga", "acc_retain"] == pytest.approx(0.6989)  # its NegGrad
    assert all(0 <= value <= 1 for value in found.values())


def test_the_objects_are_those_of_the_task():
    from slugbench.tasks._unlearncanvas import OBJECTS

    assert set(published.OBJECTS) == set(OBJECTS)


# ---------------------------------------------------------------- beside a board


def test_a_run_by_the_published_protocol_has_differences():
    found = published.beside(board_of())
    assert found["slug", "util@1"].difference == pytest.approx(0.25 - 0.5996)
    assert found["slug", "fa@1"].published.confidence == "medium"
    assert found["original", "fa@1"].published.confidence == "high"
    assert {method for method, _ in found} == {"slug", "ga", "original"} and ("slug", "t_total") not in found


OTHERWISE = {
    "protocol": ("celeba:imagenet=x,forget_data=x,retain_data=x", FIVE, "protocol=default"),
    "training data": ("celeba:protocol=published,imagenet=x", FIVE, "forget_data=None, retain_data=None"),
    "model": (
        "celeba:protocol=published,model=ViT-B-16,imagenet=x,forget_data=x,retain_data=x", FIVE, "model=ViT-B-16",
    ),
    "people": ("", (*FIVE, "Kanye_West"), "other requests"),
}  # fmt: skip


@pytest.mark.parametrize(("task", "requests", "why"), OTHERWISE.values(), ids=OTHERWISE)
def test_another_protocol_shows_the_number_but_no_difference(task, requests, why):
    board = board_of(task, requests=requests)
    found = published.beside(board)
    assert found["slug", "util@1"].published.value == 0.5996
    assert {each.difference for each in found.values()} == {None}
    assert f"evaluates otherwise ({why})" in published.sentence(board)


def test_toys_joint_requests_and_other_draws_have_nothing_published(frame, runs):
    assert {board.task for board in boards(frame, runs)} == {"identities", "digits"}
    for board in boards(frame, runs):
        assert not published.beside(board) and not published.sentence(board) and not len(published.table(board))
    joint = run_of().assign(targets='["a", "b"]')
    assert not published.beside(boards(joint, [{}])[0])
    halves = run_of("cifar10:protocol=published", requests=("random-50-2",), methods=("salun",), targets=0,
                    metrics={"acc_forget": "oracle"})  # fmt: skip
    assert not published.beside(boards(halves, [{}])[0])


def test_classes_and_samples_of_one_data_set_are_other_experiments():
    of_metric = {"metrics": {"acc_retain": "higher"}, "methods": ("ga", "oracle")}
    recipe = "cifar10:protocol=published,recipe=svd"
    classes = published.beside(board_of(recipe, requests=("class-0", "class-3"), **of_metric))
    assert classes["oracle", "acc_retain"].published.value == pytest.approx(0.9481)
    samples = published.beside(board_of("cifar10:protocol=published", requests=("random-10-3",), targets=0, **of_metric))
    assert samples["oracle", "acc_retain"].published.value != classes["oracle", "acc_retain"].published.value
    assert samples["ga", "acc_retain"].difference == pytest.approx(0.25 - 0.9401)


def test_images_made_elsewhere_come_under_any_name_and_styles_are_no_objects():
    canvas = {"methods": ("ESD",), "metrics": {"ua": "higher", "ira": "higher"}}
    styles, things, mixed = (("Van_Gogh", "Monet"), ("Dogs", "Sea"), ("Van_Gogh", "Dogs"))
    found = published.beside(board_of("unlearncanvas", requests=styles, **canvas))
    assert found["ESD", "ua"].published.value == pytest.approx(0.9858) and found["ESD", "ua"].difference is not None
    found = published.beside(board_of("unlearncanvas", requests=things, **canvas))
    assert found["ESD", "ua"].published.value == pytest.approx(0.9215)
    assert not published.beside(board_of("unlearncanvas", requests=mixed, **canvas))
    small = published.beside(board_of("unlearncanvas:seeds=1", requests=styles, **canvas))
    assert small["ESD", "ua"].difference is None


# ---------------------------------------------------------------- on pages


def test_every_report_shows_number_difference_confidence_and_protocol(tmp_path):
    frame = run_of()
    (board,) = boards(frame, [{}])
    plain = text.screen(frame, [{}])
    assert max(map(len, plain.splitlines())) <= text.WIDTH
    pages = [plain, markdown.document(frame, [{}]), html.page(frame, [{}])]
    for page in pages:
        assert "0.600 (-0.350)" in page and "medium" in page and "CLIP ViT-B-32 laion400m_e32" in page
    set_ = latex.table(board, latex.shown(board), "x")
    assert r"{\scriptsize 0.600 ($-$0.350)}" in set_ and "CLIP ViT-B-32 laion400m\\_e32" in set_


def test_the_file_of_numbers_has_columns_of_its_own(tmp_path):
    board = pd.read_csv(tidy.Csv()(run_of(), [{}], tmp_path)[0]).set_index(["method", "metric"])
    line = board.loc["slug", "util@1"]
    assert (line.published, line.published_confidence) == (0.5996, "medium")
    assert line.published_difference == pytest.approx(0.25 - 0.5996) and "Table 1" in line.published_source
    assert pd.isna(board.loc["svd", "util@1"].published)


def test_reports_without_published_numbers_are_as_they_were(frame, runs, tmp_path):
    assert "published" not in text.screen(frame, runs) and "Beside what is published" not in html.page(frame, runs)
    assert "published" not in pd.read_csv(tidy.Csv()(frame, runs, tmp_path)[0]).columns


# ---------------------------------------------------------------- what repeats them


@pytest.mark.parametrize("name", [e.benchmark for e in published.EXPERIMENTS if e.task != "unlearncanvas"])
def test_a_reproduction_runs_what_was_published_and_evaluates_alike(name):
    (experiment,) = (e for e in published.EXPERIMENTS if e.benchmark == name)
    suite = load_suite(name)
    (task,) = suite.tasks
    requests = suite.requests[experiment.task]
    methods = {parse_spec(method).name for method in suite.methods}
    assert set(experiment.methods.values()) <= methods
    board = board_of(task, requests=requests, methods=tuple(methods), targets=int(name != "cifar10-random10"))
    assert published.experiment_of(board) is experiment and not experiment.differs(board)


@pytest.mark.parametrize(("name", "ua"), [("unlearncanvas", 0.9858), ("unlearncanvas-objects", 0.9215)])
def test_styles_and_objects_are_repeated_apart(name, ua):
    """One table of both would stand beside neither's numbers."""
    suite = load_suite(name)
    methods = tuple(parse_spec(method).name for method in suite.methods)
    board = board_of(suite.tasks[0], requests=suite.requests["unlearncanvas"], methods=methods, metrics={"ua": "higher"})
    found = published.beside(board)
    assert found["esd", "ua"].published.value == pytest.approx(ua)
    assert {method for method, _ in found} == {"esd", "concept_ablation", "uce", "salun", "slug"}
    assert all(each.difference is not None for each in found.values())


@pytest.mark.parametrize("other", ["steps=20", "guidance=7.5", "images=5", "styles=10", "objects=5", "seeds=1"])
def test_canvas_drawn_otherwise_is_beside_published_numbers_without_a_difference(other):
    board = board_of(f"unlearncanvas:{other}", requests=("Byzantine",), methods=("esd",), metrics={"ua": "higher"})
    assert published.beside(board)["esd", "ua"].difference is None and other in published.sentence(board)


def test_reproductions_are_of_the_files_benchmarks():
    load()
    known = {line["benchmark"] for line in published.records()}
    assert {name.removesuffix("-objects") for name in reproductions()} < known
