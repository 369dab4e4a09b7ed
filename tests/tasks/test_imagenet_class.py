"""On 12 folders of generated images as ImageNet has them, and a vision transformer of one layer and 16 dimensions."""

import io
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.models import VisionTransformer, ViT_B_16_Weights

from slugbench.bench import UsageError
from slugbench.bench.types import Sized, Task
from slugbench.methods.ft import FineTuning
from slugbench.methods.salun import SalUn
from slugbench.tasks import imagenet_class
from slugbench.tasks.imagenet_class import ImageNetClass

from . import laws

N_CLASSES, N_TRAIN, N_VAL = 12, 20, 4
WNIDS = [f"n0{1440764 + 7 * k}" for k in range(N_CLASSES)]


def tiny_network():
    return VisionTransformer(32, 16, 1, 2, 16, 32, num_classes=N_CLASSES)


def save_image(path, colour, rng, mode="RGB"):
    size = rng.integers(34, 70, 2)
    noise = rng.normal(colour, 25, (*size, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(noise).convert(mode).save(path, "JPEG")


@pytest.fixture(scope="module", autouse=True)
def made(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for wnid in WNIDS:
        colour = rng.uniform(40, 215, 3)
        for part, count in (("train", N_TRAIN), ("val", N_VAL)):
            (root / part / wnid).mkdir(parents=True)
            for i in range(count):
                name = f"{wnid}_{i}.JPEG" if part == "train" else f"ILSVRC2012_val_{rng.integers(1e8):08d}.JPEG"
                mode = {0: "L", 1: "CMYK"}.get(i, "RGB")  # ImageNet has some of either
                save_image(root / part / wnid / name, colour, rng, mode)
    pools = {0: "test", 3: "dev", 5: "tune", 7: "sealed"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLUGBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name, small in {"N_CLASSES": N_CLASSES, "PIXELS": 32, "POOLS": pools, "new_network": tiny_network}.items():
            patch.setattr(imagenet_class, name, small)
        yield root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = tiny_network()
        torch.nn.init.normal_(network.heads.head.weight)  # torchvision starts it at zero, where all classes tie
    path = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def task(made, weights):
    return ImageNetClass(data=str(made), checkpoint=str(weights), asked=3)


def rows_of(split):
    return np.concatenate([batch["index"].numpy() for batch in split.batches(64)])


# ---------------------------------------------------------------- what is listed


REAL_POOLS = dict(imagenet_class.POOLS)


def test_the_papers_classes_are_tested_on_and_others_tuned_on():
    assert [k for k, pool in REAL_POOLS.items() if pool == "test"] == list(range(0, 1000, 100))
    assert Counter(REAL_POOLS.values()) == {"dev": 2, "tune": 4, "sealed": 4, "test": 10}


def test_it_is_a_task_that_lists_and_keys_without_torch(made, weights):
    assert isinstance(ImageNetClass(), Task) and isinstance(ImageNetClass(), Sized)
    code = (
        "import sys; from slugbench.tasks import imagenet_class as i\n"
        f"i.N_CLASSES, i.POOLS = 12, {{0: 'test', 3: 'dev'}}\n"
        f"t = i.ImageNetClass(data={str(made)!r}, checkpoint={str(weights)!r})\n"
        "assert all(w.found for w in t.wanted()) and t.sizes('class-3')['forget'] == (4, 1)\n"
        "assert len({t.fingerprint(r.id, 0) for r in t.requests()}) == 2\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_missing_is_listed_with_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    train, val, vit = ImageNetClass(data=str(tmp_path / "none")).wanted()
    assert not (train.found or val.found or vit.found)
    assert "138 GB" in train.note and "image-net.org" in val.note
    assert str(vit.path) == f"{torch.hub.get_dir()}/checkpoints/{imagenet_class.WEIGHTS}"
    assert ViT_B_16_Weights.IMAGENET1K_V1.url.endswith(imagenet_class.WEIGHTS)


def test_weights_are_fetched_by_torchvision_and_only_when_told(tmp_path, monkeypatch, made):
    asked = []
    monkeypatch.setattr(ViT_B_16_Weights, "get_state_dict", lambda weights, **how: asked.append((weights.name, how)))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="artifacts rebuild imagenet_class:download=true"):
        ImageNetClass(data=str(made)).build("class-3", 0)
    with pytest.raises(UsageError, match="trains nothing"):
        ImageNetClass().rebuild(tmp_path)
    ImageNetClass(download=True).rebuild(tmp_path)
    assert asked == [("IMAGENET1K_V1", {"progress": True, "check_hash": True})]


def test_fingerprints_follow_weights_and_images(task, made, tmp_path):
    before = task.fingerprint("class-3", 0)
    assert before != task.fingerprint("class-0", 0)
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    moved = ImageNetClass(data=str(tmp_path), checkpoint=task.checkpoint, asked=3)
    assert moved.fingerprint("class-3", 0) == before
    some = next((tmp_path / "val" / WNIDS[0]).iterdir())
    for change in (lambda: some.write_bytes(some.read_bytes() + b" "), some.unlink):
        for listed in (imagenet_class.list_files, imagenet_class.list_part, imagenet_class.all_files_digest):
            listed.cache_clear()
        change()
        after = moved.fingerprint("class-3", 0)
        assert after != before
        before = after


def test_an_image_in_anothers_place_is_asked_about_anew(weights, made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    task = ImageNetClass(data=str(tmp_path), checkpoint=str(weights), asked=3)
    trial = task.build("class-3", 0)
    row = int(np.flatnonzero(trial.questions["split"] == "forget")[0])
    file = tmp_path / imagenet_class.list_files(tmp_path).paths[trial.questions["index"][row]]
    shutil.copyfile(next((tmp_path / "train" / WNIDS[8]).iterdir()), file)
    again = task.build("class-3", 0).original["score"]
    assert again[row] != trial.original["score"][row]
    assert np.array_equal(np.delete(again, row), np.delete(trial.original["score"], row))


def test_doctor_counts_images_and_does_not_find_empty_folders(made, weights, tmp_path):
    notes = [wanted.note.split(";")[0] for wanted in ImageNetClass(data=str(made)).wanted()[:2]]
    assert notes == [f"{N_CLASSES * N_TRAIN} images", f"{N_CLASSES * N_VAL} images"]
    for wnid in WNIDS:
        (tmp_path / "train" / wnid).mkdir(parents=True)
    train, val, _ = ImageNetClass(data=str(tmp_path), checkpoint=str(weights)).wanted()
    assert not train.found and f"{WNIDS[0]} holds no images" in train.note and not val.found


# ---------------------------------------------------------------- trials


@pytest.mark.parametrize("law", laws.OF_CLASSES, ids=lambda law: law.__name__)
def test_what_holds_for_every_task_holds_for_it(task, monkeypatch, law):
    laws.holds(law, task, "concepts", monkeypatch)


def test_validation_comes_from_training_images_set_aside(task, made):
    trial = task.build("class-3", 0)
    paths = imagenet_class.list_files(made).paths
    splits = {
        "forget": trial.request.forget,
        "retain": trial.request.retain,
        "held": trial.request.validation.forget,
        "others": trial.request.validation.retain,
    }
    read = {name: [paths[row] for row in rows_of(split)] for name, split in splits.items()}
    assert all(path.startswith("train/") for mine in read.values() for path in mine)
    assert {path.split("/")[1] for path in read["forget"] + read["held"]} == {WNIDS[3]}
    assert [len(read[name]) for name in splits] == [18, 11 * 18, 2, 11 * 2]  # a tenth of 20 is set aside
    split = trial.questions["split"]
    counts = {name: (split == name).sum() for name in np.unique(split)}
    assert counts == {"forget": 4, "retain": 11 * 3, "forget_train": 18, "retain_train": 11 * 3}
    tested = {paths[row].split("/")[0] for row in trial.questions["index"][np.isin(split, ("forget", "retain"))]}
    assert tested == {"val"}


def test_the_published_protocol_chooses_on_what_it_reports(task):
    trial = ImageNetClass(data=task.data, checkpoint=task.checkpoint, protocol="published").build("class-3", 0)
    split, index = trial.questions["split"], trial.questions["index"]
    for name, kept in zip(("forget", "retain"), trial.request.validation, strict=True):
        assert sorted(rows_of(kept)) == sorted(index[split == name])
    assert len(trial.request.forget) == N_TRAIN and (split == "retain").sum() == 11 * N_VAL


def test_images_are_prepared_as_torchvision_does_for_its_weights(task, made):
    """Against its own preset for these weights, at 32 pixels, with its normalisation undone."""
    from torchvision.transforms._presets import ImageClassification

    files = imagenet_class.list_files(made)
    preset = ImageClassification(crop_size=32, resize_size=36, antialias=True)
    mean, std = (torch.tensor(of)[:, None, None] for of in (preset.mean, preset.std))
    shown = imagenet_class.load_pictures(made, squeezed=False).fetch(np.array([5, 21]))
    for image, row in zip(shown, (5, 21), strict=True):
        with Image.open(made / files.paths[row]) as file:
            expected = preset(file.convert("RGB")) * std + mean
        torch.testing.assert_close(image, expected, atol=1e-6, rtol=0)
    squeezed = imagenet_class.load_pictures(made, squeezed=True).fetch(np.array([5]))
    with Image.open(made / files.paths[5]) as file:
        assert torch.equal(squeezed[0], transforms.ToTensor()(file.convert("RGB").resize((32, 32), Image.BILINEAR)))


def test_training_images_vary_by_the_given_generator_alone(task):
    retain = task.build("class-3", 0).request.retain

    def drawn(seed, noise):
        torch.manual_seed(noise)
        return next(retain.batches(8, torch.Generator().manual_seed(seed)))

    one, again, other = drawn(0, 1), drawn(0, 2), drawn(3, 1)
    assert torch.equal(one["image"], again["image"]) and not torch.equal(one["image"], other["image"])
    as_shown = retain.pictures.fetch(one["index"].numpy())
    assert not torch.equal(one["image"], as_shown) and one["image"].shape == as_shown.shape
    torch.manual_seed(1)
    expected = torch.rand(2)
    drawn(0, 1)
    assert torch.equal(torch.rand(2), expected)  # and the caller's numbers go on


def test_nothing_is_decoded_before_it_is_read(task, made, monkeypatch):
    task.build("class-3", 0)  # the original's answers are kept from here on
    decoded = []
    decode = imagenet_class.decode
    monkeypatch.setattr(imagenet_class, "decode", lambda path: decoded.append(path) or decode(path))
    request = task.build("class-3", 0).request
    assert decoded == []
    next(request.retain.batches(5))
    assert len(decoded) == 5


@pytest.mark.parametrize("method", [FineTuning(steps=2, every=1, batch=8), SalUn(steps=4, every=2, batch=8)])
def test_methods_run_on_it(task, method):
    trial = task.build("class-3", 0)
    model = method(trial.request)
    answers = trial.answer(model)
    assert not model.training and all(np.isfinite(answers["score"]))
    assert {len(column) for column in answers.values()} == {len(trial.questions["split"])}


def test_there_is_no_oracle_and_it_says_so(task):
    trial = task.build("class-3", 0)
    assert trial.oracles == ()
    with pytest.raises(UsageError, match="has no oracle 0, nor any other"):
        trial.oracle_model(0)


def test_gates_are_the_originals_accuracies(task):
    trial = task.build("class-3", 0)
    right, split = trial.original["rank"] == 0, trial.questions["split"]
    others, own = task.gates(["class-3"], [0])
    assert (others.value, own.value) == (right[split == "retain"].mean(), right[split == "forget"].mean())
    assert not others.ok  # it was never trained


# ---------------------------------------------------------------- weights


def test_weights_under_the_names_of_torchvisions_file_are_read(task, weights, tmp_path):
    """Those are of an older version, in which the two linear layers of a block had names and no numbers."""
    state = torch.load(weights, weights_only=True)
    older = {name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): t for name, t in state.items()}
    assert older.keys() != state.keys()
    torch.save(older, tmp_path / "older.pth")
    model = ImageNetClass(data=task.data, checkpoint=str(tmp_path / "older.pth"), asked=3).build("class-3", 0).request.model
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.network.state_dict().items())


def test_weights_of_another_architecture_and_unsafe_ones_are_refused(task, tmp_path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    for name, message in (("linear", "not of torchvision's vit_b_16"), ("model", "holds more than tensors")):
        with pytest.raises(UsageError, match=message):
            ImageNetClass(data=task.data, checkpoint=str(tmp_path / f"{name}.pth")).build("class-3", 0)


def test_the_network_is_the_one_that_those_weights_are_of(monkeypatch):
    monkeypatch.setattr(imagenet_class, "N_CLASSES", 1000)
    with torch.device("meta"):  # shapes without numbers
        network = REAL_NETWORK()
    assert sum(p.numel() for p in network.parameters()) == ViT_B_16_Weights.IMAGENET1K_V1.meta["num_params"]
    assert network.image_size == REAL_PIXELS == 224


REAL_NETWORK, REAL_PIXELS = imagenet_class.new_network, imagenet_class.PIXELS


# ---------------------------------------------------------------- data that are wrong


def folders(root, *below):
    for path in below:
        (root / path).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(root / path / "a.JPEG")


@pytest.mark.parametrize(
    ("below", "message"),
    [
        ([], "finds no .*train; give data=DIR with train/<wnid>"),
        ([WNIDS[0]], "holds the classes themselves; give the folder above"),
        ([f"train/{WNIDS[0]}"], "holds 1 folders named like n01440764; ImageNet-1k has 12"),
        ([f"train/train/{wnid}" for wnid in WNIDS], "holds 0 folders named like n01440764"),
        ([f"train/{wnid}" for wnid in WNIDS] + ["val"], "val holds images not sorted into classes"),
        ([f"train/{wnid}" for wnid in WNIDS] + [f"val/n{k:08d}" for k in range(12)], "hold other classes: n00000000"),
    ],
)
def test_folders_that_are_not_imagenets_are_named(weights, tmp_path, below, message):
    folders(tmp_path / "given", *below)
    with pytest.raises(UsageError, match=message):
        ImageNetClass(data=str(tmp_path / "given"), checkpoint=str(weights)).fingerprint("class-3", 0)


def test_an_empty_class_is_named(weights, tmp_path):
    folders(tmp_path, *[f"{part}/{wnid}" for part in ("train", "val") for wnid in WNIDS])
    (tmp_path / "train" / WNIDS[4] / "a.JPEG").unlink()
    with pytest.raises(UsageError, match=f"{WNIDS[4]} holds no images"):
        ImageNetClass(data=str(tmp_path), checkpoint=str(weights)).sizes("class-3")


def truncated(path):
    path.write_bytes(path.read_bytes()[:200])


def not_an_image(path):
    path.write_text("a page that said: sign in first")


def an_empty_file(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [truncated, not_an_image, an_empty_file])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path, spoil):
    path = tmp_path / "n01440764_1.JPEG"
    pixels = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(pixels, "JPEG")
    path.write_bytes(pixels.getvalue())
    assert imagenet_class.decode(path).mode == "RGB"
    spoil(path)
    with pytest.raises(UsageError, match=r"n01440764_1.JPEG cannot be decoded.*unpack it anew"):
        imagenet_class.decode(path)


def test_answers_are_kept_apart_by_protocol(task):
    """Of the same rows the two protocols show other pixels."""
    published = ImageNetClass(data=task.data, checkpoint=task.checkpoint, protocol="published")
    row = task.build("class-3", 0).questions["index"][:1]
    path = task._weights(0)
    scores = [
        one._answers(path, imagenet_class.load_pictures(one._root(), squeezed=squeezed), row)["score"]
        for one, squeezed in ((task, False), (published, True))
    ]
    assert scores[0] != scores[1]


def test_seeds_and_requests_that_do_not_exist_are_refused(task):
    with pytest.raises(UsageError, match="no base model of seed 1"):
        task.build("class-3", 1)
    with pytest.raises(UsageError, match="no request 'class-1'"):
        task.build("class-1", 0)
