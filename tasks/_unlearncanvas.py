"""UnlearnCanvas from a folder of images to answers: the protocol's constants, its answer sets and its two classifiers.

An answer set holds what one model draws for every style with every object, once a seed. What models are, and how they
come to their images, is left to others: `answers` takes what the classifiers say of images, however these were made.
Legend for array shapes: N images, C classes of a domain, P pixels of a side.

References:
    Zhang et al., UnlearnCanvas: Enhanced Stylized Image Dataset for Benchmarking Machine Unlearning in Diffusion
    Models, 2024.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slugbench.bench import Answers, DiskTrouble, Model, UsageError, digest, file_digest

from ._image_folders import content_digest

if TYPE_CHECKING:
    import torch
    from PIL import Image

STYLES = (
    *("Abstractionism", "Artist_Sketch", "Blossom_Season", "Bricks", "Byzantine", "Cartoon", "Cold_Warm", "Color_Fantasy"),
    *("Comic_Etch", "Crayon", "Cubism", "Dadaism", "Dapple", "Defoliation", "Early_Autumn", "Expressionism", "Fauvism"),
    *("French", "Glowing_Sunset", "Gorgeous_Love", "Greenfield", "Impressionism", "Ink_Art", "Joy", "Liquid_Dreams"),
    *("Magic_Cube", "Meta_Physics", "Meteor_Shower", "Monet", "Mosaic", "Neon_Lines", "On_Fire", "Pastel"),
    *("Pencil_Drawing", "Picasso", "Pop_Art", "Red_Blue_Ink", "Rust", "Seed_Images", "Sketch", "Sponge_Dabbed"),
    *("Structuralism", "Superstring", "Surrealism", "Ukiyoe", "Van_Gogh", "Vibrant_Flow", "Warm_Love", "Warm_Smear"),
    *("Watercolor", "Winter"),
)
"""In the order of the style classifier's outputs."""
PHOTOGRAPHS = "Seed_Images"
"""The one style that is none, and no target: the photographs that the others were made from."""
OBJECTS = (
    *("Architectures", "Bears", "Birds", "Butterfly", "Cats", "Dogs", "Fishes", "Flame", "Flowers", "Frogs", "Horses"),
    *("Human", "Jellyfish", "Rabbits", "Sandwiches", "Sea", "Statues", "Towers", "Trees", "Waterfalls"),
)
"""In the order of the object classifier's outputs."""
DOMAINS = {"style": STYLES, "object": OBJECTS}
SEEDS = (188, 288, 588, 688, 888)
STEPS = 100
"""Of the sampler."""
GUIDANCE = 9.0
SIDE = 512
"""Pixels of an image's side."""
ARCHITECTURE = "vit_large_patch16_224.augreg_in21k"
"""What both classifiers were fine-tuned from, by timm's name."""
INPUT = 224
"""Pixels of a side of what they look at."""
CHECKPOINTS = {"style": "style50.pth", "object": "style50_cls.pth"}
"""As released."""


def prompt(style: str, object_: str) -> str:
    """What a model is asked for."""
    return f"A {object_} image in {style.replace('_', ' ')} style."


# ---------------------------------------------------------------- the grid


class Grid(NamedTuple):
    """What models are asked for: each of the styles with each of the objects, once a seed; the benchmark's first ones."""

    styles: tuple[str, ...] = STYLES
    objects: tuple[str, ...] = OBJECTS
    seeds: tuple[int, ...] = SEEDS

    @property
    def targets(self) -> tuple[str, ...]:
        """What can be forgotten of it."""
        return tuple(name for name in (*self.styles, *self.objects) if name != PHOTOGRAPHS)

    @property
    def cells(self) -> list[tuple[str, str]]:
        """Styles and objects, styles outermost."""
        return list(product(self.styles, self.objects))


PROTOCOL = Grid()


def file_name(style: str, object_: str, seed: int) -> str:
    """Of an image in an answer set."""
    return f"{style}_{object_}_seed{seed}.jpg"


def file_names(grid: Grid = PROTOCOL) -> list[str]:
    """The images of an answer set, in the order of all columns: by style, then object, then seed."""
    return [file_name(*each) for each in product(*grid)]


def domain_of(targets: Collection[str]) -> str:
    """`style` or `object`, whichever all of the targets are.

    Raises:
        UsageError: they are of both, or one is of neither.
    """
    for domain, classes in DOMAINS.items():
        if set(targets) <= set(classes) - {PHOTOGRAPHS}:
            return domain
    raise UsageError(f"targets are styles alone or objects alone, and {PHOTOGRAPHS} is neither; got {sorted(targets)}.")


def questions(targets: Collection[str], grid: Grid = PROTOCOL) -> dict[str, np.ndarray]:
    """The questions of a request, one an image (see `Trial`).

    Unit and label are the class prompted of the targets' own domain. No concept is `near` another: the benchmark knows no
    neighbours.
    """
    axes = range(len(grid.styles)), range(len(grid.objects)), grid.seeds
    style, object_, seed = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    label = {"style": style, "object": object_}[domain_of(targets)]
    gone = np.isin(label, [DOMAINS[domain_of(targets)].index(target) for target in targets])
    return {
        "split": np.where(gone, "forget", "retain"),
        **{"unit": label, "label": label, "near": np.zeros(len(label), bool), "index": np.arange(len(label))},
        **{"style": style, "object": object_, "seed": seed},
    }


def answers(said: Mapping[str, np.ndarray], questions: Mapping[str, np.ndarray], domain: str) -> Answers:
    """A model's answers (see `Trial`), from what the classifiers say of its images.

    Args:
        said: by domain log-probabilities (N, C), and what else there is of the images.
        questions: as `questions` gives them, or some rows of these.
        domain: the targets', which `predicted`, `rank` and `score` are about.
    """
    found: Answers = {name: column for name, column in said.items() if name not in DOMAINS}
    log_p = {name: said[name] for name in DOMAINS}
    for name, log_p_NC in log_p.items():
        found |= {name: log_p_NC.argmax(1), f"{name}_score": log_odds(log_p_NC, questions[name]), f"{name}_log_p": log_p_NC}
    prompted = np.take_along_axis(log_p[domain], questions[domain][:, None], 1)
    rank = (log_p[domain] > prompted).sum(1)
    return {"predicted": found[domain], "rank": rank, "score": found[f"{domain}_score"], **found}


def log_odds(log_p_NC: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """log p/(1-p) of each label, (N,); 1-p is summed from the other classes, or it were 0 wherever p is almost 1."""
    log_p_NC, label_N1 = log_p_NC.astype(np.float64), label_N[:, None]
    true = np.take_along_axis(log_p_NC, label_N1, 1)[:, 0]
    others = log_p_NC.copy()
    np.put_along_axis(others, label_N1, -np.inf, 1)
    return true - np.logaddexp.reduce(others, axis=1)


# ---------------------------------------------------------------- answer sets


class AnswerSet(NamedTuple):
    """Images, such as those of one model in the order of `file_names`."""

    paths: tuple[Path, ...]
    digests: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of all of them."""
        return digest("".join(self.digests))


def read_answer_set(folder: Path, *, grid: Grid = PROTOCOL, side: int = SIDE) -> AnswerSet:
    """Find the images of one model and look at their heads; pixels are read later.

    Raises:
        UsageError: it names what is missing, what belongs to no answer set, and what is no image of (side, side).
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; give one with the images of one model, such as {file_names()[0]}.")
    wanted = file_names(grid)
    there = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    missing, unknown = [name for name in wanted if name not in there], sorted(there - set(wanted))
    if missing or unknown:
        faults = [f"misses {_some(missing)} of its {len(wanted)} images"] if missing else []
        faults += [f"holds {_some(unknown)}, which {'is' if len(unknown) == 1 else 'are'} none of them"] if unknown else []
        raise UsageError(f"answer set {folder} {' and '.join(faults)}; put that right, or it would be another average.")
    paths = tuple(folder / name for name in wanted)
    if wrong := [fault for path in paths if (fault := _fault(path, side))]:
        raise UsageError(f"answer set {folder}: {_some(wrong)}; make these anew.")
    return AnswerSet(paths, tuple(file_digest(path) for path in paths))


def _fault(path: Path, side: int) -> str | None:
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, SyntaxError) as error:  # SyntaxError is how Pillow reports some broken files
        return f"{path.name} cannot be read as an image ({first_line(error)})"
    return None if (width, height) == (side, side) else f"{path.name} has {width} x {height} pixels and not {side} x {side}"


def _some(names: Sequence[str]) -> str:
    """The first three, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def first_line(error: Exception) -> str:
    """Of its message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def pixels(path: Path) -> torch.Tensor:
    """An image as the classifiers were trained to see it: (3, P, P) in [-1, 1].

    Raises:
        UsageError: the file is not a whole image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return shown(image)
    except (OSError, SyntaxError) as error:
        raise UsageError(f"{path} is no whole image ({first_line(error)}); make it anew.") from error


def shown(image: Image.Image) -> torch.Tensor:
    """The same of an opened image."""
    from torchvision.transforms import v2

    shrunk = v2.functional.resize(image.convert("RGB"), [INPUT, INPUT])
    return v2.functional.pil_to_tensor(shrunk).float() / 127.5 - 1


# ---------------------------------------------------------------- classifiers


class Classifiers:
    """The two frozen classifiers, loaded at first use.

    Args:
        folder: with both files of `CHECKPOINTS`.
        architecture: by timm's name.
        device: where they run.
        features: whether they say as well what they see before their last layers: 4 kB an image.

    Raises:
        UsageError: a checkpoint is missing.
    """

    def __init__(
        self, folder: Path, *, architecture: str = ARCHITECTURE, device: str = "cpu", features: bool = False
    ) -> None:
        self.files = {domain: folder / name for domain, name in CHECKPOINTS.items()}
        self.architecture, self.device = architecture, device
        self.says = (*DOMAINS, "features") if features else tuple(DOMAINS)
        for domain, file in self.files.items():
            if not file.is_file():
                raise UsageError(f"the {domain} classifier {file} is missing; UnlearnCanvas releases it under that name.")

    @cached_property
    def digest(self) -> str:
        """Of all that what they say depends on but the image."""
        return digest({"files": content_digest(self.files.values()), "architecture": self.architecture, "input": INPUT})

    @cached_property
    def models(self) -> dict[str, Any]:
        """By domain, in eval mode.

        Raises:
            UsageError: a checkpoint does not fit.
        """
        return {
            domain: load_classifier(file, len(DOMAINS[domain]), architecture=self.architecture).to(self.device)
            for domain, file in self.files.items()
        }

    def __call__(self, images: torch.Tensor) -> dict[str, np.ndarray]:
        """Log-probabilities (N, C) by domain, of images (N, 3, P, P) as `pixels` gives them; `features` (N, D), half floats,
        are those of both classifiers side by side."""
        import torch

        found, features = dict[str, np.ndarray](), []
        with torch.inference_mode():
            images = images.to(self.device)
            for domain, model in self.models.items():
                before_last = model.forward_head(model.forward_features(images), pre_logits=True)
                found[domain] = model.head(before_last).float().log_softmax(1).cpu().numpy()
                features.append(before_last.half().cpu().numpy())
        return {name: column for name, column in (found | {"features": np.hstack(features)}).items() if name in self.says}


def load_classifier(file: Path, n_classes: int, *, architecture: str = ARCHITECTURE) -> Model:
    """One classifier from a released checkpoint, in eval mode on the CPU.

    Raises:
        UsageError: the file is no such checkpoint, or its classifier has another head or other layers.
    """
    state = _state(file)
    head = state.get("head.weight")
    if head is None or len(head) != n_classes:
        has = "no layer `head`" if head is None else f"a head of {len(head)} classes"
        raise UsageError(f"classifier {file} has {has}; here it needs one of {n_classes}: is it the other domain's?")
    model = _untrained(architecture, n_classes)
    shapes, wanted = ({name: tuple(tensor.shape) for name, tensor in s.items()} for s in (state, model.state_dict()))
    if other := sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name)):
        raise UsageError(f"classifier {file} is no {architecture}: {_some(other)} differ; give the checkpoint as released.")
    model.load_state_dict(state)
    return model.eval()


def _untrained(architecture: str, n_classes: int) -> Any:
    import timm

    try:
        return timm.create_model(architecture, pretrained=False, num_classes=n_classes, img_size=INPUT)
    except (RuntimeError, TypeError, ValueError) as error:  # one that timm does not know, or of no transformer
        raise UsageError(
            f"architecture={architecture} is no vision transformer of timm ({first_line(error)}); the released classifiers "
            f"are {ARCHITECTURE}."
        ) from error


def _state(file: Path) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint; nothing in it is executed."""
    import torch

    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        why = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"classifier {file} cannot be read as a checkpoint ({why}); fetch it anew.") from error
    state = stored.get("model_state_dict") if isinstance(stored, Mapping) else None
    if not isinstance(state, Mapping):
        raise UsageError(f"classifier {file} has no key `model_state_dict`; give the checkpoint as released.")
    return dict(state)


# ---------------------------------------------------------------- what they say of an answer set

BATCH = 64
SAVED = 512
"""Images after which what is known is put on the disk: a kill loses no more."""


def classify(
    images: AnswerSet,
    classifiers: Classifiers,
    *,
    cache: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, np.ndarray]:
    """What the classifiers say of images, as of `Classifiers`; each is run once, whatever set it is in.

    Args:
        images: the answer set.
        classifiers: loaded only if there is an image that they have not seen.
        cache: folder for what they say, by the images' digests.
        progress: called with the number of images done and of all.

    Raises:
        UsageError: an image is not whole.
    """
    known = _Known(cache / f"predictions-{classifiers.digest[:12]}.npz", classifiers.says)
    left = {key: path for key, path in zip(images.digests, images.paths, strict=True) if key not in known.rows}
    keys, total = list(left), len(images.paths)
    progress(total - len(keys), total)
    try:
        with ThreadPoolExecutor() as pool:  # Pillow lets others run while it decodes
            for start in range(0, len(keys), BATCH):
                asked = keys[start : start + BATCH]
                known.add(asked, classifiers(_stack(list(pool.map(pixels, (left[key] for key in asked))))))
                progress(total - len(keys) + start + len(asked), total)
                if (start + len(asked)) % SAVED == 0:
                    known.save()
    finally:
        known.save()
    return known.of(images.digests)


def _stack(images: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.stack(list(images))


class _Known:
    """What classifiers have said of images before, in a file of columns: `digest`, and a matrix for each thing they say."""

    def __init__(self, file: Path, says: tuple[str, ...]) -> None:
        self.file, self.says, self.rows, self.saved = file, says, dict[str, dict[str, np.ndarray]](), 0
        if file.is_file():
            try:
                with file.open("rb") as opened, np.load(opened) as stored:  # np.load itself leaves a broken file open
                    columns = {name: stored[name] for name in ("digest", *says)}
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                return  # not whole: what it held is worked out anew
            self.add(columns.pop("digest").tolist(), columns)
            self.saved = len(self.rows)

    def add(self, keys: Sequence[str], said: Mapping[str, np.ndarray]) -> None:
        self.rows |= {key: {name: matrix[i] for name, matrix in said.items()} for i, key in enumerate(keys)}

    def of(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: np.stack([self.rows[key][name] for key in keys]) for name in self.says}

    def save(self) -> None:
        if len(self.rows) == self.saved:
            return
        unfinished = self.file.with_name(f".{self.file.name}")
        columns: dict[str, Any] = {"digest": np.array(list(self.rows)), **self.of(list(self.rows))}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(unfinished, **columns)
            unfinished.replace(self.file)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise DiskTrouble(
                f"cannot write what the classifiers say to {self.file} ({error.strerror or error}); make room or choose "
                "another --out, and run the same command again: what was written before is kept."
            ) from error
        self.saved = len(self.rows)
