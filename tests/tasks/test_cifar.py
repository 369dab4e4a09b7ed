"""On miniatures in the format of the published files: 200 training and 60 test images, and a network of two layers."""

import hashlib
import pickle
import shutil
import subprocess
import sys
from collections import OrderedDict, defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision import datasets

from slugbench.bench import UsageError
from slugbench.bench.cli import main
from slugbench.bench.types import Sized, Task
from slugbench.methods.salun import SalUn
from slugbench.tasks import _cifar, _classification, cifar
from slugbench.tasks._classification import PictureSplit, Recipe
from slugbench.tasks.cifar import Cifar10, Cifar100

from . import laws

N_TRAIN, N_TEST = 200, 60
SMALL = Recipe(epochs=4, batch=20, learning_rate=0.05, milestones=(3,))


def tiny_network(n_classes):
    layers = {
        "conv1": torch.nn.Conv2d(3, 8, 3, stride=4, padding=1, bias=False),
        "bn1": torch.nn.BatchNorm2d(8),
        "relu": torch.nn.ReLU(),
        "flatten": torch.nn.Flatten(),
        "fc": torch.nn.Linear(512, n_classes),
    }
    return torch.nn.Sequential(OrderedDict(layers))


def batch_file(label, rng):
    """What a file of CIFAR-10 holds, images as rows of 3,072 bytes; here a class is a colour, more or less, in noise."""
    colour = np.random.default_rng(0).uniform(50, 200, (10, 3))[label] + rng.normal(0, 20, (len(label), 3))
    image = colour[:, :, None, None] + 20 * rng.standard_normal((len(label), 3, 32, 32))
    data = image.clip(0, 255).astype(np.uint8).reshape(len(label), 3072)
    names = [f"{k}_{i}.png" for i, k in enumerate(label)]
    return {"batch_label": "a batch", "labels": label.tolist(), "data": data, "filenames": names}


def write(folder, name, content):
    """One file; returns its entry in torchvision's list, with the MD5 that its integrity check asks for."""
    (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]


@pytest.fixture(scope="module", autouse=True)
def made(tmp_path_factory):
    """The miniature, and whatever is published about the real thing set to what is so of it; a cache of its own."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(5)
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    train, test = rng.permutation(N_TRAIN) % 10, rng.permutation(N_TEST) % 10
    files = [write(folder, f"data_batch_{i + 1}", batch_file(part, rng)) for i, part in enumerate(np.split(train, 5))]
    tested = [write(folder, "test_batch", batch_file(test, rng))]
    meta = write(folder, "batches.meta", {"label_names": [f"class {k}" for k in range(10)], "num_vis": 3072})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLUGBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(datasets.CIFAR10, "train_list", files)
        patch.setattr(datasets.CIFAR10, "test_list", tested)
        patch.setattr(datasets.CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
        patch.setattr(Cifar10, "facts", cifar.CIFAR10._replace(n_train=N_TRAIN, n_test=N_TEST))
        patch.setitem(_cifar.NETWORKS, "resnet18", tiny_network)
        patch.setitem(cifar.RECIPES, "salun", SMALL)
        patch.setitem(cifar.RECIPES, "svd", Recipe(epochs=2, batch=20, learning_rate=0.05, nesterov=True))
        yield root


REQUESTS = ("class-4", "class-3", "random-10-0")


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory):
    """The task with bases and the oracles of a few requests trained, by the command that users are told."""
    out = tmp_path_factory.mktemp("rebuilt")
    spec = f"cifar10:data={made},oracles=1"
    assert main(["artifacts", "rebuild", spec, "--requests", ",".join(REQUESTS), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {
        *(f"cifar10-resnet18-base-{seed}.safetensors" for seed in range(3)),
        *(f"cifar10-resnet18-{request}-oracle-0.safetensors" for request in REQUESTS),
    }
    return Cifar10(data=str(made), oracles=1), out


def rows_of(split):
    return np.concatenate([batch["index"].numpy() for batch in split.batches(64)])


# ---------------------------------------------------------------- what is listed


def test_requests_of_both_data_sets_never_tune_on_what_is_tested():
    for task in (Cifar10(), Cifar100()):
        assert isinstance(task, Task) and isinstance(task, Sized)
        pools = defaultdict(set)
        for request in task.requests():
            pools[request.pool].update(request.targets or [request.id])
        assert len(pools) == 4 and sum(map(len, pools.values())) == len(task.requests())
        assert len([r for r in task.requests() if not r.targets and r.pool == "test"]) == 12  # six of each size
    tested = [int(r.targets[0]) for r in Cifar100().requests() if r.targets and r.pool == "test"]
    assert tested == list(range(0, 100, 10))  # the SVD paper's


def test_what_is_listed_and_keyed_needs_no_torch(made, tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"any")
    params = f"data={str(made)!r}, checkpoint={str(tmp_path / 'weights.pt')!r}, oracles=0"
    code = (
        f"import sys; from slugbench.tasks.cifar import Cifar10; t = Cifar10({params})\n"
        "assert len(t.requests()) == 28 and all(w.found for w in t.wanted())\n"
        "assert len({t.fingerprint(r.id, 0) for r in t.requests()}) == 28\n"
        "assert t.sizes('class-3')['forget_train'].images == 4500 and t.sizes('random-50-0')['forget'].images == 22500\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("request_id", REQUESTS)
def test_sizes_are_those_of_the_questions(trained, request_id):
    task, _ = trained
    questions = task.build(request_id, 0).questions
    for name, size in task.sizes(request_id).items():
        mine = questions["split"] == name
        assert size.images == mine.sum()
        if name != "forget" or request_id != "random-10-0":  # 18 images here; of thousands all classes come up
            assert size.units == len(np.unique(questions["unit"][mine]))
    assert set(task.sizes(request_id)) == set(questions["split"])


def test_missing_things_are_listed_with_the_command_that_gives_them(made, tmp_path):
    missing = Cifar10(data=str(tmp_path)).wanted()
    assert len(missing) == 7 and not any(wanted.found for wanted in missing)
    assert f"slugbench artifacts rebuild cifar10:data={tmp_path},download=true" in missing[0].note
    models = Cifar10(data=str(made), model="vgg16_bn").wanted()[7:]
    assert len(models) == 3 + 28 and not any(wanted.found for wanted in models)
    assert f"slugbench artifacts rebuild cifar10:data={made},model=vgg16_bn --requests class-0" in models[3].note


# ---------------------------------------------------------------- which images


LABEL = np.random.default_rng(1).permutation(np.arange(50_000) % 10)


def published_code(label, seed):
    """The 45,000 and the 5,000 images as SalUn's loader comes to them, told by sets."""
    rng, held = np.random.RandomState(seed), []
    for k in range(10):
        held.extend(rng.choice(np.where(label == k)[0], int(0.1 * sum(label == k)), replace=False))
    return sorted(set(range(len(label))) - set(held)), sorted(held)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_split_is_the_one_that_the_published_code_draws(seed):
    train, held = published_code(LABEL, seed)
    assert [part.tolist() for part in _cifar.split_of(LABEL, seed)] == [train, held]


def test_a_published_random_draw_is_that_of_the_code():
    """Its positions come from a generator of the run's seed less one, over the 45,000 of the run's seed."""
    pool = np.array(published_code(LABEL, 5)[0])
    expected = pool[np.random.RandomState(4).choice(np.arange(45_000), size=4500, replace=False)]
    request = next(r for r in Cifar10().requests() if r.id == "random-10-3")
    assert _cifar.published_seed(request) == 5
    assert _cifar.draw_published(pool, _cifar.drawn_of(request)).tolist() == sorted(expected)


def test_a_tenth_of_what_is_forgotten_as_published_was_never_trained_on():
    """Of CIFAR-10 itself 457 of 4,500 at seed 2; each is held out with probability 1/10, so the SD is 20."""
    trained, pool = _cifar.split_of(LABEL, 1).train, _cifar.split_of(LABEL, 2).train
    forgotten = _cifar.draw_published(pool, _cifar.Drawn(10, 0))
    assert 390 < 4500 - np.isin(forgotten, trained).sum() < 510


@pytest.mark.parametrize(("percent", "n"), [(10, 10), (50, 2)])
def test_draws_of_one_permutation_share_no_image_and_are_all_of_the_pool(percent, n):
    pool = np.arange(100, 300)
    draws = [_cifar.draw_disjoint(pool, _cifar.Drawn(percent, s)) for s in range(n)]
    assert {len(draw) for draw in draws} == {2 * percent}
    assert sorted(np.concatenate(draws)) == pool.tolist()


def test_no_test_image_is_validated_on_and_all_that_is_forgotten_was_trained_on(trained):
    task, _ = trained
    held = np.array(published_code(cifar_labels(task), 1)[1])
    for request_id in ("class-4", "random-10-0"):
        request, questions = task.build(request_id, 0).request, task.build(request_id, 0).questions
        validation = np.concatenate([rows_of(split) for split in request.validation if split is not request.forget])
        assert (validation < N_TRAIN).all()
        assert set(held) <= set(validation) | set(rows_of(request.validation.forget))
        assert not set(held) & {*rows_of(request.forget), *rows_of(request.retain)}
        assert (questions["index"][questions["split"] == "retain"] >= N_TRAIN).all()


def cifar_labels(task):
    return task._pictures().label[:N_TRAIN]


def test_the_published_protocol_validates_on_test_images_and_says_so(trained):
    task = Cifar10(data=trained[0].data, protocol="published", oracles=0)
    request = task.build("class-4", 0).request
    assert min(map(np.min, map(rows_of, request.validation))) >= N_TRAIN
    gate = task.gates(["class-4"], [0])[-1]
    unseen = ~np.isin(rows_of(request.forget), published_code(cifar_labels(task), 1)[0])
    assert gate.ok and "published protocol" in gate.name and gate.value == pytest.approx(unseen.mean())
    oracle = Cifar10(data=task.data, protocol="published", oracles=1)
    with pytest.raises(UsageError, match=r"no oracle 0 of class-4 yet.*protocol=published"):
        oracle.build("class-4", 0)  # trained on other images than the clean one's, which is there


def test_deep_unlearning_sets_no_image_aside_where_its_table_is_followed(trained):
    task = Cifar10(data=trained[0].data, protocol="published", recipe="svd", oracles=0)
    label, parts = cifar_labels(task), task._parts(task._listed("class-4"))
    assert sorted(parts.forget) == np.flatnonzero(label == 4).tolist()
    assert sorted(parts.retain) == np.flatnonzero(label != 4).tolist()
    assert task._trained_on().tolist() == list(range(N_TRAIN)) and task._unseen_gate(task._listed("class-4")).value == 0
    for recipe, same in {"svd": False, "salun": True}.items():  # of SalUn's recipe both protocols have one base model
        both = (replace(task, recipe=recipe, protocol=protocol)._key(0, None) for protocol in ("default", "published"))
        assert (next(both) == next(both)) == same


# ---------------------------------------------------------------- augmentation


def test_images_vary_only_where_an_order_is_drawn(trained):
    request = trained[0].build("class-4", 0).request
    pixels = trained[0]._pictures().fetch
    for split, varies in ((request.retain, True), (request.validation.retain, False)):
        (stored,), (drawn,) = split.batches(999), split.batches(999, torch.Generator().manual_seed(0))
        (again,) = split.batches(999, torch.Generator().manual_seed(0))
        assert torch.equal(stored["image"], pixels(rows_of(split))) and torch.equal(drawn["image"], again["image"])
        assert torch.equal(drawn["image"], pixels(drawn["index"].numpy())) != varies
    plain = Cifar10(data=trained[0].data, oracles=1, augment=False).build("class-4", 0).request.retain
    (drawn,) = plain.batches(999, torch.Generator().manual_seed(0))
    assert torch.equal(drawn["image"], pixels(drawn["index"].numpy()))


def test_a_varied_image_is_one_that_torchvision_could_have_cut_and_all_of_those_come_up():
    from torchvision.transforms.functional import crop, hflip, pad

    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    possible = {
        crop(pad(side, [4]), top, left, 32, 32).numpy().tobytes()
        for side in (image, hflip(image))
        for top in range(9)
        for left in range(9)
    }
    varied = _cifar.flip_and_shift(image.expand(2000, -1, -1, -1), torch.Generator().manual_seed(1))
    assert {one.numpy().tobytes() for one in varied} == possible  # 162; one of them is missed with probability 1e-3


# ---------------------------------------------------------------- training


def state_of(path):
    return _classification.load_checkpoint(path)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("without", [None, "class-4"])
@pytest.mark.parametrize("recipe", ["salun", "svd"])
def test_training_that_was_interrupted_goes_on_to_the_same_bits(made, tmp_path, monkeypatch, recipe, without):
    task = Cifar10(data=str(made), recipe=recipe)
    listed = without and task._listed(without)
    monkeypatch.setenv("SLUGBENCH_CACHE", str(tmp_path / "whole"))
    task._train_into(tmp_path, 0, listed)
    whole = state_of(task._place(0, listed))
    monkeypatch.setenv("SLUGBENCH_CACHE", str(tmp_path / "broken"))
    epoch, seeds = _classification._epoch, []

    def interrupted(*arguments, seed):
        seeds.append(seed)
        if len(seeds) == 2:
            raise KeyboardInterrupt
        return epoch(*arguments, seed=seed)

    monkeypatch.setattr(_classification, "_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        task._train_into(tmp_path, 0, listed)
    assert not task._place(0, listed).exists()
    torch.rand(7)
    task._train_into(tmp_path, 0, listed)
    assert seeds == [0, 1, *range(1, cifar.RECIPES[recipe].epochs)]  # no epoch twice but the one interrupted
    assert same(state_of(task._place(0, listed)), whole)
    assert not list((tmp_path / "broken").glob("*.pt"))  # nothing of it is left


def test_an_oracle_is_trained_on_what_is_retained_and_nothing_else(trained, monkeypatch):
    task, seen = trained[0], []

    def fit(model, split, recipe, **_):
        seen.extend(rows_of(split))
        assert split.augment
        return model

    monkeypatch.setattr(cifar, "fit", fit)
    task._train(1000, task._listed("random-10-0"), None, task._root() / "unused.safetensors")
    assert sorted(seen) == sorted(rows_of(task.build("random-10-0", 0).request.retain))


@pytest.mark.parametrize(("recipe", "rates"), [("salun", [0.05, 0.05, 0.05, 0.005]), ("svd", [0.05, 0.05])])
def test_learning_rates_fall_as_the_recipe_says(made, tmp_path, monkeypatch, recipe, rates):
    task, seen = Cifar10(data=str(made), recipe=recipe), []
    epoch = _classification._epoch

    def looked(model, split, batch, optimizer, *, seed):
        seen.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[0]["nesterov"] == (recipe == "svd")
        assert torch.backends.cudnn.enabled and torch.backends.cudnn.deterministic
        return epoch(model, split, batch, optimizer, seed=seed)

    monkeypatch.setattr(_classification, "_epoch", looked)
    task._train(0, None, tmp_path / "state.pt", tmp_path / "model.safetensors")
    assert seen == pytest.approx(rates)


def test_the_plateau_recipe_halves_the_rate_when_the_loss_stays():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    schedule = _classification._schedule_of(optimizer, Recipe(350, 64, 0.1))
    for _ in range(13):
        schedule.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_nothing_is_trained_by_surprise(made, tmp_path, monkeypatch):
    monkeypatch.setenv("SLUGBENCH_CACHE", str(tmp_path))
    command = f"slugbench artifacts rebuild cifar10:data={made},oracles=0`"
    for ask in (lambda task: task.build("class-3", 0), lambda task: task.fingerprint("class-3", 0)):
        with pytest.raises(
            UsageError, match="no base model of seed 0 yet, and 4 epochs do not start by themselves"
        ) as refused:
            ask(Cifar10(data=str(made)))
        assert command in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_refused_before_anything_runs_where_something_is_not_trained(trained, tmp_path, capsys):
    suite = tmp_path / "mine.toml"
    text = 'name = "mine"\nmethods = ["ft"]\nbase_seeds = [0]\nmethod_seeds = [0]\n[requests]\ncifar10 = ["{}"]\n'
    suite.write_text(f'tasks = ["cifar10:data={trained[0].data},oracles=1"]\n' + text.format("class-4"))
    assert main(["plan", str(suite)]) == 0
    assert "class-4" in capsys.readouterr().out
    suite.write_text(suite.read_text().replace("class-4", "class-8"))
    assert main(["plan", str(suite)]) == 2
    assert "cifar10 has no oracle 0 of class-8 yet" in capsys.readouterr().out


def test_without_oracles_base_models_alone_are_trained(made, tmp_path, capsys):
    assert main(["artifacts", "rebuild", f"cifar10:data={made},oracles=0", "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"cifar10-resnet18-base-{s}.safetensors" for s in range(3)]


def test_data_are_fetched_by_torchvision_only_when_told_and_then_nothing_is_trained(made, tmp_path, monkeypatch):
    def fetch(dataset):
        shutil.copytree(made, dataset.root, dirs_exist_ok=True)

    monkeypatch.setattr(datasets.CIFAR10, "download", fetch)
    monkeypatch.setattr(cifar, "fit", None)
    root = tmp_path / "fetched"
    with pytest.raises(UsageError, match=r"fetch it by `slugbench artifacts rebuild cifar10:data=.*,download=true`"):
        Cifar10(data=str(root)).rebuild(tmp_path)
    assert not root.exists()
    spec = Cifar10(data=str(root))._command(download=True).split()[-1]
    assert main(["artifacts", "rebuild", spec, "--out", str(tmp_path / "out")]) == 0
    assert all(wanted.found for wanted in Cifar10(data=str(root)).wanted()[:7])


def test_tasks_that_are_remade_as_a_whole_take_no_requests(tmp_path, capsys):
    assert main(["artifacts", "rebuild", "digits", "--requests", "class-0", "--out", str(tmp_path)]) == 2
    assert "task 'digits' is remade as a whole" in capsys.readouterr().err


def test_oracles_that_were_not_asked_for_are_refused_by_name(trained):
    task, _ = trained
    with pytest.raises(UsageError, match=r"no oracle 0 of class-7 yet.* --requests class-7`"):
        task.build("class-7", 0)
    with pytest.raises(UsageError, match="no oracle 1 of class-4 yet"):
        task.build("class-4", 0).oracle_model(1)


# ---------------------------------------------------------------- checkpoints


def test_a_checkpoint_of_the_papers_code_is_the_base_model(trained, tmp_path):
    """It is named as a bare network, with its normalisation inside, among other things and below `module`."""
    ours = state_of(trained[1] / "cifar10-resnet18-base-1.safetensors")
    theirs = {name.replace("network.", "module."): tensor for name, tensor in ours.items()}
    theirs |= {"module.normalize.mean": torch.rand(3), "module.normalize.std": torch.rand(3)}
    torch.save({"state_dict": theirs, "epoch": 182, "best_sa": 95.1}, tmp_path / "theirs.pt")
    task = Cifar10(data=trained[0].data, checkpoint=str(tmp_path / "theirs.pt"), oracles=0)
    assert same(task.build("class-3", 0).request.model.state_dict(), ours)
    with pytest.raises(UsageError, match="one base model, that of seed 0"):
        task.build("class-3", 1)


def test_checkpoints_are_told_apart_by_their_seed(trained):
    task = Cifar10(data=trained[0].data, checkpoint=str(trained[1] / "cifar10-resnet18-base-{seed}.safetensors"), oracles=0)
    for seed in (0, 2):
        assert same(task.build("class-3", seed).request.model.state_dict(), state_of(trained[0]._place(seed)))
    assert len({task.fingerprint("class-3", seed) for seed in (0, 1, 2)}) == 3


class Unsafe:
    """What a file may hold that only running code would bring back."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"conv1.weight": torch.zeros(8, 3, 3, 3)}, "is not of a resnet18 for 10 classes.*it lacks network.bn1.weight"),
        ({"state_dict": Unsafe()}, "holds more than tensors.*save its weights alone"),
        ({"epoch": 3}, "holds no state dict"),
        (b"no such format", "holds more than tensors, or none"),
        (None, "is not there; give a file of weights"),
    ],
)
def test_checkpoints_that_cannot_serve_are_refused_in_a_sentence(made, tmp_path, content, message):
    path = tmp_path / "given.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UsageError, match=message):
        Cifar10(data=str(made), checkpoint=str(path), oracles=0).build("class-3", 0)


def test_a_checkpoint_for_other_classes_is_refused_by_its_shapes(made, tmp_path):
    torch.save(_cifar.new_model(cifar.CIFAR100, "resnet18").state_dict(), tmp_path / "hundred.pt")
    with pytest.raises(UsageError, match=r"network.fc.weight.*\[100, 512\]"):
        Cifar10(data=str(made), checkpoint=str(tmp_path / "hundred.pt"), oracles=0).build("class-3", 0)


# ---------------------------------------------------------------- data that are wrong


def test_a_folder_one_level_too_deep_is_named(made):
    with pytest.raises(UsageError, match="is cifar-10-batches-py itself; give the folder that it lies in"):
        Cifar10(data=str(made / "cifar-10-batches-py")).fingerprint("class-0", 0)


def test_a_missing_batch_is_named(made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(UsageError, match="cifar10 misses data_batch_4 in"):
        Cifar10(data=str(tmp_path)).build("class-0", 0)


def test_a_damaged_batch_is_named(made, trained, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(path.read_bytes()[:-9] + b"\0" * 9)
    weights = str(trained[1] / "cifar10-resnet18-base-0.safetensors")
    with pytest.raises(UsageError, match="holds other than the published data_batch_2, by the MD5"):
        Cifar10(data=str(tmp_path), checkpoint=weights, oracles=0).build("class-0", 0)


def test_images_are_those_that_torchvision_shows(made, trained):
    pictures = trained[0]._pictures()
    test = datasets.CIFAR10(made, train=False)
    assert pictures.label[N_TRAIN:].tolist() == test.targets
    shown = pictures.fetch(np.array([N_TRAIN + 7]))[0]
    assert np.array_equal((shown * 255).round().permute(1, 2, 0).numpy(), np.asarray(test[7][0]))


def test_of_cifar100_the_fine_labels_count(tmp_path, monkeypatch):
    folder, rng = tmp_path / "cifar-100-python", np.random.default_rng(0)
    folder.mkdir()
    label = {"train": rng.permutation(100), "test": rng.permutation(100)}
    for name, fine in label.items():
        content = {**batch_file(fine % 10, rng), "fine_labels": fine.tolist(), "coarse_labels": (fine // 5).tolist()}
        del content["labels"]
        monkeypatch.setattr(datasets.CIFAR100, f"{name}_list", [write(folder, name, content)])
    name, md5 = write(folder, "meta", {"fine_label_names": [str(k) for k in range(100)]})
    monkeypatch.setattr(datasets.CIFAR100, "meta", {"filename": name, "key": "fine_label_names", "md5": md5})
    pictures = Cifar100(data=str(tmp_path))._pictures()
    assert pictures.label.tolist() == [*label["train"], *label["test"]]
    assert pictures.fetch(np.arange(3)).shape == (3, 3, 32, 32)


def test_a_split_without_images_is_refused(trained):
    with pytest.raises(UsageError, match="at least one image"):
        PictureSplit(trained[0]._pictures(), np.array([], dtype=int))


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize(("name", "parameters"), [("resnet18", 11_173_962), ("vgg16_bn", 15_311_818)])
def test_networks_are_those_of_the_papers(monkeypatch, name, parameters):
    """11,173,962 is the count everyone prints for a ResNet-18 of 32 x 32 images. VGG-16: 14,710,464 in convolutions without
    biases, 2 x 4,224 in batch normalisation, 524,544 + 65,792 + 2,570 in linear layers."""
    monkeypatch.setattr(_cifar, "NETWORKS", {"resnet18": _cifar.resnet18, "vgg16_bn": _cifar.vgg16_bn})
    model = _cifar.new_model(cifar.CIFAR10, name).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    _cifar.new_model(cifar.CIFAR10, name, seed=3)
    assert torch.equal(torch.rand(2), expected)
    maps = []
    layers = [m for m in model.modules() if isinstance(m, torch.nn.AdaptiveAvgPool2d)]
    layers[0].register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0].shape))
    with torch.no_grad():
        assert model(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    assert maps == [(1, 512, 4, 4) if name == "resnet18" else (1, 512, 2, 2)]


# ---------------------------------------------------------------- trials


@pytest.mark.parametrize("law", laws.OF_CLASSES, ids=lambda law: law.__name__)
def test_what_holds_for_every_task_holds_for_a_class(trained, monkeypatch, law):
    laws.holds(law, trained[0], "concepts", monkeypatch)


@pytest.mark.parametrize("law", laws.OF_SAMPLES, ids=lambda law: law.__name__)
def test_what_holds_for_every_task_holds_for_samples(trained, monkeypatch, law):
    laws.holds(law, trained[0], "samples", monkeypatch)


def test_answers_are_asked_once_and_kept(trained, monkeypatch):
    first = trained[0].build("class-4", 0)
    monkeypatch.setattr(_classification, "ask", None)
    again = trained[0].build("class-4", 0)
    assert np.array_equal(first.original["score"], again.original["score"])
    assert np.array_equal(first.oracles[0]["rank"], again.oracles[0]["rank"])


def test_an_oracle_answers_as_its_model_does(trained):
    trial = trained[0].build("class-4", 0)
    now = trial.answer(trial.oracle_model(0))
    np.testing.assert_allclose(now["score"], trial.oracles[0]["score"])
    forget = trial.questions["split"] == "forget"
    assert (now["rank"][forget] > 0).all()  # it never saw one
    assert np.mean(trial.original["rank"][forget] == 0) > 0.5


def test_salun_makes_it_forget_a_class(trained):
    trial = trained[0].build("class-4", 0)
    before = trial.request.validate(trial.request.model)
    model = SalUn(schedule="mixed", learning_rate=0.05)(trial.request)
    after = trial.request.validate(model)
    assert not model.training and after.forget < before.forget
    assert after.retain > before.retain - 0.1
    right, forget = trial.answer(model)["rank"] == 0, trial.questions["split"] == "forget"
    assert right[forget].mean() < np.mean(trial.original["rank"][forget] == 0)


def test_salun_runs_on_samples(trained):
    trial = trained[0].build("random-10-0", 0)
    model = SalUn(steps=6, every=3)(trial.request)
    original = trial.original_model().state_dict()
    same_weights = [
        (tensor == original[name]).float().mean().item()
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and "running" not in name
    ]
    assert {len(column) for column in trial.answer(model).values()} == {len(trial.questions["split"])}
    assert min(same_weights) < 1 and max(same_weights) > 0.3  # half of the weights are masked, over all layers


# ---------------------------------------------------------------- gates


def test_gates_say_what_the_answers_say(trained):
    task, _ = trained
    trial = task.build("class-4", 0)
    split = trial.questions["split"]
    right = {name: np.mean(trial.original["rank"][split == name] == 0) for name in np.unique(split)}
    learned, unseen, known, differs, kept = task.gates(["class-4"], [0])
    tested = np.isin(split, ("forget", "retain"))
    assert learned.value == pytest.approx(np.mean(trial.original["rank"][tested] == 0))
    assert known.value == pytest.approx(right["forget"])
    assert differs.value == np.mean(trial.oracles[0]["rank"][split == "forget"] == 0) and differs.ok
    assert kept.value == pytest.approx(right["retain"] - np.mean(trial.oracles[0]["rank"][split == "retain"] == 0))
    request = trial.request
    held = np.concatenate([rows_of(part) for part in request.validation])
    of_held = _classification.ask(task._pictures(), held, request.model)["rank"] == 0
    assert right["retain_train"] - of_held.mean() == pytest.approx(unseen.value, abs=0.2)  # of some of the trained ones


def test_a_base_model_that_saw_the_validation_images_is_given_away(trained, tmp_path):
    task, _ = trained
    pictures = task._pictures()
    seen = PictureSplit(pictures, np.arange(N_TRAIN))
    recipe = Recipe(epochs=25, batch=20, learning_rate=0.05, milestones=(20,))
    leaky = _classification.fit(_cifar.new_model(task.facts, "resnet18"), seen, recipe, seed=0, resume=tmp_path / "state.pt")
    torch.save(leaky.state_dict(), tmp_path / "leaky.pt")
    gates = Cifar10(data=task.data, checkpoint=str(tmp_path / "leaky.pt"), oracles=0).gates([], [0])
    assert [gate.ok for gate in gates if "not trained on the validation images" in gate.name] == [False]


def test_gates_of_samples_compare_oracles_with_unseen_images(trained):
    task, _ = trained
    trial = task.build("random-10-0", 0)
    split, oracle = trial.questions["split"], trial.oracles[0]["rank"] == 0
    *_, learned, apart, _kept = task.gates(["random-10-0"], [0])
    assert learned.value == np.mean(trial.original["rank"][split == "forget"] == 0)
    assert apart.value == pytest.approx(abs(oracle[split == "forget"].mean() - oracle[split == "retain"].mean()))
