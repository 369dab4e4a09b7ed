"""UnlearnCanvas's files in small: answer sets of one seed and few pixels, classifiers of reduced width, in the real formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

SIDE = 16
INPUT = 32
"""Instead of 224 pixels, so that a classifier sees 4 patches."""
SPEC = f"unlearncanvas:seeds=1,side={SIDE},architecture=test_vit"
SEED = 188


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `style50.pth` and `style50_cls.pth`."""
    folder = tmp_path_factory.mktemp("cls_model")
    write_classifier(folder / "style50.pth", 51, seed=0)
    write_classifier(folder / "style50_cls.pth", 20, seed=1)
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole answer set; not to be changed."""
    return write_answer_set(tmp_path_factory.mktemp("images"), seed=0)


@pytest.fixture
def small_input(monkeypatch: pytest.MonkeyPatch) -> None:
    from slugbench.tasks import _unlearncanvas

    monkeypatch.setattr(_unlearncanvas, "INPUT", INPUT)


def write_classifier(file: Path, n_classes: int, *, seed: int) -> None:
    """As the release stores it: weights under `model_state_dict`, beside facts of the training."""
    import timm
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model("test_vit", num_classes=n_classes, img_size=INPUT)
        torch.nn.init.normal_(model.head.weight)  # an untrained head would give one class to all
    torch.save({"model_state_dict": model.state_dict(), "epoch": 9}, file)


def write_answer_set(folder: Path, *, seed: int, styles: tuple[str, ...] | None = None) -> Path:
    """Noise of a colour a style and a contrast an object, as JPEG files."""
    from PIL import Image

    from slugbench.tasks._unlearncanvas import OBJECTS, STYLES

    rng = np.random.default_rng(seed)
    colours, contrasts = rng.uniform(0, 255, (len(STYLES), 3)), rng.uniform(1, 99, len(OBJECTS))
    for style, colour in zip(STYLES, colours, strict=True):
        for object_, contrast in zip(OBJECTS, contrasts, strict=True):
            if styles is None or style in styles:
                pixels = np.clip(colour + contrast * rng.standard_normal((SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{style}_{object_}_seed{SEED}.jpg")
    return folder
