import numpy as np
import pandas as pd
import pytest
import torch

from slugbench.bench import UsageError
from slugbench.methods.slug_results import SlugResults
from slugbench.reports import layer_map

from ..slug_files import LAYER, ORIGINAL, OTHER, line, tensors, write_gradients, write_log, write_results

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(folder, weights=None):
    return SlugResults()(folder, weights)


def values(result):
    return {value.name: value.value for value in result.values}


def test_of_each_person_the_edit_of_least_forget_then_most_imagenet_accuracy_is_reported(tmp_path):
    found = read(write_results(tmp_path))
    by = {(result.request, result.method): result for result in found.results}
    assert set(by) == {(person, method) for person in ("Elon_Musk", "Taylor_Swift") for method in ("slug", "original")}
    musk = values(by["Elon_Musk", "slug"])
    expected = {"fa@1": 0.0, "fa@5": 0.0, "ta@1": 0.58, "ta@5": 0.8, "util@1": 0.5996, "util@5": 0.853, "mia_cc3m": 0.7125}
    assert musk == pytest.approx(expected)
    notes = {value.note for value in by["Elon_Musk", "slug"].values}
    assert notes == {f"{OTHER}, ratio -0.125, evaluation 2 of 3"}
    assert values(by["Elon_Musk", "original"])["fa@1"] == ORIGINAL[0]


def test_the_files_say_which_model_and_weights_they_are_of(tmp_path):
    assert read(write_results(tmp_path)).params == {"model": "ViT-B-32", "pretrained": "laion400m_e32"}


def test_every_evaluation_is_in_a_table_of_its_own(tmp_path):
    table = read(write_results(tmp_path)).tables["searches.csv"]
    assert len(table) == 3 + 4 + 2 and set(table.tower) == {"vision", "text"}
    last = table[table.tower == "text"].iloc[-1]
    assert (last.iteration, last.ratio, last["fa@1"], last["mia_cc3m"]) == (3, -0.0625, 0.125, 0.72)


def test_a_folder_of_one_person_is_read_as_well_as_the_one_above_it(tmp_path):
    above = read(write_results(tmp_path))
    own = read(tmp_path / "slug_Elon_Musk")
    assert list(own.results) == [result for result in above.results if result.request == "Elon_Musk"]


def test_of_a_log_that_two_runs_wrote_to_the_last_counts_and_that_is_said(tmp_path):
    path = write_log(tmp_path, "Elon_Musk", LAYER, [(-0.5, (0.5, *ORIGINAL[1:]))])
    second = line(0, 0, ORIGINAL) + line(1, -0.3, (0.25, *ORIGINAL[1:]))
    path.write_text(path.read_text(encoding="utf-8") + second, encoding="utf-8")
    found = read(tmp_path)
    assert values(found.results[0])["fa@1"] == 0.25
    assert found.remarks == (f"{path} holds 2 runs; the last was taken.",)


def test_layers_are_scored_by_norms_and_cosine_beside_the_weights(tmp_path):
    found = read(write_results(tmp_path), tmp_path / "weights.pt")
    table = found.tables["layers.csv"].set_index("layer")
    assert set(table.index) == {LAYER, OTHER} and set(table.gradients) == {"Elon_Musk_ViT-B-32_laion400m_e32"}
    weight, forget, retain = (tensors(seed)[LAYER].double().numpy().ravel() for seed in range(3))
    norm = np.linalg.norm
    # float32 inner products of 16 numbers
    assert table.importance[LAYER] == pytest.approx(norm(forget) / norm(weight), rel=1e-5)
    assert table.alignment[LAYER] == pytest.approx(abs(forget @ retain) / norm(forget) / norm(retain), rel=1e-5)
    assert not found.remarks


def test_the_layer_map_is_drawn_from_the_table_of_layers(tmp_path):
    write_gradients(tmp_path, "Elon_Musk")
    table = read(tmp_path, tmp_path / "weights.pt").tables["layers.csv"]
    table.to_csv(tmp_path / "layers.csv", index=False)
    assert len(layer_map(pd.read_csv(tmp_path / "layers.csv")).lines) > 0


def test_without_weights_gradients_stay_unread_and_that_is_said(tmp_path):
    found = read(write_results(tmp_path))
    assert "layers.csv" not in found.tables
    (remark,) = found.remarks
    assert remark.startswith("the gradients of Elon_Musk_ViT-B-32_laion400m_e32 were not read")


def test_weights_may_be_safetensors_or_a_training_checkpoint(tmp_path):
    from safetensors.torch import save_file

    write_gradients(tmp_path, "Elon_Musk")
    save_file(tensors(0), tmp_path / "w.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": x for name, x in tensors(0).items()}}, tmp_path / "epoch.pt")
    first, *others = (read(tmp_path, tmp_path / x).tables["layers.csv"] for x in ("weights.pt", "w.safetensors", "epoch.pt"))
    for table in others:  # where tensors lie in memory decides on the last bit of an inner product
        pd.testing.assert_frame_equal(table, first, rtol=1e-6)


class Touches:
    """Unpickled, it makes a file."""

    def __reduce__(self):
        return open, ("was-run", "w")


@pytest.mark.parametrize("content", [{"a": Touches()}, {"a": 1.0}, [torch.zeros(1)]], ids=["code", "numbers", "list"])
def test_gradients_that_are_more_than_tensors_are_refused_and_nothing_is_run(tmp_path, content):
    folder = write_gradients(tmp_path, "Elon_Musk")
    torch.save(content, folder / "train_grads.pt")
    with pytest.raises(UsageError, match=r"train_grads\.pt is no whole file of \{parameter: tensor\}"):
        read(tmp_path, tmp_path / "weights.pt")
    assert not (tmp_path / "was-run").exists()


def test_a_cut_off_file_of_gradients_is_named(tmp_path):
    folder = write_gradients(tmp_path, "Elon_Musk")
    whole = (folder / "forget_grads.pt").read_bytes()
    (folder / "forget_grads.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"forget_grads\.pt is no whole file"):
        read(tmp_path, tmp_path / "weights.pt")


def test_weights_of_another_model_are_refused(tmp_path):
    write_gradients(tmp_path, "Elon_Musk")
    torch.save(tensors(0) | {LAYER: torch.zeros(5, 4)}, tmp_path / "other.pt")
    with pytest.raises(UsageError, match=f"do not belong together: they differ in {LAYER}"):
        read(tmp_path, tmp_path / "other.pt")


GOOD = line(0, 0, ORIGINAL)
BAD = {
    "no search": (GOOD, "holds no whole search"),
    "a gap": (GOOD + line(2, -1, ORIGINAL), "holds no whole search"),
    "more keys": (GOOD.replace(", MIA", ", nbr@1: 0.5, MIA"), "line 1: the keys are iter, ratio"),
    "no ratio": (GOOD.replace("ratio: 0, ", ""), "line 1: the keys are iter, fgt_acc@1"),
    "no number": (GOOD.replace("0.9375", "tensor"), "line 1 has something else where a number should be"),
    "percent": (GOOD.replace("0.9375", "93.75"), "line 1: fa@5 is 93.75; accuracies are written as shares"),
    "percent twice": (GOOD.replace("72.81", "7281.00"), "line 1: mia_cc3m is 72.81"),
}


@pytest.mark.parametrize(("text", "sentence"), BAD.values(), ids=BAD)
def test_a_log_of_another_form_is_refused_by_its_name(tmp_path, text, sentence):
    path = write_log(tmp_path, "Elon_Musk", LAYER, [(-0.5, ORIGINAL)])
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as refused:
        read(tmp_path)
    assert path.name in str(refused.value) and sentence in str(refused.value)


def test_logs_of_two_models_or_of_one_person_twice_are_refused(tmp_path):
    write_log(tmp_path, "Elon_Musk", LAYER, [(-0.5, ORIGINAL)])
    write_log(tmp_path / "again", "Elon_Musk", LAYER, [(-0.5, ORIGINAL)])
    with pytest.raises(UsageError, match="leave one of the two"):
        read(tmp_path)
    write_log(tmp_path / "again", "Taylor_Swift", LAYER, [(-0.5, ORIGINAL)], model="ViT-L-14")
    write_log(tmp_path / "again", "Taylor_Swift", LAYER, [(-0.5, ORIGINAL)])
    with pytest.raises(UsageError, match="of the models ViT-B-32, ViT-L-14"):
        read(tmp_path / "again")


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"holds neither slug_NAME/log_MODEL-TOWER-LAYER\.txt nor forget_grads\.pt"):
        read(tmp_path)
