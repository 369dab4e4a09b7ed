"""`slugbench score`: images made elsewhere give the table and the reports that a run gives."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from slugbench.bench.cli import main
from slugbench.tasks import _unlearncanvas

from ..canvas_files import INPUT, SEED, SPEC, write_answer_set
from ..toys import TOY_TASK, restored_registry

pytestmark = pytest.mark.usefixtures("small_canvas", "cache")


def score(images, classifiers, out, *arguments, target="Van_Gogh"):
    folders = ["--images", str(images), "--classifiers", str(classifiers), "--out", str(out)]
    return main(["score", SPEC, "--target", target, *folders, "--threads", "1", "--format", "csv", *arguments])


def values(out, method, target="Van_Gogh"):
    frame = pd.read_parquet(out / "table.parquet")
    return frame[(frame.method == method) & (frame.request == target)].set_index("metric")


@pytest.fixture(scope="module")
def scored(tmp_path_factory, canvas_images, canvas_classifiers):
    """A folder with the scores of a model that draws Picasso for Van Gogh, beside the original and an oracle."""
    folder = tmp_path_factory.mktemp("scored")
    theirs = write_answer_set(folder / "theirs", seed=1, drawn_as={"Van_Gogh": "Picasso"})
    oracle = write_answer_set(folder / "oracle", seed=2, drawn_as={"Van_Gogh": "Monet"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLUGBENCH_CACHE", str(folder / "cache"))
        patch.setattr(_unlearncanvas, "INPUT", INPUT)
        beside = ["--original", str(canvas_images), "--oracle", str(oracle), "--name", "theirs", "--format", "md,csv"]
        assert score(theirs, canvas_classifiers, folder / "out", *beside) == 0
    return folder


def test_a_folder_of_images_becomes_a_table_a_run_file_and_reports(scored):
    frame, run = pd.read_parquet(scored / "out" / "table.parquet"), json.loads((scored / "out" / "run.json").read_text())
    assert set(frame.method) == {"theirs"} and set(frame.status) == {"ok"} and set(frame.pool) == {"test"}
    assert frame.note.str.contains("raised").sum() == 0  # metrics that do not apply say so, or say nothing
    assert run["suite"]["name"] == "unlearncanvas-scores" and set(frame.provenance) == set(run["provenance"])
    assert {path.name for path in (scored / "out" / "report").iterdir()} >= {"leaderboard.csv", "leaderboard.md"}


def test_the_table_says_what_was_drawn_for_the_target(scored):
    found = values(scored / "out", "theirs")
    assert found.value["ua"] == found.value["ua_norm"] == 1 and found.oracle_mean["ua"] == 1
    assert found.value["ua_conf"] > 0.9 and "Picasso" in found.note["ua_conf"]
    assert found.value["ira"] > 0.9 and found.n_units["ira"] == 50 and found.n_images["ira"] == 50 * 20
    assert "the original's is 0.0000" in found.note["ua"] and found.value["n_oracles"] == 1


def test_pictures_quality_is_measured_against_the_originals_and_says_what_there_is_nothing_to_compare_with(scored):
    found = values(scored / "out", "theirs")
    for name in ("kid_original", "cmmd_original", "feature_shift"):
        assert np.isfinite(found.value[name]) and found.n_images[name] == 50 * 20
    for name in ("kid_real", "cmmd_real", "fid", "clip_score"):
        assert np.isnan(found.value[name]) and found.note[name]
    assert "real pictures are not at hand" in found.note["kid_real"] and "0 real pictures" in found.note["fid"]


def test_without_the_original_all_of_quality_is_null_with_the_reason(scored, canvas_classifiers, tmp_path):
    shutil.copytree(scored / "out" / "predictions", tmp_path / "out" / "predictions")  # what is known is not asked again
    assert score(scored / "theirs", canvas_classifiers, tmp_path / "out", "--metrics", "image_quality") == 0
    found = values(tmp_path / "out", "elsewhere")
    quality = found.loc[["kid_original", "kid_real", "cmmd_original", "cmmd_real", "fid", "feature_shift", "clip_score"]]
    assert quality.value.isna().all() and (quality.note != "").all()
    assert "the original's pictures are not at hand" in found.note["feature_shift"]


def test_classifiers_that_do_not_see_what_the_original_drew_fail_a_gate(
    scored, canvas_images, canvas_classifiers, tmp_path, capsys
):
    passed = json.loads((scored / "out" / "run.json").read_text())["gates"]
    assert [gate["ok"] for gate in passed] == [True, True] and min(gate["value"] for gate in passed) > 0.95
    blind = write_answer_set(tmp_path / "blind", seed=3, drawn_as=dict.fromkeys(_unlearncanvas.OBJECTS, "Sea"))
    arguments = ("--original", str(blind), "--metrics", "canvas_accuracy")
    for _ in range(2):  # also where there is nothing left to do
        assert score(canvas_images, canvas_classifiers, tmp_path / "out", *arguments) == 4
        assert "gate 'the object classifier sees what the original was asked for' of" in capsys.readouterr().err
    assert (tmp_path / "out" / "table.parquet").exists()


def test_every_aggregate_can_be_made_anew_from_the_arrays(scored):
    (file,) = (scored / "out" / "arrays").iterdir()
    with np.load(file) as stored:
        a = {name: stored[name] for name in stored.files}
    right = a["answer.object"] == a["question.object"]
    per_class = [right[a["question.object"] == k].mean() for k in range(20)]
    assert values(scored / "out", "theirs").value["cra"] == pytest.approx(np.mean(per_class), abs=1e-12)
    assert np.array_equal(a["answer.style_log_p"].argmax(1), a["answer.style"])
    assert np.allclose(np.exp(a["answer.object_log_p"].astype(float)).sum(1), 1, atol=1e-5)  # float32


def test_scoring_again_classifies_no_image_twice_and_does_nothing(scored, canvas_classifiers, capsys, monkeypatch, cache):
    shutil.copytree(scored / "out", scored.parent / "again", dirs_exist_ok=True)

    def refuse(*_):
        raise AssertionError("classified again")

    monkeypatch.setattr(_unlearncanvas.Classifiers, "__call__", refuse)
    before = (scored / "out" / "table.parquet").read_bytes()
    for _ in range(2):  # without the original it is another cell; then there is nothing left to do
        assert score(scored / "theirs", canvas_classifiers, scored.parent / "again", "--name", "alone") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert set(pd.read_parquet(scored.parent / "again" / "table.parquet").method) == {"theirs", "alone"}
    assert json.loads((scored.parent / "again" / "run.json").read_text())["suite"]["methods"] == ["theirs", "alone"]
    assert (scored / "out" / "table.parquet").read_bytes() == before


def test_an_interrupted_scoring_goes_on_from_what_is_known(canvas_images, canvas_classifiers, tmp_path, monkeypatch):
    known, real = [], _unlearncanvas.Classifiers.__call__

    def interrupted(self, batch):
        known.append(len(batch))
        if len(known) == 3:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(_unlearncanvas.Classifiers, "__call__", interrupted)
    arguments = (canvas_images, canvas_classifiers, tmp_path / "out", "--metrics", "canvas_accuracy")
    assert score(*arguments) == 130
    assert score(*arguments) == 0
    assert sum(known) == 1020 + _unlearncanvas.BATCH  # the third batch alone was run twice


def test_an_image_made_anew_is_classified_anew_and_replaces_the_score(scored, canvas_classifiers, tmp_path):
    shutil.copytree(scored / "theirs", tmp_path / "theirs")
    arguments = (tmp_path / "theirs", canvas_classifiers, tmp_path / "out", "--metrics", "canvas_accuracy")
    assert score(*arguments) == 0
    first = values(tmp_path / "out", "elsewhere").value
    right = tmp_path / "theirs" / f"Van_Gogh_Dogs_seed{SEED}.jpg"
    shutil.copy(write_answer_set(tmp_path / "whole", seed=0) / right.name, right)
    assert score(*arguments) == 0
    assert values(tmp_path / "out", "elsewhere").value["ua"] == first["ua"] - 1 / 20


BAD = {
    "unknown target": ({"target": "Van_Gog"}, [], "has no request 'Van_Gog' (did you mean 'Van_Gogh'?)"),
    "photographs": ({"target": "Seed_Images"}, [], "has no request 'Seed_Images'"),
    "no images": ({"images": "nowhere"}, [], "there is no folder nowhere"),
    "no classifiers": ({"classifiers": "nowhere"}, [], "the style classifier nowhere/style50.pth is missing"),
    "oracle alone": ({}, ["--oracle", "x"], "give --original too"),
    "no name": ({}, ["--name", " "], "is no name that a table can show"),
    "unknown metric": ({}, ["--metrics", "canvas_acuracy"], "did you mean 'canvas_accuracy'?"),
}


@pytest.mark.parametrize(("changed", "arguments", "sentence"), BAD.values(), ids=BAD)
def test_a_bad_argument_is_one_sentence(canvas_images, canvas_classifiers, tmp_path, capsys, changed, arguments, sentence):
    given = {"images": canvas_images, "classifiers": canvas_classifiers, **changed}
    assert score(given.pop("images"), given.pop("classifiers"), tmp_path / "out", *arguments, **given) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.startswith("slugbench: ") and error.count("\n") == 1
    assert not (tmp_path / "out" / "table.parquet").exists()


def test_a_task_that_scores_no_images_says_which_does(tmp_path, capsys):
    with restored_registry():
        arguments = ["--images", "x", "--target", "single", "--out", str(tmp_path / "out"), "--plugin", str(TOY_TASK)]
        assert main(["score", "toy", *arguments]) == 2
    assert "task 'toy' does not score images made elsewhere; unlearncanvas does." in capsys.readouterr().err


def test_a_folder_of_a_run_takes_no_scores(scored, canvas_classifiers, tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps({"suite": {"name": "quick"}, "settings": {"threads": 1, "device": "cpu"}}))
    assert score(scored / "theirs", canvas_classifiers, tmp_path) == 2
    assert "belongs to suite 'quick', not 'unlearncanvas-scores'" in capsys.readouterr().err
