"""UnlearnCanvas in small, in its real formats: answer sets of few pixels and one seed, classifiers of reduced width."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from slugbench.tasks import _unlearncanvas
from slugbench.tasks._unlearncanvas import OBJECTS, STYLES

SIDE = 16
INPUT = 32
"""Instead of 224 pixels, so that a classifier sees 4 patches."""
SPEC = f"unlearncanvas:seeds=1,side={SIDE},architecture=test_vit"
SEED = 188


@pytest.fixture(scope="session")
def canvas_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole answer set of a model that draws what it is asked for; not to be changed."""
    return write_answer_set(tmp_path_factory.mktemp("images"), seed=0)


@pytest.fixture(scope="session")
def canvas_classifiers(tmp_path_factory: pytest.TempPathFactory, canvas_images: Path) -> Path:
    """A folder with `style50.pth` and `style50_cls.pth`, which know `canvas_images`; not to be changed."""
    folder = tmp_path_factory.mktemp("cls_model")
    names = [path.name for path in sorted(canvas_images.iterdir())]
    seen = np.stack([as_shown(canvas_images / name) for name in names])
    parts = [name.removesuffix(f"_seed{SEED}.jpg").rpartition("_")[::2] for name in names]
    for file, classes, part in (("style50.pth", STYLES, 0), ("style50_cls.pth", OBJECTS, 1)):
        write_classifier(folder / file, seen, np.array([classes.index(names[part]) for names in parts]), len(classes))
    return folder


@pytest.fixture
def small_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classifiers' input in small."""
    monkeypatch.setattr(_unlearncanvas, "INPUT", INPUT)


def as_shown(path: Path) -> np.ndarray:
    """(3, P, P) in [-1, 1], by the transforms that the release names."""
    from PIL import Image
    from torchvision import transforms

    steps = [transforms.Resize((INPUT, INPUT)), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
    return transforms.Compose(steps)(Image.open(path)).numpy()


def write_classifier(file: Path, seen: np.ndarray, label: np.ndarray, n_classes: int) -> None:
    """A random network whose head was fitted by least squares, stored as the release stores it."""
    import timm
    import torch

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = timm.create_model("test_vit", num_classes=n_classes, img_size=INPUT).eval()
        features = model.forward_head(model.forward_features(torch.from_numpy(seen)), pre_logits=True)
        centred = features - features.mean(0)
        wanted = torch.nn.functional.one_hot(torch.from_numpy(label), n_classes).float()
        ridge = 1e-6 * torch.eye(features.shape[1])
        weight = torch.linalg.solve(
            centred.T @ centred / len(label) + ridge, centred.T @ (wanted - wanted.mean(0)) / len(label)
        )
        model.head.weight.copy_(50 * weight.T)
        model.head.bias.copy_(-50 * features.mean(0) @ weight)
    torch.save({"model_state_dict": model.state_dict(), "epoch": 9}, file)


def write_answer_set(folder: Path, *, seed: int, drawn_as: dict[str, str] | None = None) -> Path:
    """JPEG files of a colour a style and a texture an object; `drawn_as` maps styles or objects to what is drawn instead."""
    from PIL import Image

    rng, instead = np.random.default_rng(seed), drawn_as or {}
    folder.mkdir(exist_ok=True)
    for style, object_ in product(STYLES, OBJECTS):
        pixels = (
            colour(instead.get(style, style)) + texture(instead.get(object_, object_)) + rng.normal(0, 2, (SIDE, SIDE, 3))
        )
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        image.save(folder / f"{style}_{object_}_seed{SEED}.jpg", quality=95)
    return folder


def colour(style: str) -> np.ndarray:
    return np.array([(STYLES.index(style) // 4**k) % 4 for k in range(3)]) * 50.0 + 50


def texture(object_: str) -> np.ndarray:
    """A bright blob in one of 5 x 4 places."""
    row, column = divmod(OBJECTS.index(object_), 5)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    return 50 * (2 * np.exp(-((x - (column + 0.5) / 5) ** 2 + (y - (row + 0.5) / 4) ** 2) / 0.02) - 0.3)[..., None]
