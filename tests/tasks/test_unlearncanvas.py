"""The constants are the official ones; answer sets and checkpoints are what they should be, or named."""

import errno
import shutil

import numpy as np
import pytest
from PIL import Image

from slugbench.bench import DiskTrouble, UsageError
from slugbench.tasks import _unlearncanvas as canvas
from slugbench.tasks.unlearncanvas import UnlearnCanvas

from ..canvas_files import SEED, SIDE, as_shown

ONE_SEED = canvas.Grid(seeds=(SEED,))
pytestmark = pytest.mark.usefixtures("small_canvas")


def read(folder):
    return canvas.read_answer_set(folder, grid=ONE_SEED, side=SIDE)


@pytest.fixture
def copied(canvas_images, tmp_path):
    """An answer set to be spoilt."""
    return shutil.copytree(canvas_images, tmp_path / "images")


# ---------------------------------------------------------------- the protocol


def test_the_grid_is_the_published_one():
    """51 styles x 20 objects x 5 seeds; indices as in the release's lists, counted there by hand."""
    assert len(canvas.STYLES) == len(set(canvas.STYLES)) == 51 and list(canvas.STYLES) == sorted(canvas.STYLES)
    assert len(canvas.OBJECTS) == len(set(canvas.OBJECTS)) == 20 and list(canvas.OBJECTS) == sorted(canvas.OBJECTS)
    indices = {"Abstractionism": 0, "Monet": 28, "Seed_Images": 38, "Van_Gogh": 45, "Winter": 50}
    assert {name: canvas.STYLES.index(name) for name in indices} == indices
    assert canvas.OBJECTS.index("Dogs") == 5 and canvas.OBJECTS.index("Waterfalls") == 19
    names = canvas.file_names()
    assert len(set(names)) == len(names) == 5100
    assert names[:6:5] == ["Abstractionism_Architectures_seed188.jpg", "Abstractionism_Bears_seed188.jpg"]


def test_prompts_have_spaces_for_underscores():
    assert canvas.prompt("Red_Blue_Ink", "Dogs") == "A Dogs image in Red Blue Ink style."


@pytest.mark.parametrize(("target", "n_forget"), [("Van_Gogh", 100), ("Dogs", 255)])
def test_questions_follow_the_order_of_the_files(target, n_forget):
    q, names = canvas.questions((target,)), canvas.file_names()
    assert (q["split"] == "forget").sum() == n_forget == sum(target in name for name in names)
    columns = zip(q["style"], q["object"], q["seed"], strict=True)
    made = [f"{canvas.STYLES[s]}_{canvas.OBJECTS[o]}_seed{k}.jpg" for s, o, k in columns]
    assert made == names
    own = "style" if n_forget == 100 else "object"
    assert np.array_equal(q["unit"], q[own]) and np.array_equal(q["label"], q[own]) and not q["near"].any()


def test_requests_are_50_styles_and_20_objects_and_none_is_the_photographs():
    requests = UnlearnCanvas().requests()
    assert len(requests) == 70 and "Seed_Images" not in {r.id for r in requests}
    styles = [r.pool for r in requests if r.id in canvas.STYLES]
    objects = [r.pool for r in requests if r.id in canvas.OBJECTS]
    assert [pools.count(pool) for pools in (styles, objects) for pool in ("dev", "tune", "test")] == [1, 5, 44, 1, 3, 16]


def test_log_odds_stay_finite_where_a_class_is_certain():
    """By hand: with log p of (0, -40, -41) the odds of the first are 1 to e^-40 + e^-41."""
    log_p = np.array([[0, -40, -41], [-40, 0, -41]], np.float32)
    first, second = canvas.log_odds(log_p, np.array([0, 0]))
    assert first == pytest.approx(-np.log(np.exp(-40.0) + np.exp(-41.0))) and second == pytest.approx(-40)


def test_answers_are_about_the_targets_domain_and_hold_both():
    q = {"style": np.array([0, 1]), "object": np.array([2, 2])}
    log_p = {"style": np.log([[0.5, 0.2, 0.3], [0.5, 0.2, 0.3]]), "object": np.log([[0.1, 0.2, 0.7], [0.6, 0.2, 0.2]])}
    found = canvas.answers(log_p, q, "style")
    assert found["predicted"].tolist() == found["style"].tolist() == [0, 0] and found["rank"].tolist() == [0, 2]
    assert found["object"].tolist() == [2, 0] and np.allclose(found["score"], [0, np.log(0.2 / 0.8)])
    assert canvas.answers(log_p, q, "object")["rank"].tolist() == [0, 1]


# ---------------------------------------------------------------- answer sets


def test_a_whole_answer_set_is_read_in_order_and_hidden_files_do_not_count(copied):
    (copied / ".DS_Store").write_text("")
    found = read(copied)
    assert [path.name for path in found.paths] == canvas.file_names(ONE_SEED) and len(set(found.digests)) == 1020


def test_a_missing_image_is_named(copied):
    (copied / "Monet_Dogs_seed188.jpg").unlink()
    with pytest.raises(UsageError, match=r"misses Monet_Dogs_seed188\.jpg of its 1020 images; put that right"):
        read(copied)


def test_a_missing_style_is_named_by_its_first_images(copied):
    for path in copied.glob("Van_Gogh_*"):
        path.unlink()
    with pytest.raises(UsageError, match=r"misses Van_Gogh_Architectures_seed188\.jpg, .* and 17 more of its 1020"):
        read(copied)


def test_a_file_that_belongs_to_no_answer_set_is_named(copied):
    (copied / "Monet_Dogs_seed188.jpg").rename(copied / "Monet_Dog_seed188.jpg")
    with pytest.raises(UsageError, match=r"misses Monet_Dogs.* and holds Monet_Dog_seed188\.jpg, which is none of them"):
        read(copied)


def test_images_of_another_size_or_none_are_named(copied):
    Image.new("RGB", (SIDE, 8)).save(copied / "Joy_Sea_seed188.jpg")
    (copied / "Joy_Trees_seed188.jpg").write_text("no image")
    with pytest.raises(
        UsageError, match=r"Joy_Sea_seed188\.jpg has 16 x 8 pixels and not 16 x 16, Joy_Trees_seed188\.jpg cannot"
    ):
        read(copied)


def test_a_truncated_image_is_named_and_all_before_it_are_kept(copied, canvas_classifiers, tmp_path):
    path = copied / canvas.file_names(ONE_SEED)[200]
    path.write_bytes(path.read_bytes()[:-20])
    classifiers = canvas.Classifiers(canvas_classifiers, architecture="test_vit")
    with pytest.raises(UsageError, match=rf"{path.name} is no whole image"):
        canvas.classify(read(copied), classifiers, cache=tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    assert len(np.load(file)["digest"]) == 200 // canvas.BATCH * canvas.BATCH


def test_a_full_disk_is_named_and_nothing_half_written_is_left(canvas_images, canvas_classifiers, tmp_path, monkeypatch):
    def full(file, **columns):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    few = canvas.AnswerSet(*(column[:3] for column in read(canvas_images)))
    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(DiskTrouble, match="No space left on device"):
        canvas.classify(few, canvas.Classifiers(canvas_classifiers, architecture="test_vit"), cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_known_of_images_is_worked_out_anew_where_its_file_is_broken(canvas_images, canvas_classifiers, tmp_path):
    few = canvas.AnswerSet(*(column[:3] for column in read(canvas_images)))
    classifiers = canvas.Classifiers(canvas_classifiers, architecture="test_vit")
    first = canvas.classify(few, classifiers, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:200])
    again = canvas.classify(few, classifiers, cache=tmp_path)
    assert all(np.array_equal(first[domain], again[domain]) for domain in first)
    assert len(np.load(file)["digest"]) == 3


# ---------------------------------------------------------------- classifiers


def test_images_are_shown_as_the_release_shows_them(canvas_images):
    """Its transforms of torchvision's first generation."""
    path = canvas_images / canvas.file_names(ONE_SEED)[7]
    np.testing.assert_allclose(canvas.pixels(path).numpy(), as_shown(path), atol=1e-6)  # float32


def test_classes_are_those_that_the_releases_loop_over_single_images_gives(canvas_images, canvas_classifiers, tmp_path):
    import timm
    import torch

    images = read(canvas_images)
    rows = [0, 333, 1019]
    some = canvas.AnswerSet(*(tuple(column[i] for i in rows) for column in images))
    found = canvas.classify(some, canvas.Classifiers(canvas_classifiers, architecture="test_vit"), cache=tmp_path)
    for domain, file in (("style", "style50.pth"), ("object", "style50_cls.pth")):
        model = timm.create_model("test_vit", num_classes=1, img_size=32).eval()
        state = torch.load(canvas_classifiers / file)["model_state_dict"]
        model.head = torch.nn.Linear(64, len(state["head.bias"]))
        model.load_state_dict(state)
        for row, path in enumerate(some.paths):
            with torch.no_grad():
                p = model(torch.from_numpy(as_shown(path))[None]).softmax(1)[0]
            np.testing.assert_allclose(np.exp(found[domain][row]), p, atol=1e-4)  # float32, other batch sizes


def test_the_full_size_classifier_has_the_releases_layers():
    """24 blocks of width 1024 under the names of timm's vit_large; nothing is allocated."""
    import timm
    import torch

    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in timm.create_model(canvas.ARCHITECTURE, num_classes=51).state_dict().items()}
    assert shapes["head.weight"] == (51, 1024) and shapes["blocks.23.attn.qkv.weight"] == (3072, 1024)
    assert shapes["pos_embed"] == (1, 197, 1024) and sum(map(np.prod, shapes.values())) == 303_353_907


def spoilt(folder, change):
    import torch

    stored = torch.load(folder / "style50.pth")
    change(stored["model_state_dict"])
    return stored


HEADS = {
    "other head": (
        lambda s: s.update({"head.weight": s["head.weight"][:20]}),
        "a head of 20 classes; here it needs one of 51",
    ),
    "no head": (lambda s: s.pop("head.weight"), "has no layer `head`"),
    "other layers": (lambda s: s.pop("norm.weight"), "is no test_vit: norm.weight differ"),
}


@pytest.mark.parametrize(("change", "sentence"), HEADS.values(), ids=HEADS)
def test_a_classifier_that_does_not_fit_is_refused(canvas_classifiers, tmp_path, change, sentence):
    import torch

    torch.save(spoilt(canvas_classifiers, change), tmp_path / "x.pth")
    with pytest.raises(UsageError) as refused:
        canvas.load_classifier(tmp_path / "x.pth", 51, architecture="test_vit")
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["nonsense_vit", "resnet18"])
def test_an_architecture_that_is_none_of_a_classifier_is_refused(canvas_classifiers, name):
    with pytest.raises(UsageError, match=rf"architecture={name} is no vision transformer of timm \(.*\); the ") as no:
        canvas.load_classifier(canvas_classifiers / "style50.pth", 51, architecture=name)
    assert "\n" not in str(no.value)


def test_exchanged_checkpoints_are_refused(canvas_classifiers):
    with pytest.raises(UsageError, match=r"style50\.pth has a head of 51 classes; here it needs one of 20: is it the other"):
        canvas.load_classifier(canvas_classifiers / "style50.pth", 20, architecture="test_vit")


class Runs:
    """What unpickling would call."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a checkpoint ran')",))


def test_a_checkpoint_that_is_none_or_runs_code_is_refused(tmp_path):
    import torch

    torch.save({"state_dict": {}}, tmp_path / "key.pth")
    torch.save({"model_state_dict": Runs()}, tmp_path / "code.pth")
    (tmp_path / "text.pth").write_text("moved permanently")
    for name, sentence in {
        "key": "has no key `model_state_dict`",
        "code": "cannot be read",
        "text": "cannot be read",
    }.items():
        with pytest.raises(UsageError, match=sentence):
            canvas.load_classifier(tmp_path / f"{name}.pth", 51, architecture="test_vit")


# ---------------------------------------------------------------- the task


def test_building_a_trial_says_that_there_are_no_data(tmp_path):
    with pytest.raises(UsageError, match=r"has no folder for 51 of 51 styles: Abstractionism, .* and 41 more; it needs"):
        UnlearnCanvas(data=str(tmp_path)).build("Van_Gogh", 0)
    assert [wanted.found for wanted in UnlearnCanvas(data=str(tmp_path)).wanted()] == [False] * 4


def test_a_scored_trial_has_no_model_and_says_so(canvas_images, canvas_classifiers, tmp_path):
    task = UnlearnCanvas(seeds=1, side=SIDE, architecture="test_vit")
    scored = task.score("Dogs", canvas_images, cache=tmp_path, classifiers=canvas_classifiers)
    trial = scored.trial
    assert trial.request.objective.kind == "diffusion" and trial.n_classes == 20 and trial.original == {}
    for use in (lambda: trial.answer(None), lambda: trial.request.model.state_dict(), lambda: len(trial.request.retain)):
        with pytest.raises(UsageError, match="these images were made elsewhere: there is no"):
            use()
    columns = [len(column) for column in (*trial.questions.values(), *scored.answers.values())]
    assert set(columns) == {1020} and np.isfinite(scored.answers["score"]).all()


def test_a_scored_trial_shows_the_images_that_were_judged(canvas_images, canvas_classifiers, tmp_path):
    task = UnlearnCanvas(seeds=1, side=SIDE, architecture="test_vit")
    scored = task.score("Dogs", canvas_images, cache=tmp_path, classifiers=canvas_classifiers)
    (shown,) = scored.trial.pictures(scored.answers, np.array([7 * 20 + canvas.OBJECTS.index("Dogs")]))
    stored = Image.open(canvas_images / f"{canvas.STYLES[7]}_Dogs_seed{SEED}.jpg")
    assert np.array_equal(shown, np.asarray(stored.convert("RGB")))
