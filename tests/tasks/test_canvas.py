"""The task `canvas` with what ships: requests, gates, four styles at once and in turn, and how everything is made anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from slugbench.bench import UsageError
from slugbench.tasks import _canvas_model, _canvas_rebuild, canvas
from slugbench.tasks._canvas_answers import Target, opinions
from slugbench.tasks._canvas_scenes import OBJECTS, STYLES
from slugbench.tasks._diffusion import editable
from slugbench.tasks._shipped import assets, load_answers, save_weights
from slugbench.tasks.canvas import Canvas, _target

FOUR = "dots-mosaic-ink-night"


@pytest.fixture(scope="module")
def joint():
    """The trial of four styles, a picture a prompt."""
    return Canvas(seeds=1).build(FOUR, 0)


# ---------------------------------------------------------------- requests


def test_fourteen_concepts_are_for_testing_and_four_styles_at_once():
    listed = Canvas().requests()
    pools = {pool: [request.id for request in listed if request.pool == pool] for pool in ("test", "dev", "tune")}
    assert len(pools["test"]) == 8 + 6 + 1 and pools["test"][-1] == FOUR
    assert pools["dev"] == ["chalk", "moon"] and pools["tune"] == ["blueprint", "plank"]


def test_an_unknown_request_seed_or_base_is_told():
    for wrong in (lambda: _target("noen"), lambda: Canvas().build("neon", 7)):
        with pytest.raises(UsageError, match="canvas has no"):
            wrong()
    with pytest.raises(ValueError, match="it may be 1 to 2"):
        Canvas(seeds=3)


# ---------------------------------------------------------------- what ships


def test_every_gate_holds_for_every_request_and_both_bases():
    found = Canvas().gates([request.id for request in Canvas().requests()], (0, 1))
    assert len(found) == 2 + 2 * 5 + 19 * 4
    assert [gate.name for gate in found if not gate.ok] == []


def test_classifiers_that_see_different_things_fail_a_gate(monkeypatch):
    """Of a base's pictures a twentieth may be seen otherwise, of real ones a fiftieth; the shipped ones pass."""
    known, real = load_answers(assets("canvas") / "base-0.npz"), opinions("test")
    assert [gate.name for gate in Canvas().gates([], [0]) if not gate.ok] == []
    for answers, share in ((known, 0.06), (real, 0.03)):
        answers["second_object"] = np.where(np.arange(len(answers["object"])) % 100 < 100 * share, -1, answers["object"])
    monkeypatch.setattr(canvas, "load_answers", lambda path: known)
    monkeypatch.setattr(canvas, "opinions", lambda part: real)
    failed = {gate.name: gate.value for gate in Canvas().gates([], [0]) if not gate.ok}
    assert set(failed) == {
        "base 0: classifiers see the same object: share", "both classifiers see the object that real pictures show: share"
    }  # fmt: skip
    assert max(failed.values()) < 0.98


def test_what_ships_is_small_and_has_oracles_weights_for_quick_alone():
    files = [file for file in assets("canvas").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 25e6
    weights = {file.stem for file in files if "-oracle-" in file.name and file.suffix == ".safetensors"}
    assert weights == {f"{name}-oracle-{k}" for name in ("neon", "ball") for k in range(2)}


@pytest.mark.parametrize("seed", [0, 1])
def test_prompts_are_read_in_every_process_by_the_words_that_models_were_trained_with(seed):
    """A tokenizer that is learned anew numbers the words anew."""
    assert _canvas_rebuild.base(seed).tokenizer.get_vocab() == _canvas_model.tokenizer().get_vocab()


@pytest.mark.slow
def test_shipped_oracles_give_their_shipped_answers():
    """To what floats add up to on another processor: a picture in a hundred may be seen as something else."""
    trial = Canvas(seeds=1).build("neon", 0)
    rows = np.flatnonzero(trial.questions["split"] == "forget")
    for answers, model in ((trial.oracles[0], trial.oracle_model(0)), (trial.original, trial.original_model())):
        found = trial.answer(model, rows)
        assert (found["style"] == answers["style"][rows]).mean() >= 0.98
        np.testing.assert_allclose(found["image"], answers["image"][rows], atol=40)


@pytest.fixture(scope="module")
def neon():
    """A trial of the other base, a picture a prompt."""
    return Canvas(seeds=1).build("neon", 1)


def fits(image, questions):
    """(N,) cosine of pictures and prompts by transformers' own reading of base 0's CLIP and of its tokenizer."""
    clip, places = _canvas_rebuild.base_clip(0), zip(questions["style"], questions["object"], strict=True)
    text = _canvas_model.tokens(
        _canvas_rebuild.base(0).tokenizer, [f"A {OBJECTS[o]} image in {STYLES[s]} style." for s, o in places]
    )
    with torch.no_grad():
        found = clip(input_ids=text, pixel_values=torch.from_numpy(image.astype(np.float32)) / 127.5 - 1)
    return torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds).numpy()


def test_one_frozen_clip_tells_of_every_models_pictures_how_well_they_fit_their_prompts(neon):
    for answers in (neon.original, *neon.oracles):
        np.testing.assert_allclose(answers["cosine"], fits(answers["image"], neon.questions), atol=1e-5)
    other = {d: (neon.questions[d] + 1) % len(names) for d, names in (("style", STYLES), ("object", OBJECTS))}
    assert neon.original["cosine"].mean() > 0.7 > 0.2 > fits(neon.original["image"], other).mean()


def test_an_edited_text_encoder_does_not_judge_its_own_pictures(neon):
    model, rows = neon.original_model(), np.arange(0, 80, 16)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "token_embedding" in name:
                weight.zero_()
    found = neon.answer(model, rows)
    expected = fits(found["image"], {name: column[rows] for name, column in neon.questions.items()})
    np.testing.assert_allclose(found["cosine"], expected, atol=1e-5)
    assert found["cosine"].mean() < neon.original["cosine"][rows].mean() - 0.3


@pytest.mark.parametrize("part", ["clip", "tokenizer"])
def test_the_clip_that_judges_is_in_the_fingerprint_of_another_base_too(monkeypatch, part):
    before, known = Canvas().fingerprint("neon", 1), canvas.file_digest
    monkeypatch.setattr(canvas, "file_digest", lambda file: "other" if f"base-0/{part}" in str(file) else known(file))
    assert Canvas().fingerprint("neon", 1) != before


# ---------------------------------------------------------------- four styles


def test_four_styles_are_forgotten_together_or_one_after_the_other(joint):
    together = joint.request
    assert together.targets == ("dots", "mosaic", "ink", "night") and joint.joint
    numbers = [STYLES.index(name) for name in together.targets]
    assert set(next(together.forget.batches(10**4))["label"].tolist()) == set(numbers)
    assert not set(next(together.retain.batches(10**4))["label"].tolist()) & set(numbers)

    model = joint.original_model()
    third = joint.alone(2, model)
    assert third.targets == ("ink",) and third.model is model
    for split in (third.validation, third):
        assert set(next(split.forget.batches(10**4))["label"].tolist()) == {numbers[2]}
        kept = set(next(split.retain.batches(10**4))["label"].tolist())
        assert kept == set(range(len(STYLES))) - set(numbers[:3])  # the fourth is kept until it is its turn
    drawn = torch.Generator().manual_seed(0)
    other = third.objective.relabel(next(third.forget.batches(64)), drawn)
    assert not set(other["label"].tolist()) & set(numbers[:3])
    assert len(third.objective.names()) == len(STYLES) - 3 + len(OBJECTS)


def test_every_style_of_four_is_asked_for_with_every_object(joint):
    forget = joint.questions["split"] == "forget"
    asked = set(zip(joint.questions["style"][forget].tolist(), joint.questions["object"][forget].tolist(), strict=True))
    assert len(asked) == 4 * len(OBJECTS) and forget.sum() == 3 * len(asked)
    assert set(joint.questions["unit"][forget]) == {STYLES.index(name) for name in joint.request.targets}


def test_the_original_draws_the_four_and_the_oracles_do_not(joint):
    forget = joint.questions["split"] == "forget"
    right = [(found["rank"][forget] == 0).mean() for found in (joint.original, *joint.oracles)]
    assert right[0] >= 0.9 and max(right[1:]) <= 0.2


# ---------------------------------------------------------------- made anew


@pytest.fixture
def made(monkeypatch):
    """Which oracles were trained, each to untrained weights."""
    found = []

    def train(target, number, path):
        found.append((target.name, number))
        clip, unet = _canvas_model.new_clip(0), _canvas_model.new_unet(0)
        save_weights(editable(_canvas_model.new_pipeline(clip.text_model, unet)), path)

    monkeypatch.setattr(_canvas_rebuild, "_train_oracle", train)
    return found


def test_a_stopped_rebuild_goes_on_and_weights_that_do_not_ship_are_not_kept(tmp_path, monkeypatch, made):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_canvas_rebuild._canvas_answers, "ask", lambda *_, **__: {"style": np.arange(3)})
    monkeypatch.setattr(_canvas_rebuild._canvas_answers, "error", lambda *_: np.zeros(2))
    ink, neon = Target("style", (STYLES.index("ink"),)), Target("style", (STYLES.index("neon"),))
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(_canvas_rebuild, "save_answers", stop)
        _canvas_rebuild._make_oracle(tmp_path, ink, 1)
    for _ in range(2):
        _canvas_rebuild._make_oracle(tmp_path, ink, 1)
        _canvas_rebuild._make_oracle(tmp_path, neon, 0)
    assert made == [("ink", 1), ("ink", 1), ("neon", 0)]  # stopped, made again, then found
    assert {path.name for path in tmp_path.iterdir()} == {
        "ink-oracle-1.npz", "neon-oracle-0.npz", "neon-oracle-0.safetensors"
    }  # fmt: skip
    assert (load_answers(tmp_path / "ink-oracle-1.npz")["style"] == np.arange(3)).all()


def test_an_oracle_that_does_not_ship_is_trained_once_and_the_cache_keeps_it(cache, made):
    for _ in range(2):
        _canvas_rebuild.oracle(_target("ink"), 1)
    assert made == [("ink", 1)]
