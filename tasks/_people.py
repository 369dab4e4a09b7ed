"""The pictures of the task `identities`: drawn once, kept in the cache, and asked about in one fixed order.

Every model answers the same 7,616 questions, whatever was forgotten, so that one small file a model serves all
requests; a request picks its rows. Legend for array shapes: N pictures, Q questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slugbench.bench import Answers, Model, cached, digest

from . import _clip, _faces

if TYPE_CHECKING:
    import torch

SEED = 0
PARTS = ("train", "validation", "test", "outsider", "utility")
A_PERSON = {"train": 32, "validation": 16, "test": 48, "outsider": 48}
N_UTILITY = 40
"""Pictures of strangers for each of the 24 attribute classes."""
VERSION = 1
"""Raised when what is drawn changes."""
FACTS = ("label", "background", "glasses", "beard")


@cache
def pictures(part: str) -> dict[str, torch.Tensor]:
    """One part's `image` (N, 3, 32, 32) uint8 and `label`, `background`, `glasses`, `beard` (N,) long.

    Labels are identities 0 to 63, outsiders 64 to 95, and in `utility` the attribute class.
    """
    import safetensors.torch

    stored = safetensors.torch.load_file(_file())
    return {name: stored[f"{part}.{name}"] for name in ("image", *FACTS)}


def picture_digest() -> str:
    """Digest of all pictures as drawn on this platform."""
    import torch

    images = torch.cat([pictures(part)["image"] for part in PARTS])
    return digest(images.numpy().tobytes())


def _file() -> Path:
    key = {"seed": SEED, "version": VERSION, "a_person": A_PERSON, "utility": N_UTILITY}
    return cached("identities-pictures", key, _draw_all, suffix=".safetensors")


def _draw_all(path: Path) -> None:
    import safetensors.torch

    drawn = {f"{part}.{name}": column for part in PARTS for name, column in draw(part).items()}
    safetensors.torch.save_file(drawn, path)


def draw(part: str) -> dict[str, torch.Tensor]:
    """Draw one part of the pictures anew."""
    import torch

    stream = [SEED, 10 + PARTS.index(part)]
    if part == "utility":
        label = np.repeat(np.arange(len(_clip.ATTRIBUTES)), N_UTILITY)
        drawn = _faces.photograph(_faces.strangers(SEED, count=len(label)), stream, np.array(_clip.ATTRIBUTES)[label])
    else:
        latents, first = _people(part)
        label = np.repeat(np.arange(first, first + len(latents)), A_PERSON[part])
        drawn = _faces.photograph(np.repeat(latents, A_PERSON[part], axis=0), stream)
    columns = (drawn.image_N3HW, label, drawn.background_N, drawn.glasses_N, drawn.beard_N)
    return {
        name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in zip(("image", *FACTS), columns, strict=True)
    }


def _people(part: str) -> tuple[_faces.Array, int]:
    """Latents of who is in a part, and the first one's label."""
    members = _clip.TRAINED_A_FAMILY + _clip.OUTSIDERS_A_FAMILY
    everyone = _faces.families(SEED, count=_clip.N_FAMILIES, members=members).reshape(_clip.N_FAMILIES, members, -1)
    trained, outsiders = everyone[:, : _clip.TRAINED_A_FAMILY], everyone[:, _clip.TRAINED_A_FAMILY :]
    chosen = outsiders if part == "outsider" else trained
    return chosen.reshape(-1, chosen.shape[-1]), len(_clip.TRAINED) if part == "outsider" else 0


# ---------------------------------------------------------------- questions

ASKED = ("train", "test", "outsider", "utility")


@cache
def questions() -> dict[str, np.ndarray]:
    """`part` (Q,) str, `label` (Q,), `family` (Q,; -1 for strangers), `unit` (Q,) and `index` (Q,), without torch.

    Units of the utility task are its classes, numbered from 96 on so that they are nobody's.
    """
    n = {
        "train": len(_clip.TRAINED),
        "test": len(_clip.TRAINED),
        "outsider": len(_clip.OUTSIDERS),
        "utility": len(_clip.ATTRIBUTES),
    }
    per = {**A_PERSON, "utility": N_UTILITY}
    everyone = len(_clip.TRAINED) + len(_clip.OUTSIDERS)
    first = {"train": 0, "test": 0, "outsider": len(_clip.TRAINED), "utility": 0}
    label = {part: np.repeat(np.arange(first[part], first[part] + n[part]), per[part]) for part in ASKED}
    outsider_family = (label["outsider"] - len(_clip.TRAINED)) // _clip.OUTSIDERS_A_FAMILY
    family = {
        "train": label["train"] // _clip.TRAINED_A_FAMILY,
        "test": label["test"] // _clip.TRAINED_A_FAMILY,
        "outsider": outsider_family,
        "utility": np.full(len(label["utility"]), -1),
    }
    total = sum(len(column) for column in label.values())
    return {
        "part": np.repeat(ASKED, [len(label[part]) for part in ASKED]),
        "label": np.concatenate([label[part] for part in ASKED]),
        "family": np.concatenate([family[part] for part in ASKED]),
        "unit": np.concatenate([label[part] + (everyone if part == "utility" else 0) for part in ASKED]),
        "index": np.arange(total),
    }


def features(model: Model, rows_N: np.ndarray, *, rows_Q: np.ndarray) -> np.ndarray:
    """(N, D) unit embeddings of the pictures of some of a request's questions.

    Args:
        model: on any device.
        rows_N: positions among the request's questions.
        rows_Q: the rows of all questions that the request asks.
    """
    import torch

    return _clip.embed_images(model, everything()[torch.from_numpy(rows_Q[rows_N])]).float().cpu().numpy()


@dataclass(frozen=True, eq=False)
class Names:
    """`Prompts` of a request: other words, or vectors, for a person's name."""

    rows_Q: np.ndarray
    """The rows of all questions that the request asks."""

    def start(self, label: int) -> torch.Tensor:
        """(T,) tokens of the first template with the name."""
        return _clip.name_tokens()[label, 0]

    def places(self, label: int) -> range:
        """Those of all words; the surname's first, in which templates end."""
        n_words = len(_clip.NAME_TEMPLATES[0].split()) + 1  # a name is two
        return range(n_words, 0, -1)

    def words(self) -> range:
        """All but padding, start and end of text."""
        return range(2, len(_clip.vocabulary()) - 1)

    def embed(self, model: Model, tokens_KT: torch.Tensor) -> torch.Tensor:
        """(K, D) unit vectors; gradients are not kept."""
        import torch

        with torch.no_grad():
            return _clip.embed_candidates(model, tokens_KT[:, None].to(next(model.parameters()).device))

    def margins(self, model: Model, label: int, text_KD: torch.Tensor, rows: np.ndarray) -> np.ndarray:
        """(K, n) in units of the logit; masked names answer nothing, whatever their prompt."""
        image_ND = _clip.embed_images(model, everything()[self.rows_Q[rows]])
        return _clip.margins(model, image_ND, label, text_KD)


@cache
def everything() -> torch.Tensor:
    """(7616, 3, 32, 32) uint8, the picture of every question."""
    import torch

    return torch.cat([pictures(part)["image"] for part in ASKED])


def ask(model: Model, rows: np.ndarray | None = None, *, rows_Q: np.ndarray) -> Answers:
    """A model's answers to a request's questions, which are those at `rows_Q` of all; or to some, at `rows` of these."""
    rows_Q = rows_Q if rows is None else rows_Q[rows]

    asked = questions()
    found: list[tuple[np.ndarray, Answers]] = []
    for parts, answer in ((ASKED[:-1], _clip.name_answers), (ASKED[-1:], _clip.attribute_answers)):
        mine = np.flatnonzero(np.isin(asked["part"][rows_Q], parts))
        if len(mine):
            at = rows_Q[mine]
            found.append((mine, answer(model, everything()[at], asked["label"][at])))
    order = np.argsort(np.concatenate([mine for mine, _ in found]), kind="stable")
    return {name: np.concatenate([answers[name] for _, answers in found])[order] for name in found[0][1]}
