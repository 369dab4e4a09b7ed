import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from slugbench.bench import TensorSplit, UsageError, Validation
from slugbench.bench.types import Task
from slugbench.tasks import digits
from slugbench.tasks.digits import CrossEntropy, Digits


@pytest.fixture(scope="module")
def trial():
    return Digits().build("class-3", 0)


@pytest.fixture(scope="module")
def sampled():
    return Digits().build("random-3", 0)


def batch_of(split):
    return next(split.batches(len(split)))


# ---------------------------------------------------------------- what is listed, without torch


def test_what_is_listed_and_keyed_needs_neither_torch_nor_scikit_learn():
    code = (
        "import sys; from slugbench.tasks.digits import Digits; t = Digits()\n"
        "assert len(t.requests()) == 20 and t.wanted()[0].found\n"
        "assert len(t.fingerprint('class-0', 0)) == len(t.fingerprint('random-0', 0)) == 64\n"
        "assert not {'torch', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pools_hold_requests_for_classes_and_for_samples_classes_first():
    assert isinstance(Digits(), Task)
    listed = Digits().requests()
    classes, samples = Counter(r.pool for r in listed if r.targets), Counter(r.pool for r in listed if not r.targets)
    assert classes == {"dev": 2, "tune": 2, "test": 5, "sealed": 1}
    assert samples == {"dev": 1, "tune": 2, "test": 6, "sealed": 1}
    assert all(r.targets for r in listed[:10])  # a suite that asks for a few test requests gets classes


def test_fingerprints_differ_by_request_and_by_base():
    assert len({Digits().fingerprint(r.id, seed) for r in Digits().requests() for seed in (0, 1, 2)}) == 60


def test_the_fingerprint_of_a_class_knows_nothing_of_the_tenths(tmp_path, monkeypatch):
    shipped = digits.assets("digits")
    for path in shipped.iterdir():
        (tmp_path / path.name).symlink_to(path)
    before = [Digits().fingerprint(r, 0) for r in ("class-0", "random-0")]
    (tmp_path / "tenths.json").unlink()
    (tmp_path / "tenths.json").write_text("[]")
    monkeypatch.setattr(digits, "assets", lambda task: tmp_path)
    after = [Digits().fingerprint(r, 0) for r in ("class-0", "random-0")]
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


@pytest.mark.parametrize(("request_id", "seed", "named"), [("class-10", 0, "random-9"), ("random-1", 3, "0, 1, 2")])
def test_unknown_requests_and_seeds_are_refused_with_what_there_is(request_id, seed, named):
    for ask in (Digits().build, Digits().fingerprint):
        with pytest.raises(UsageError, match=named):
            ask(request_id, seed)


def test_missing_scans_are_wanted_and_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    assert not Digits().wanted()[0].found
    with pytest.raises(UsageError, match="pip install scikit-learn"):
        Digits().fingerprint("class-0", 0)


# ---------------------------------------------------------------- data


def test_splits_part_all_scans_and_are_stratified():
    splits, label = digits.load_splits(), digits.load_data()["label"].numpy()
    assert sorted(np.concatenate(splits).tolist()) == list(range(1797))
    assert np.bincount(label[splits.train]).tolist() == [40] * 10
    assert np.bincount(label[splits.validation]).tolist() == [30] * 10
    assert len(splits.test) == 1097
    assert digits.draw_splits(label) == {name: rows.tolist() for name, rows in splits._asdict().items()}


def test_a_method_is_given_the_digit_to_forget_and_the_others_to_keep_and_no_test_scan(trial):
    request, test = trial.request, set(digits.load_splits().test.tolist())
    for forget, retain, n in ((request.forget, request.retain, 40), (*request.validation, 30)):
        assert batch_of(forget)["label"].tolist() == [3] * n
        assert np.bincount(batch_of(retain)["label"]).tolist() == [n, n, n, 0, n, n, n, n, n, n]
        assert not test & {*batch_of(forget)["index"].tolist(), *batch_of(retain)["index"].tolist()}
    assert len(request.forget.of("3")) == 40


def test_the_tenths_part_the_training_scans_and_are_drawn_once_for_all():
    splits, tenths, label = digits.load_splits(), digits.load_tenths(), digits.load_data()["label"].numpy()
    assert sorted(tenths.ravel()) == splits.train.tolist()  # so no two share a scan
    assert all(np.bincount(label[rows]).tolist() == [4] * 10 for rows in tenths)
    assert digits.draw_tenths(splits.train, label) == tenths.tolist()


def test_of_samples_a_method_is_given_them_the_other_training_scans_and_no_test_scan(sampled):
    request, splits = sampled.request, digits.load_splits()
    rows = {name: set(batch_of(getattr(request, name))["index"].tolist()) for name in ("forget", "retain")}
    assert rows["forget"] == set(digits.load_tenths()[3].tolist())
    assert rows["retain"] == set(splits.train.tolist()) - rows["forget"]
    assert batch_of(request.validation.forget)["index"].tolist() == batch_of(request.forget)["index"].tolist()
    assert batch_of(request.validation.retain)["index"].tolist() == splits.validation.tolist()
    assert request.targets == ()
    with pytest.raises(UsageError, match="no targets"):
        request.forget.of("3")


def test_of_samples_the_questions_are_the_samples_themselves_and_all_test_scans(sampled):
    split, index = sampled.questions["split"], sampled.questions["index"]
    assert set(split) == {"forget", "retain", "retain_train"}
    assert index[split == "forget"].tolist() == digits.load_tenths()[3].tolist()
    assert index[split == "retain"].tolist() == digits.load_splits().test.tolist()
    assert set(index[split == "retain_train"]) == set(digits.load_splits().train) - set(index[split == "forget"])


def test_of_samples_the_goal_is_the_originals_accuracy_on_scans_it_never_saw(sampled):
    def accuracy(rows):
        data = digits.load_data()
        with torch.no_grad():
            logits = sampled.request.model(data["image"][torch.from_numpy(rows)])
        return np.mean(logits.numpy().argmax(1) == data["label"].numpy()[rows])

    seen, unseen = digits.load_tenths()[3], digits.load_splits().validation
    scores = sampled.request.validate(sampled.request.model)
    assert scores == (accuracy(seen), accuracy(unseen), 0.0) == (1.0, sampled.request.goal, 0.0)
    assert 0.9 < sampled.request.goal < 1


def test_questions_and_answers_are_columns_of_one_length(trial):
    assert {len(c) for c in (*trial.questions.values(), *trial.original.values())} == {1097 + 400}
    split, unit, index = (trial.questions[name] for name in ("split", "unit", "index"))
    assert set(unit[np.isin(split, ("forget", "forget_train"))]) == {3}
    assert sorted(index[np.isin(split, ("forget", "retain"))]) == digits.load_splits().test.tolist()
    assert sorted(index[np.isin(split, ("forget_train", "retain_train"))]) == digits.load_splits().train.tolist()
    assert set(index[split == "forget_train"]) == set(batch_of(trial.request.forget)["index"].tolist())


# ---------------------------------------------------------------- models


def test_training_gives_the_same_bits_whatever_the_callers_threads_and_random_state():
    data, before = digits.load_data(), torch.get_num_threads()
    first = digits.train(data["image"], data["label"], seed=5, steps=20).state_dict()
    torch.rand(7)
    torch.set_num_threads(2)
    again = digits.train(data["image"], data["label"], seed=5, steps=20).state_dict()
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
    other = digits.train(data["image"], data["label"], seed=6, steps=20).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["output.weight"], other["output.weight"])


def test_a_shipped_oracle_can_be_remade(tmp_path, trial):
    train, label = digits.load_splits().train, digits.load_data()["label"].numpy()
    digits.make(tmp_path / "o.safetensors", train[label[train] != 3], digits.oracle_seed(1))
    remade = trial.answer(digits.load_weights(digits.network(), tmp_path / "o.safetensors"))
    # the same bits on the platform they were made on; elsewhere sums may round in another order
    assert np.mean(remade["predicted"] == trial.oracles[1]["predicted"]) > 0.97


def test_an_oracle_of_samples_is_trained_on_all_training_scans_but_these(tmp_path, sampled):
    train, gone = digits.load_splits().train, digits.load_tenths()[3]
    digits.make(tmp_path / "o.safetensors", train[~np.isin(train, gone)], digits.oracle_seed(2))
    remade = sampled.answer(digits.load_weights(digits.network(), tmp_path / "o.safetensors"))
    # as above; those of other seeds or other tenths differ by 0.7 to 1.1
    assert np.median(np.abs(remade["score"] - sampled.oracles[2]["score"])) < 0.5


def test_an_oracle_beyond_the_shipped_ones_is_trained_once_and_kept(tmp_path, monkeypatch, trial):
    monkeypatch.setenv("SLUGBENCH_CACHE", str(tmp_path))
    forget = trial.questions["split"] == "forget"
    assert (trial.answer(trial.oracle_model(3))["predicted"][forget] != 3).all()
    monkeypatch.setattr(digits, "make", None)
    trial.oracle_model(3)


def test_building_a_trial_leaves_the_random_state_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    Digits().build("class-0", 1)
    assert torch.equal(torch.rand(3), expected)


# ---------------------------------------------------------------- answers


class Says(torch.nn.Module):
    """Answers each image with fixed logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits, dtype=torch.float32))

    def forward(self, image):
        return self.logits.expand(len(image), -1)


def answers_of(logits, label):
    return digits.answers(torch.zeros(len(label), 1, 8, 8), torch.tensor(label), Says(logits))


def test_score_is_the_log_odds_of_the_true_label():
    logits = np.linspace(-2, 3, 10)
    p = np.exp(logits) / np.exp(logits).sum()
    got = answers_of(logits.tolist(), list(range(10)))
    assert got["score"] == pytest.approx(np.log(p / (1 - p)), abs=1e-6)  # logits are rounded to float32
    assert got["rank"].tolist() == list(range(9, -1, -1))
    assert got["predicted"].tolist() == [9] * 10


def test_score_stays_finite_where_the_probability_rounds_to_one_or_zero():
    got = answers_of([500.0] + [-500.0] * 9, [0, 1])
    assert got["score"] == pytest.approx([1000 - np.log(9), -1000])


def test_a_model_that_says_the_same_to_everything_is_right_about_one_digit_only():
    got = answers_of([0.0] * 10, list(range(10)))
    assert got["rank"].tolist() == list(range(10))
    assert (got["rank"] == 0).tolist() == (got["predicted"] == np.arange(10)).tolist()


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_answers_that_are_no_number_are_wrong_about_every_digit(broken):
    got = answers_of([broken] * 10, list(range(10)))
    assert (got["predicted"] == -1).all()
    assert (got["rank"] == 9).all()
    assert np.isfinite(got["score"]).all()


# ---------------------------------------------------------------- what a method calls


def test_validation_scores_are_accuracies_with_their_standard_error(trial):
    image, label = torch.zeros(4, 1, 8, 8), torch.tensor([0, 0, 0, 1])
    kept = Validation(TensorSplit({"image": image, "label": label}), TensorSplit({"image": image, "label": label + 1}))
    scores = digits.validate(kept, Says([1.0] + [0.0] * 9))
    assert scores == (0.75, 0.0, pytest.approx((0.75 * 0.25 / 4) ** 0.5))
    assert np.isnan(digits.validate(kept, Says([1.0] + [0.0] * 9), retain=False).retain)
    assert trial.request.validate(trial.request.model).retain > 0.95


def test_relabel_draws_every_other_label_and_never_the_true_one():
    batch = {"image": torch.zeros(9000, 1, 8, 8), "label": torch.full((9000,), 4)}
    new = CrossEntropy().relabel(batch, torch.Generator().manual_seed(0))["label"]
    counts = np.bincount(new, minlength=10)
    assert counts[4] == 0
    assert np.delete(counts, 4) == pytest.approx(1000, abs=120)  # sd 30
    assert (batch["label"] == 4).all()


def test_losses_agree_with_cross_entropy_by_hand(trial):
    batch = batch_of(trial.request.forget)
    logits = CrossEntropy().logits(trial.request.model, batch).detach().double().numpy()
    by_hand = np.mean(np.log(np.exp(logits).sum(1)) - logits[:, 3])
    assert CrossEntropy().loss(trial.request.model, batch).item() == pytest.approx(by_hand, rel=1e-4)
    assert CrossEntropy().forget_loss(trial.request.model, batch).item() == pytest.approx(by_hand, rel=1e-4)


def test_weights_names_every_parameter_once(trial):
    names = CrossEntropy().weights(trial.request.model)["model"]
    assert sorted(names) == sorted(trial.request.model.state_dict())


def test_masked_never_answers_the_target_and_changes_no_tensor(trial):
    model = trial.request.model
    masked = CrossEntropy().masked(model, ("3", "5"))
    before, after = model.state_dict(), masked.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    answered = trial.answer(masked)
    assert not {3, 5} & set(answered["predicted"].tolist())
    assert np.isfinite(answered["score"]).all()
    assert np.array_equal(trial.answer(model)["predicted"], trial.original["predicted"])


# ---------------------------------------------------------------- gates


def test_the_shipped_models_pass_every_gate():
    task = Digits()
    gates = task.gates([listed.id for listed in task.requests()], task.base_seeds)
    assert len(gates) == 3 + 3 * 20
    assert [gate for gate in gates if not gate.ok] == []


def test_a_base_that_learned_nothing_and_an_oracle_that_saw_the_digit_fail_their_gates(monkeypatch):
    base = digits.load_weights(digits.network(), digits.assets("digits") / digits.base_name(0))
    monkeypatch.setattr(digits, "oracle_model", lambda listed, s: base)
    assert [gate.ok for gate in Digits().gates(["class-2"], [0])] == [True, True, False, True]
    monkeypatch.setattr(Digits, "_base", lambda self, seed: digits.network())
    assert [gate.ok for gate in Digits().gates(["class-2"], [0])][:2] == [False, False]


def test_bases_that_never_saw_the_samples_and_oracles_that_know_nothing_fail_their_gates(monkeypatch):
    without, untrained = digits.oracle_model(Digits().requests()[11], 0), digits.network()
    monkeypatch.setattr(Digits, "_base", lambda self, seed: without)  # names 34 of these 40
    assert [gate.ok for gate in Digits().gates(["random-1"], [0])] == [False, False, True, True]
    monkeypatch.setattr(digits, "oracle_model", lambda listed, s: untrained)
    assert not Digits().gates(["random-1"], [0])[-1].ok


def table(method, acc_forget, acc_retain, bytes_delta):
    """Two cells of a method; the oracle forgets wholly and keeps 0.97."""
    values = {"acc_forget": (acc_forget, 0.0), "acc_retain": (acc_retain, 0.97), "bytes_delta": (bytes_delta, None)}
    return pd.DataFrame(
        {"method": method, "cell": f"{method}-{c}", "request": f"class-{c}", "targets": f'["{c}"]'}
        | {"metric": name, "value": float(value), "oracle_mean": oracle}
        for c in range(2)
        for name, (value, oracle) in values.items()
    )


def sample_table(method, *gaps):
    """What a method shows of samples: AUC gaps, one a request."""
    return pd.DataFrame(
        {"method": method, "cell": f"s{k}", "request": f"random-{k}", "targets": "[]"}
        | {"metric": "mia_sample", "value": 0.5 + gap, "oracle_mean": 0.5}
        for k, gap in enumerate(gaps)
    )


@pytest.mark.parametrize(
    ("control", "caught", "missed"),
    [
        ("original", (0.98, 0.97, 0), (0.10, 0.97, 0)),
        ("mask", (0.00, 0.97, 0), (0.00, 0.97, 400)),
        ("noise", (0.00, 0.60, 400), (0.02, 0.96, 400)),
    ],
)
def test_controls_are_caught_by_the_number_that_gives_them_away(control, caught, missed):
    other = table("slug", 0.0, 0.97, 400)
    (gate,) = Digits().gates_after(pd.concat([other, table(control, *caught)]))
    assert (gate.ok, gate.value) == (True, 1.0)
    (gate,) = Digits().gates_after(pd.concat([other, table(control, *missed)]))
    assert (gate.ok, gate.value) == (False, 0.0)


@pytest.mark.parametrize("control", ["original", "noise"])
@pytest.mark.parametrize(("gaps", "ok"), [([0.0, 0.06, 0.06] * 2, True), ([0.02, 0.0, 0.01] * 2, False)])
def test_controls_are_caught_on_samples_by_their_mean_and_not_cell_by_cell(control, gaps, ok):
    frame = pd.concat([table(control, 0.98, 0.97, 0), sample_table(control, *gaps)])
    of_classes, of_samples = Digits().gates_after(frame)
    assert (of_classes.ok, of_samples.ok) == (True, ok)
    assert of_samples.value == pytest.approx(np.mean(gaps))
    assert Digits().gates_after(sample_table(control, *gaps[:5])) == []  # too few to show anything


def test_a_table_without_controls_has_no_gates_after():
    assert Digits().gates_after(table("slug", 0.0, 0.97, 400)) == []
