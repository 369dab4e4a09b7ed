"""Shipped and cached model files: half-precision safetensors for weights, compressed npz for per-image answers."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from slugbench.bench import Answers, Model


def assets(task: str) -> Path:
    """The read-only folder of one task's shipped files."""
    return Path(str(resources.files(__package__))) / "assets" / task


def save_weights(model: Model, path: Path) -> None:
    """Write all parameters and buffers, floating ones as fp16."""
    import safetensors.torch

    state = {name: (t.half() if t.is_floating_point() else t).contiguous().clone() for name, t in model.state_dict().items()}
    safetensors.torch.save_file(state, path)


def load_weights(model: Model, path: Path) -> Model:
    """Fill a model from `save_weights`' file, in place, and put it into eval mode."""
    import safetensors.torch

    model.load_state_dict(
        {name: t.float() if t.is_floating_point() else t for name, t in safetensors.torch.load_file(path).items()}
    )
    return model.eval()


def save_answers(answers: Answers, path: Path) -> None:
    """Write per-image answers; the arrays keep the small types they are given in."""
    with path.open("wb") as file:
        np.savez_compressed(file, **answers)  # type: ignore[arg-type]  # the stub takes ** for its one option


def load_answers(path: Path) -> Answers:
    """Read `save_answers`' file; floating columns come back as float64."""
    with np.load(path) as stored:
        return {name: (a.astype(np.float64) if a.dtype.kind == "f" else a.astype(np.int64)) for name, a in stored.items()}
