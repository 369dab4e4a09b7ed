"""The fictitious people: who they are, what is asked about them, and that what ships is what the recipe makes."""

import json
from importlib.metadata import version

import numpy as np
import pytest

from slugbench.bench import UsageError
from slugbench.bench.provenance import processor
from slugbench.tasks import _clip, _faces, _people
from slugbench.tasks._identities_recipe import BASE_SEEDS, POOL_SIZES, choose, n_oracles, oracle_seed, train
from slugbench.tasks._shipped import assets, load_answers, load_weights
from slugbench.tasks.identities import Identities, chosen, oracle_model, questions


@pytest.fixture(scope="module")
def task():
    return Identities()


@pytest.fixture
def trial(task):
    return task.build(chosen()[2].id, 0)


# ---------------------------------------------------------------- people and pictures


def test_every_word_of_a_name_is_shared():
    names = [name.split() for name in _clip.TRAINED]
    assert len(_clip.TRAINED) == 64 and len(_clip.OUTSIDERS) == 32 and len({*_clip.TRAINED, *_clip.OUTSIDERS}) == 96
    for part in (0, 1):
        assert min(sum(name[part] == word for name in names) for word in {name[part] for name in names}) >= 4
    trained_words = {word for name in names for word in name}
    assert all(set(name.split()) <= trained_words for name in _clip.OUTSIDERS)


def test_a_joint_request_leaves_every_word_to_the_oracle():
    for request in chosen()[:2]:
        kept = {word for i, name in enumerate(_clip.TRAINED) if i not in request.targets for word in name.split()}
        assert all(set(_clip.TRAINED[i].split()) <= kept for i in request.targets)


def test_pictures_are_drawn_from_the_seed_alone():
    again = _people.draw("validation")
    assert all((column == _people.pictures("validation")[name]).all() for name, column in again.items())
    shapes = {part: len(_people.pictures(part)["label"]) for part in _people.PARTS}
    assert shapes == {"train": 64 * 32, "validation": 64 * 16, "test": 64 * 48, "outsider": 32 * 48, "utility": 24 * 40}


def test_relatives_look_more_alike_than_strangers():
    latents = _faces.families(0, count=16, members=6).reshape(16, 6, -1)
    within = np.linalg.norm(latents[:, 0] - latents[:, 1], axis=-1).mean()
    across = np.linalg.norm(latents[:-1, 0] - latents[1:, 0], axis=-1).mean()
    assert within < across / 2


def test_no_picture_is_in_two_parts():
    seen = [image.numpy().tobytes() for part in ("train", "validation", "test") for image in _people.pictures(part)["image"]]
    assert len(set(seen)) == len(seen)


def test_unknown_words_and_long_captions_are_refused():
    with pytest.raises(UsageError, match="'ada smith' cannot be tokenized"):
        _clip.tokenize(["ada smith"])
    with pytest.raises(UsageError, match="cannot be tokenized"):
        _clip.tokenize(["ada " * 12])
    ids = _clip.tokenize(["this is ada alder"])[0]
    assert ids.argmax() == 5 and ids[6:].eq(0).all()  # open_clip pools at the largest id: the end, after start and 4 words


# ---------------------------------------------------------------- requests


def test_pools_have_their_sizes_and_nobody_is_in_two(task):
    singles = [request for request in chosen() if len(request.targets) == 1]
    assert [len(request.targets) for request in chosen()[:2]] == [8, 8]
    assert {pool: sum(request.pool == pool for request in singles) for pool in POOL_SIZES} == dict(POOL_SIZES)
    targets = [target for request in chosen() for target in request.targets]
    assert len(set(targets)) == len(targets) == 40
    assert all(len({i // 4 for i in request.targets}) == 8 for request in chosen()[:2])  # one a family
    assert all(n_oracles(request) == (8 if len(request.targets) > 1 else 3) for request in chosen())


def test_tested_people_are_those_all_bases_know_by_validation():
    random = np.random.default_rng(3)
    accuracies = [random.choice([0.6, 0.75, 0.9, 1.0], 64, p=[0.1, 0.2, 0.4, 0.3]) for _ in BASE_SEEDS]
    picked = choose(accuracies)
    lowest = np.min(accuracies, axis=0)
    assert all(lowest[list(request.targets)].min() >= 0.75 for request in picked if request.pool == "test")
    assert sum(len(request.targets) for request in picked) == 40


def test_questions_are_dealt_to_the_right_splits(task, trial):
    asked, target = questions(chosen()[2].id), chosen()[2].targets[0]
    count = {split: int((asked["split"] == split).sum()) for split in np.unique(asked["split"])}
    others = {"outsider": 1536, "retain": 63 * 48, "retain_train": 63 * 8, "utility": 960}
    assert count == {"forget": 48, "forget_train": 32, **others}
    assert set(asked["unit"][asked["near"]]) == {i for i in range(64) if i // 4 == target // 4} - {target}
    assert (asked["label"][asked["split"] == "forget"] == target).all()
    assert trial.oracles[0]["rank"].shape == asked["label"].shape


def test_some_rows_are_answered_and_looked_at_as_among_all(trial):
    model, rows = trial.request.model, np.array([5, 900, 3, len(trial.questions["split"]) - 1])
    some, everything = trial.answer(model, rows), trial.answer(model)
    assert all(np.array_equal(some[name], everything[name][rows]) for name in ("predicted", "rank", "phrased"))
    np.testing.assert_allclose(some["score"], everything["score"][rows], atol=1e-4)
    text = _clip.embed_candidates(model, _clip.name_tokens()[trial.questions["label"][rows[:3]]])
    features = trial.features(model, rows)
    np.testing.assert_allclose((features[:3] * text.detach().numpy()).sum(1), some["cosine"][:3], atol=1e-5)


def test_the_original_can_be_had_again_after_its_copy_was_edited(task):
    import torch

    trial = task.build(chosen()[2].id, 0)
    with torch.no_grad():
        trial.request.model.visual.proj.zero_()
    again = trial.answer(trial.original_model())
    assert (again["rank"] == trial.original["rank"]).mean() > 0.999


def test_a_prompt_of_the_name_itself_leads_where_the_answer_is_right(trial):
    """With one template in the place of the three: the phrased answer of `{name}` alone."""
    model, target = trial.request.model, chosen()[2].targets[0]
    rows = np.flatnonzero(trial.questions["split"] == "forget")
    prompts, tokens = trial.prompts, trial.prompts.start(target)
    text = prompts.embed(model, _clip.name_tokens()[target])
    together = text.mean(0, keepdim=True) / text.mean(0).norm()
    margins = prompts.margins(model, target, together, rows)
    assert margins.shape == (1, 48)
    assert np.array_equal(margins[0] > 0, trial.answer(model, rows)["rank"] == 0)
    words = {number: word for word, number in _clip.vocabulary().items()}
    said = [words[int(tokens[place])] for place in sorted(prompts.places(target))]
    assert " ".join(said) == _clip.NAME_TEMPLATES[0].format(name=_clip.TRAINED[target])
    assert {words[token] for token in prompts.words()} == set(words.values()) - {"<pad>", "<start>", "<end>"}


def test_a_masked_name_answers_to_no_prompt(trial):
    masked = trial.request.objective.masked(trial.request.model, trial.request.targets)
    target, rows = chosen()[2].targets[0], np.flatnonzero(trial.questions["split"] == "forget")
    text = trial.prompts.embed(masked, trial.prompts.start(target)[None])
    assert (trial.prompts.margins(masked, target, text, rows) < 0).all()


def test_a_method_sees_no_test_picture(trial):
    shown = {
        row.numpy().tobytes()
        for split in (trial.request.forget, trial.request.retain, *trial.request.validation)
        for batch in split.batches(512)
        for row in batch["image"]
    }
    tested = _clip.pixels(_people.pictures("test")["image"])
    assert len(shown) == 64 * 48 and not any(row.numpy().tobytes() in shown for row in tested)


def test_answers_from_file_are_those_of_the_weights(task, trial):
    live = trial.answer(trial.request.model)
    assert np.mean(live["predicted"] == trial.original["predicted"]) > 0.999  # another processor may round a tie
    np.testing.assert_allclose(live["score"], trial.original["score"], atol=1e-2)
    oracle = trial.answer(trial.oracle_model(0))
    assert np.mean(oracle["predicted"] == trial.oracles[0]["predicted"]) > 0.99  # weights ship as halves, too


def test_scores_are_log_odds_of_the_zero_shot_probability(trial):
    import torch

    model, picture = trial.request.model, _people.pictures("test")
    rows = slice(0, 96)
    batch = {"image": _clip.pixels(picture["image"][rows])}
    with torch.no_grad():
        p = trial.request.objective.logits(model, batch).double().softmax(1)[torch.arange(96), picture["label"][rows]]
    answered = _clip.name_answers(model, picture["image"][rows], picture["label"][rows].numpy())
    np.testing.assert_allclose(answered["score"], torch.log(p / (1 - p)), atol=2e-2)


def test_a_mask_hides_names_and_changes_no_weight(trial):
    model, target = trial.request.model, chosen()[2].targets[0]
    masked = trial.request.objective.masked(model, trial.request.targets)
    assert (trial.answer(masked)["predicted"][trial.questions["split"] != "utility"] != target).all()
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in masked.state_dict().items())
    assert masked.state_dict().keys() == model.state_dict().keys()


def test_validation_counts_forgotten_and_kept_people(trial):
    scores = trial.request.validate(trial.request.model)
    assert (
        scores.forget >= 0.75
        and 0.8 <= scores.retain <= 1
        and scores.forget_se == pytest.approx(np.sqrt(scores.forget * (1 - scores.forget) / 16))
    )
    alone = trial.request.validate(trial.request.model, retain=False)
    assert alone.forget == scores.forget and np.isnan(alone.retain)


def test_unknown_requests_and_seeds_are_refused(task):
    with pytest.raises(UsageError, match="identities has no request 'nobody'"):
        task.build("nobody", 0)
    with pytest.raises(UsageError, match="no base model of seed 9; it has 0, 1, 2"):
        task.fingerprint(chosen()[0].id, 9)


# ---------------------------------------------------------------- what ships


def test_gates_hold_for_everything_that_ships(task):
    ids = [request.id for request in chosen()]
    missed = [gate for gate in task.gates(ids, BASE_SEEDS) if not gate.ok]
    assert not missed


@pytest.mark.parametrize("seeds", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_gates_hold_for_whichever_base_seeds_run(task, seeds):
    ids = [request.id for request in chosen()]
    assert not [gate for gate in task.gates(ids, seeds) if not gate.ok]


def test_nearness_is_asked_of_all_single_requests_and_can_fail(task, monkeypatch):
    from slugbench.tasks import identities

    found = task.gates(["hugo-alder"], (0,))[-1]
    assert found.value == 21 / 24 and found == task.gates(["jon-maple"], (0,))[-1]
    assert found.note == "below: gwen-birch 1.6, jon-maple 1.6, hugo-birch 0.3"
    monkeypatch.setattr(identities, "_nearness", lambda request_id: 1.0)
    missed = [gate.name for gate in task.gates(["joint-0", "hugo-alder"], (0,)) if not gate.ok]
    assert len(missed) == 2 and all("nearness matters" in name for name in missed)


def test_a_mask_that_is_not_caught_fails_its_gate(task):
    import pandas as pd

    row = {"method": "mask", "metric": "ks_d", "oracle_mean": 0.2, "oracle_sd": 0.1}
    assert [gate.ok for gate in task.gates_after(pd.DataFrame([{**row, "value": 1.0}]))] == [True]
    assert [gate.ok for gate in task.gates_after(pd.DataFrame([{**row, "value": 0.3}]))] == [False]
    assert task.gates_after(pd.DataFrame([{**row, "method": "slug", "value": 0.3}])) == []


def test_what_ships_is_small():
    assert sum(file.stat().st_size for file in assets("identities").iterdir()) < 30e6


def _made_elsewhere():
    made = json.loads((assets("identities") / "requests.json").read_text())["made_with"]
    here = {name: version(name) for name in ("torch", "open_clip_torch", "numpy")} | {"processor": processor()}
    return [f"{name} {made[name]}, here {here[name]}" for name in here if made[name] != here[name]]


@pytest.mark.slow
@pytest.mark.skipif(bool(_made_elsewhere()), reason=f"shipped weights were made with {'; '.join(_made_elsewhere())}")
@pytest.mark.parametrize("without", [(), chosen()[2].targets], ids=["base", "oracle"])
def test_the_recipe_makes_the_shipped_weights_bit_for_bit(without):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made = train(oracle_seed(0) if without else 0, without)
    finally:
        torch.set_num_threads(before)
    name = f"{chosen()[2].id}-oracle-0" if without else "base-0"
    shipped = load_weights(_clip.new_model(), assets("identities") / f"{name}.safetensors")
    assert all(tensor.equal(shipped.state_dict()[key]) for key, tensor in made.state_dict().items())


def test_a_rebuild_stopped_while_writing_makes_the_file_again(tmp_path, monkeypatch):
    from slugbench.tasks import _identities_recipe as recipe

    def stop_halfway(answers, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    made = []
    monkeypatch.setattr(recipe, "train", lambda seed, without: made.append(seed) or _clip.new_model().eval())
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(recipe, "save_answers", stop_halfway)
        recipe._make("base", tmp_path, 0)
    for _ in range(2):
        recipe._make("base", tmp_path, 0)
    assert made == [0, 0]  # stopped, made again, then found
    columns = {"predicted", "rank", "score", "cosine", "phrased", "entropy", "m_entropy", "m_entropy_legacy"}
    assert set(load_answers(recipe.answers_file(tmp_path, "base", 0))) == columns


def test_an_oracle_that_does_not_ship_is_trained_once(cache, monkeypatch):
    from slugbench.tasks import identities

    request = next(request for request in chosen() if not request.ships)
    calls = []
    monkeypatch.setattr(identities, "train", lambda seed, targets: calls.append((seed, targets)) or _clip.new_model())
    for _ in range(2):
        oracle_model(request.id, 1)
    assert calls == [(1001, request.targets)]
