"""The released text-to-image model of UnlearnCanvas, what methods see of it, and its drawings, which are kept one by one.

A drawing depends on the model, the prompt and the seed alone: each has a generator of its own, and its file's name says
which it is. A drawing that is there is not made again.
"""

from __future__ import annotations

import hashlib
import shutil
import weakref
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from slugbench.bench import Answers, MissingDependency, Model, UsageError, digest, file_digest, gathered
from slugbench.bench.artifacts import GATHERED, cache_dir

from ._canvas_model import tokens
from ._diffusion import Contrast, Denoising, Filter, generate, read_pipeline, with_model
from ._image_folders import content_digest, opened
from ._training import write_whole
from ._unlearncanvas import (
    DOMAINS,
    OBJECTS,
    PHOTOGRAPHS,
    STYLES,
    AnswerSet,
    Classifiers,
    classify,
    domain_of,
    file_name,
    first_line,
    prompt,
    shown,
)

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline
    from PIL import Image

INDEX = "model_index.json"
"""What every pipeline in diffusers' form has."""
COMPVIS = b"model.diffusion_model."
"""How names of weights begin in the form that Stable Diffusion was first released in."""
AT_A_TIME = 8
"""Drawings that are sampled together: some 10 GB at 512 pixels."""


# ---------------------------------------------------------------- the checkpoint


def check_checkpoint(folder: Path) -> None:
    """Whether there is a pipeline in diffusers' form; without torch.

    Raises:
        UsageError: there is none; it says what there is, and how to convert it.
    """
    if (folder / INDEX).is_file():
        return
    single = [folder] if folder.is_file() else sorted([*folder.glob("*.ckpt"), *folder.glob("*.safetensors")])
    if compvis := [file for file in single if _is_compvis(file)]:
        raise UsageError(
            f"checkpoint {compvis[0]} is in CompVis form, one file with weights named {COMPVIS.decode()}*; convert it with "
            "diffusers, StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER), and give that folder."
        )
    inside = [file.parent for file in sorted(folder.glob(f"*/{INDEX}"))]
    hint = f"; it is in {inside[0]}, give that" if inside else "; `slugbench doctor unlearncanvas` says where it comes from"
    raise UsageError(f"checkpoint {folder} is no pipeline in diffusers' form, it has no {INDEX}{hint}.")


def _is_compvis(file: Path) -> bool:
    """By the names of the weights, which both formats keep in the clear; none of the weights are read."""
    if zipfile.is_zipfile(file):  # torch.save
        with zipfile.ZipFile(file) as archive:
            return any(COMPVIS in archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))
    with file.open("rb") as opened:
        if file.suffix == ".safetensors":
            length = int.from_bytes(opened.read(8), "little")  # of the names; in another kind of file it may say anything
            return length <= file.stat().st_size and COMPVIS in opened.read(length)
        return file.suffix == ".ckpt"  # torch.save of old


def read_checkpoint(folder: Path) -> StableDiffusionPipeline:
    """The released pipeline, read anew, with the sampler of most of the release's scripts: DDIM, eta 0.

    Raises:
        UsageError: it cannot be read, or its tokenizer is not its text encoder's.
    """
    from diffusers import DDIMScheduler
    from safetensors import SafetensorError

    check_checkpoint(folder)
    try:
        pipeline = read_pipeline(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UsageError(
            f"checkpoint {folder} cannot be read as a pipeline ({first_line(error)}); fetch it anew."
        ) from error
    _check_tokenizer(pipeline, folder)
    # a checkpoint's own scheduler may leave open what only DDIM asks for; latents, unlike pixels, are not to be clipped
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=False)
    return pipeline


def _check_tokenizer(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Whether the text encoder has a vector for each of its entries, and it tells prompts apart.

    transformers makes one without any word, and no fuss, where the files with the words are missing.
    """
    entries, vectors = len(pipeline.tokenizer), pipeline.text_encoder.config.vocab_size
    fault = f"has {entries} entries and the text encoder {vectors}" if entries != vectors else ""
    if not fault and len(training_tokens(pipeline.tokenizer).unique(dim=0)) < len(STYLES) * len(OBJECTS):
        fault = "reads different prompts as the same"
    if fault:
        raise UsageError(
            f"checkpoint {folder}: its tokenizer {fault}; fetch tokenizer/ anew, which holds tokenizer.json, or vocab.json "
            "and merges.txt."
        )


def files_digest(folder: Path) -> str:
    """Digest of all files of a saved model."""
    return content_digest(sorted(file for file in folder.rglob("*") if file.is_file()))


# ---------------------------------------------------------------- what methods see


def training_tokens(tokenizer: Any) -> torch.Tensor:
    """(cells, T) tokens of the prompts that the released model was trained with, one a cell of the whole grid."""
    return tokens(tokenizer, [training_prompt(style, object_) for style in STYLES for object_ in OBJECTS])


def training_prompt(style: str, object_: str) -> str:
    """As `prompt`, but that photographs were called so; what is asked for in the end says `Seed Images style`."""
    return prompt(_in_words(style), object_)


def _in_words(name: str) -> str:
    return "Photo" if name == PHOTOGRAPHS else name.replace("_", " ")


def objective(pipeline: StableDiffusionPipeline, target: str, names: Sequence[str], clip: Path | None) -> Denoising:
    """The objective of a request.

    Args:
        pipeline: the original.
        target: what is to be forgotten.
        names: all styles and objects that there are pictures of.
        clip: folder of the CLIP that the text encoder is of; without it methods that need one are skipped.
    """
    import torch

    domain = domain_of((target,))
    number = DOMAINS[domain].index(target)
    kept = torch.tensor([DOMAINS[domain].index(name) for name in names if name in DOMAINS[domain] and name != target])
    candidates = _candidates(training_tokens(pipeline.tokenizer), domain)
    width = pipeline.text_encoder.config.hidden_size
    contrast: Any = NO_CLIP if clip is None else contrast_of(clip, candidates, kept, width=width)
    named, nothing = bare_names(pipeline.tokenizer, names), tokens(pipeline.tokenizer, [""])
    return Denoising(pipeline.vae, pipeline.scheduler, nothing, candidates, kept, {target: number}, named, contrast)


def bare_names(tokenizer: Any, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """(T,) tokens of each style's and object's name alone, as training prompts write it."""
    return dict(zip(names, tokens(tokenizer, [_in_words(name) for name in names]), strict=True))


def _candidates(tokens_CT: torch.Tensor, domain: str) -> torch.Tensor:
    """(cells, classes, T) tokens of each cell's prompt with each class of a domain in the place of its own."""
    grid = tokens_CT.view(len(STYLES), len(OBJECTS), -1)
    if domain == "object":
        return grid.repeat_interleave(len(OBJECTS), 0)
    return grid.transpose(0, 1).repeat(len(STYLES), 1, 1)


class Absent:
    """In the place of a thing that is not there: whoever uses it is told so.

    Args:
        error: what is raised.
        facts: what is known of it all the same.
    """

    def __init__(self, error: Exception, **facts: Any) -> None:
        self.__dict__ |= {"_error": error, **facts}

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # what copying and introspection try
            raise AttributeError(name)
        self()

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise self.__dict__["_error"]

    def __len__(self) -> NoReturn:
        self()


NO_CLIP = Absent(
    MissingDependency(
        "methods that edit the text encoder need the CLIP that it is of; give clip=FOLDER of openai/clip-vit-large-patch14."
    )
)


def contrast_of(clip: Path, candidates: torch.Tensor, kept: torch.Tensor, *, width: int) -> Contrast:
    """The objective of a CLIP in transformers' form.

    Args:
        clip: its folder.
        candidates: as of `Contrast`.
        kept: as of `Contrast`.
        width: of the text encoder that is in the place of its own.

    Raises:
        UsageError: it cannot be read, or is not the one that the text encoder is of.
    """
    from safetensors import SafetensorError
    from transformers import CLIPModel

    try:
        read = CLIPModel.from_pretrained(clip, local_files_only=True).float().eval().requires_grad_(False)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UsageError(
            f"clip={clip} cannot be read as a CLIP in transformers' form ({first_line(error)}); fetch it anew."
        ) from error
    if (own := read.config.text_config.hidden_size) != width:
        raise UsageError(
            f"clip={clip} reads text {own} wide and the checkpoint's text encoder {width}, so that is not of it; give the "
            "CLIP that it is of, for Stable Diffusion 1.5 openai/clip-vit-large-patch14."
        )
    return Contrast(read, candidates, kept, partial(as_clip_takes, side=read.config.vision_config.image_size))


def as_clip_takes(image: torch.Tensor, side: int) -> torch.Tensor:
    """Pictures from -1 to 1, as OpenAI's CLIPs were trained to see them."""
    import torch
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from torch.nn.functional import interpolate

    shrunk = interpolate((image + 1) / 2, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(each, device=image.device).view(3, 1, 1) for each in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    return (shrunk - mean) / std


# ---------------------------------------------------------------- drawings


class Drawing(NamedTuple):
    """What is drawn."""

    style: str
    object_: str
    seed: int


class Sampling(NamedTuple):
    """How it is drawn."""

    steps: int
    guidance: float
    side: int


@dataclass(frozen=True, eq=False)
class Studio:
    """Draws by the models of one checkpoint, and has what they draw looked at."""

    pipeline: StableDiffusionPipeline
    checkpoint: str
    """Digest of its files."""
    sampling: Sampling
    judges: Callable[[str], Classifiers]
    """By the device on which they are to run."""

    def seen(self, model: Model, drawings: Sequence[Drawing]) -> dict[str, np.ndarray]:
        """What the classifiers say of a model's drawings, one row each, as of `Classifiers`; drawings are kept, and
        `drawing` (N,) str says where, for `opened_at`."""
        with self._kept(model) as folder:
            self.draw(model, drawings, folder)
            paths = tuple(folder / file_name(*each) for each in drawings)
            images = AnswerSet(paths, tuple(file_digest(path) for path in paths))
            said = classify(images, self.judges(_device(model)), cache=folder)
        return said | {"drawing": np.array([f"{folder.name}/{path.name}" for path in paths])}

    def glimpsed(self, model: Model, drawings: Sequence[Drawing], steps: int) -> dict[str, np.ndarray]:
        """The same in fewer steps; nothing is kept."""
        sampling = self.sampling._replace(steps=min(steps, self.sampling.steps))
        found = [self.told(batch) for batch in self._drawn(model, drawings, sampling)]
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def told(self, images: torch.Tensor) -> dict[str, np.ndarray]:
        """The same of pictures (B, 3, H, W) from 0 to 1, which need not be drawn by a prompt."""
        import torch

        return self.judges(images.device.type)(torch.stack([shown(image) for image in _as_saved(images)]))

    def draw(self, model: Model, drawings: Sequence[Drawing], folder: Path) -> None:
        """Have all these drawings in a folder, each file whole, named as in an answer set."""
        left = [each for each in drawings if not (folder / file_name(*each)).is_file()]
        if not left:
            return
        images = (image for batch in self._drawn(model, left, self.sampling) for image in _as_saved(batch))
        for each, image in zip(left, images, strict=True):
            write_whole(partial(image.save, format="JPEG"), folder / file_name(*each))

    def _drawn(self, model: Model, drawings: Sequence[Drawing], sampling: Sampling) -> Iterator[torch.Tensor]:
        texts, seeds = [prompt(each.style, each.object_) for each in drawings], [each.seed for each in drawings]
        return generate(with_model(self.pipeline, model), texts, seeds, **sampling._asdict(), batch=AT_A_TIME)

    @contextmanager
    def _kept(self, model: Model) -> Iterator[Path]:
        """The folder of a model's drawings: the same for equal weights, whoever made them.

        What a hook does is in no weight. Of a filter before the text encoder all is known by what it reads for each prompt;
        the drawings of a model that has another hook are nobody else's: they go with it.
        """
        import diffusers

        filters = _filters(model)
        if filters is None:
            own = Path(mkdtemp(GATHERED, f"{KEPT}-", cache_dir()))  # named so that what a kill leaves can be collected
            weakref.finalize(model, shutil.rmtree, own, ignore_errors=True)
            yield own
            return
        key = {"weights": weights_digest(model), "checkpoint": self.checkpoint, "diffusers": diffusers.__version__}
        if filters:
            key["reads"] = self._reads(filters)
        with gathered(KEPT, key | self.sampling._asdict()) as folder:
            yield folder

    def _reads(self, filters: Sequence[Filter]) -> str:
        """Digest of what is read, after filters in turn, for each prompt that may be drawn, and for the empty one that
        guidance is away from."""
        texts = [prompt(style, object_) for style in STYLES for object_ in OBJECTS]
        read = tokens(self.pipeline.tokenizer, [*texts, ""])
        for each in filters:
            read = each.read(read)
        return digest(read.numpy().tobytes())


def _filters(model: Model) -> list[Filter] | None:
    """Those before the text encoder, in turn; None where the model has a hook of another kind or in another place."""
    text, found = model.get_submodule("text"), list[Filter]()
    for module in model.modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            if not isinstance(hook, Filter) or module is not text:
                return None
            found.append(hook)
    return found


KEPT = "unlearncanvas-drawings"


def opened_at(answers: Answers, rows: np.ndarray) -> list[np.ndarray] | None:
    """(n of (H, W, 3) uint8) the drawings themselves at those rows of a model's answers, as they are kept; None where some
    are no longer, since the cache was emptied or the model that they go with is gone."""
    paths = [cache_dir() / name for name in answers["drawing"][rows].tolist()]
    try:
        return [np.asarray(opened(path).convert("RGB")) for path in paths]
    except FileNotFoundError:
        return None


def _as_saved(images: torch.Tensor) -> Iterator[Image.Image]:
    from PIL import Image

    for pixels in (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy():
        yield Image.fromarray(pixels)


def weights_digest(model: Model) -> str:
    """Of all parameters and buffers by name, on whatever device they are."""
    import torch

    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _device(model: Model) -> str:
    return next(model.parameters()).device.type
