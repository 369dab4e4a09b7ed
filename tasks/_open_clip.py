"""Downloaded CLIP models: reading them, asking them zero-shot, and what methods need to know of them.

A full answer of such a model takes thousands of prompts and pictures. What the original's towers make of them is kept in
the cache, so that a model with one tower edited computes that tower's half alone.
Legend for array shapes: B batch, C candidates, D embedding, T tokens, N pictures, M templates.
"""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slugbench.bench import (
    Answers,
    Batch,
    Budget,
    Gate,
    MissingData,
    Model,
    NotFetched,
    Request,
    Scores,
    Split,
    Trial,
    UsageError,
    Validation,
    Wanted,
    cached,
    digest,
)
from slugbench.bench.entropies import entropies
from slugbench.bench.errors import of_its_data
from slugbench.bench.registry import did_you_mean

from ._clip import NEVER, Captions, Clip, embed_candidates, other_labels, temperature
from ._gates import at_least
from ._image_folders import Dealt, Pictures, PictureSplit, Preparation, Shown, and_more, content_digest
from ._wanted import looked_at

if TYPE_CHECKING:
    import torch

AT_A_TIME = 256
"""Pictures, or prompts, in one forward pass."""


# ---------------------------------------------------------------- weights


class Loaded(NamedTuple):
    """A model, and how it takes pictures and texts."""

    model: Clip
    preparation: Preparation
    tokenize: Callable[[Sequence[str]], torch.Tensor]
    """(N, T) long."""


class Tag(NamedTuple):
    """What open_clip knows of published weights, and where their file is, if it is on this machine."""

    file: str | None
    quick_gelu: bool
    source: str
    """Repository and file on the Hugging Face hub, or an address."""

    @property
    def page(self) -> str:
        """The address that tells more, the licence among it."""
        return self.source if "://" in self.source else f"https://huggingface.co/{self.source.rpartition('/')[0]}"

    @property
    def folder(self) -> Path:
        """Where open_clip puts the file: in its own cache, or in the one of the Hugging Face hub."""
        from huggingface_hub import constants

        if "://" in self.source:
            return Path("~/.cache/clip").expanduser()
        return Path(constants.HF_HUB_CACHE) / f"models--{self.source.rpartition('/')[0].replace('/', '--')}"


GIGABYTES = {"ViT-B-32": 0.61, "ViT-B-16": 0.6, "ViT-L-14": 1.7, "ViT-H-14": 3.9, "ViT-g-14": 5.5, "ViT-bigG-14": 10.2}
"""What weights of an architecture take at four bytes a parameter; of QuickGELU the same."""


def _size(model: str) -> str:
    """With a comma before it; empty where it is not known."""
    known = GIGABYTES.get(model.removesuffix("-quickgelu"))
    return f", about {known:g} GB" if known else ""


@dataclass(frozen=True)
class Weights:
    """Which model: everything but `load` and `activation` runs without torch.

    Args:
        model: an architecture of open_clip, such as `ViT-B-32`; a folder brings its own.
        pretrained: a tag of open_clip for that architecture; or a file, an open_clip state dict (`.pt`, or a training
            checkpoint) or `.safetensors`; or a folder of the Hugging Face hub's layout, open_clip's
            (`open_clip_config.json`) or transformers' (`config.json` of a CLIP). A tag is a tag even where a file or folder
            is called the same, unless a `/` leads to it, as in `./openai`.
        quickgelu: the activation, which no weights tell: True QuickGELU, False GELU. None: the one that the weights were
            trained with as far as that is written anywhere, with the tag or in the folder, else the architecture's.
    """

    model: str
    pretrained: str
    quickgelu: bool | None = None

    @property
    def local(self) -> Path | None:
        """The file or folder, where `pretrained` is no tag."""
        path = Path(self.pretrained)
        if "/" in self.pretrained or path.suffix in {".pt", ".pth", ".bin", ".safetensors"}:
            return path
        return path if path.exists() and self.pretrained not in _table().get(self.model, {}) else None

    def digest(self) -> str:
        """Of the content and of all else that the model's answers depend on.

        Raises:
            NotFetched: they are not here; a run downloads them.
            UsageError: there is no such file or tag.
        """
        content = content_digest(self._files())
        return digest({"content": content, "model": self.model, "quickgelu": self.quickgelu})

    def _files(self) -> list[Path]:
        if self.local is None:
            found = tag(self.model, self.pretrained)
            if found.file is None:
                _refuse_offline(self.model, self.pretrained, found)
                raise NotFetched(
                    f"weights '{self.pretrained}' of {self.model} are not on this machine; `slugbench run` fetches them"
                    f"{_size(self.model)}, from {found.page}, or give pretrained=FILE.",
                    fetch=partial(tag, self.model, self.pretrained, download=True),
                )
            return [Path(found.file)]
        if not self.local.exists():
            raise UsageError(f"pretrained={self.pretrained} does not exist; give a file, a folder, or a tag of open_clip.")
        if self.local.is_file():
            return [self.local]
        return sorted(p for p in self.local.iterdir() if p.suffix in {".json", ".safetensors", ".bin", ".pt", ".pth"})

    def wanted(self) -> Wanted:
        """The file, for `slugbench doctor`."""
        if self.local is not None:
            return looked_at(self.local, f"weights of {self.model}, as pretrained= says{self._gelu()}", self._counted)
        found = tag(self.model, self.pretrained)
        trained = f"trained with {'QuickGELU' if found.quick_gelu else 'GELU'}"
        fetches = "HF_HUB_OFFLINE is set: nothing" if _offline() else "`slugbench run`"
        note = (
            f"{self.model} weights '{self.pretrained}', {trained}{self._gelu()}{_size(self.model)}, "
            f"licence at {found.page}; {fetches} fetches them to here"
        )
        return Wanted(Path(found.file or found.folder), found.file is not None, note)

    def _counted(self) -> str:
        """How large they are, where they are files of our own."""
        files = self._files()
        kinds = {file.suffix for file in files}
        if self.local is not None and self.local.is_dir() and not (".json" in kinds and len(kinds) > 1):
            raise UsageError("It holds no weights beside an open_clip_config.json or config.json.")
        return f"{sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"

    def trained_with(self) -> str | None:
        """The activation that the weights were trained with, as their tag or folder says; None of a file, which does not."""
        if self.local is None:
            return "QuickGELU" if tag(self.model, self.pretrained).quick_gelu else "GELU"
        return ran_with(replace(self, quickgelu=None)) if self.local.is_dir() else None

    def _gelu(self) -> str:
        return "" if self.quickgelu is None else f", run with {'QuickGELU' if self.quickgelu else 'GELU'}"

    def load(self) -> Loaded:
        """The model in eval mode, on the CPU.

        Raises:
            UsageError: there is no such file or tag, no network to get it, or it holds weights of another architecture.
        """
        if self.local is not None and self.local.is_dir():
            return self._folder(self.local)
        if self.local is None:  # a sentence of ours if it cannot be had
            trained_with = tag(self.model, self.pretrained, download=True).quick_gelu
            return self._open_clip(self.model, self.pretrained, trained_with if self.quickgelu is None else self.quickgelu)
        _known_model(self.model)
        self._files()
        return self._open_clip(self.model, self.pretrained, self.quickgelu)

    def _folder(self, folder: Path) -> Loaded:
        if (folder / "open_clip_config.json").is_file():
            return self._open_clip(f"local-dir:{folder}", None, self.quickgelu)
        config = folder / "config.json"
        if not config.is_file():
            raise UsageError(
                f"pretrained={folder} holds neither open_clip_config.json nor config.json; give a folder as the Hugging "
                "Face hub has it, or a file of weights."
            )
        kind = json.loads(config.read_text()).get("model_type")
        if kind != "clip":
            raise UsageError(f"pretrained={folder} holds a model of type '{kind}'; of transformers' a 'clip' is read.")
        return _hugging_face(folder, self.quickgelu)

    def _open_clip(self, name: str, pretrained: str | None, quickgelu: bool | None) -> Loaded:
        import open_clip

        activation = {} if quickgelu is None else {"quick_gelu": quickgelu}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "QuickGELU mismatch")  # what is meant is said by a gate
                model = open_clip.create_model(name, pretrained=pretrained, require_pretrained=True, **activation)
            tokenize = open_clip.get_tokenizer(name)
        except Exception as error:  # unpickling alone raises a dozen kinds
            raise UsageError(self._why_not(error)) from error
        return Loaded(model.eval(), Preparation(dict(open_clip.get_model_preprocess_cfg(model))), tokenize)

    def _why_not(self, error: Exception) -> str:
        text = " ".join(str(error).split())
        if text.startswith("Error(s) in loading state_dict"):
            first = text.partition(": ")[2].partition(". ")[0]
            return (
                f"pretrained={self.pretrained} holds weights of another architecture than model={self.model} "
                f"({first[:160]}); name the architecture it was trained with, such as model=ViT-B-16."
            )
        return (
            f"pretrained={self.pretrained} cannot be read as weights of model={self.model} ({type(error).__name__}: "
            f"{text.partition('. ')[0][:160]}); give an open_clip state dict (.pt), .safetensors, or a folder of the "
            "Hugging Face hub."
        )


@cache
def ran_with(weights: Weights) -> str:
    """The activation of the model that these weights are read into."""
    return activation(weights.load().model)


def activation(model: Model) -> str:
    """`QuickGELU` or `GELU`, as a model has it."""
    return "QuickGELU" if any(type(module).__name__.startswith("QuickGELU") for module in model.modules()) else "GELU"


def _known_model(name: str) -> None:
    import open_clip

    known = open_clip.list_models()
    if name not in known:
        raise UsageError(
            f"open_clip has no model '{name}'{did_you_mean(name, known)}; `open_clip.list_models()` shows its {len(known)}."
        )


# Importing open_clip imports torch, which `plan` and `doctor` do not: it is asked in a process of its own.
_TABLE = """
import json, open_clip
tags = {name: open_clip.list_pretrained_tags_by_model(name) for name in open_clip.list_models()}
print(json.dumps({name: {tag: open_clip.get_pretrained_cfg(name, tag) for tag in tags[name]} for name in tags}))
"""
_DOWNLOAD = """
import json, sys, open_clip
from open_clip.pretrained import download_pretrained
try:
    found = {"file": download_pretrained(open_clip.get_pretrained_cfg(*sys.argv[1:]))}
except Exception as error:
    found = {"error": " ".join(str(error).split())}
print(json.dumps(found))
"""


def tag(model: str, name: str, *, download: bool = False) -> Tag:
    """What open_clip knows of a tag.

    Args:
        model: the architecture.
        name: the tag.
        download: get the file if it is not on this machine.

    Raises:
        UsageError: open_clip has no such model or tag; or the file cannot be downloaded.
    """
    known = _table()
    if model not in known:
        raise UsageError(f"open_clip has no model '{model}'{did_you_mean(model, known)}; it has {and_more(list(known))}.")
    if name not in known[model]:
        raise UsageError(
            f"open_clip has no weights '{name}' of {model}{did_you_mean(name, known[model])}; it has "
            f"{', '.join(known[model]) or 'none'}; or give a file, or a folder of the Hugging Face hub."
        )
    facts = known[model][name]
    found = Tag(_on_this_machine(facts), bool(facts.get("quick_gelu")), _source(facts))
    return found._replace(file=_downloaded(model, name, found)) if found.file is None and download else found


def _table() -> dict[str, dict[str, dict[str, Any]]]:
    """For each model of open_clip, each tag's settings."""

    def make(path: Path) -> None:
        path.write_text(json.dumps(_ask_open_clip(_TABLE)))

    path = cached("open-clip-tags", {"open_clip": version("open_clip_torch")}, make, suffix=".json")
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(path.read_text())
    return found


def _ask_open_clip(code: str, *arguments: str, shown: bool = False) -> Any:
    """What a program prints last; `shown`: what it says on standard error while it works is the user's to read."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=None if shown else subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UsageError(f"open_clip does not load: {((done.stderr or '').strip().splitlines() or ['it was killed'])[-1]}.")
    return json.loads(done.stdout.splitlines()[-1])


def _source(facts: Mapping[str, Any]) -> str:
    return str(facts.get("hf_hub") or facts.get("url"))


def _on_this_machine(facts: Mapping[str, Any]) -> str | None:
    """Where open_clip would find the file without a network."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, file = _source(facts).rpartition("/")
    if not facts.get("hf_hub"):
        by_address = Path("~/.cache/clip").expanduser() / file
        return str(by_address) if by_address.is_file() else None
    file = file or "open_clip_pytorch_model.bin"
    # which it prefers
    safe = "open_clip_model.safetensors" if file == "open_clip_pytorch_model.bin" else f"{file[:-4]}.safetensors"
    found = (try_to_load_from_cache(repository, name) for name in (safe, file))
    return next((path for path in found if isinstance(path, str)), None)


def _downloaded(model: str, name: str, known: Tag) -> str:
    _refuse_offline(model, name, known)
    print(f"fetching weights '{name}' of {model}{_size(model)}, from {known.page} to {known.folder}", flush=True)
    found = _ask_open_clip(_DOWNLOAD, model, name, shown=True)
    if "error" in found:
        first = found["error"].rpartition("Last error: ")[2].partition(". ")[0]
        reason = shorten(first, 300, placeholder=" ...").rstrip(".")
        raise UsageError(
            f"weights '{name}' of {model} are not on this machine and cannot be downloaded from {known.page} ({reason}); "
            "run this once with a network, or give pretrained=FILE."
        )
    return str(found["file"])


def _offline() -> bool:
    """Whether the environment forbids downloads, by the hub's own variable."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _refuse_offline(model: str, name: str, known: Tag) -> None:
    if _offline():
        raise UsageError(
            f"weights '{name}' of {model} are not in {known.folder}, and HF_HUB_OFFLINE is set, so that they are not "
            f"downloaded from {known.page}; unset it to have `slugbench run` fetch them, or give pretrained=FILE."
        )


# ---------------------------------------------------------------- models of transformers


def _hugging_face(folder: Path, quickgelu: bool | None) -> Loaded:
    """A CLIP of transformers, under its own parameter names."""
    import open_clip
    from transformers import CLIPConfig

    config: Any = CLIPConfig.from_pretrained(folder, local_files_only=True)
    if quickgelu is not None:
        for tower in (config.text_config, config.vision_config):
            tower.hidden_act = "quick_gelu" if quickgelu else "gelu"
    try:
        model, facts = _hugging_face_class().from_pretrained(
            folder, config=config, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # of safetensors, torch, transformers
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"pretrained={folder} cannot be read as a CLIP of transformers ({reason}).") from error
    if missing := sorted(facts["missing_keys"]):
        raise UsageError(
            f"pretrained={folder}: its weights miss {missing[0]} and {len(missing) - 1} other tensors that its config.json "
            "speaks of; they are of another architecture."
        )
    settings = folder / "preprocessor_config.json"
    given = json.loads(settings.read_text()) if settings.is_file() else {}
    prepared = {
        "size": config.vision_config.image_size,
        "mean": given.get("image_mean", open_clip.OPENAI_DATASET_MEAN),
        "std": given.get("image_std", open_clip.OPENAI_DATASET_STD),
    }
    # of CLIP's own vocabulary; transformers pads with another token, but after the end of text, where nothing looks
    tokenize = open_clip.SimpleTokenizer(context_length=config.text_config.max_position_embeddings)
    return Loaded(model.eval(), Preparation(prepared), tokenize)


@cache
def _hugging_face_class() -> Any:
    from torch.nn.functional import normalize as unit
    from transformers import CLIPModel

    class HuggingFaceClip(CLIPModel):
        """transformers' CLIP, asked as open_clip's are."""

        def encode_image(self, image: torch.Tensor, normalize: bool = False) -> torch.Tensor:
            embedded = self.visual_projection(self.vision_model(pixel_values=image).pooler_output)
            return unit(embedded, dim=-1) if normalize else embedded

        def encode_text(self, text: torch.Tensor, normalize: bool = False) -> torch.Tensor:
            embedded = self.text_projection(self.text_model(input_ids=text).pooler_output)
            return unit(embedded, dim=-1) if normalize else embedded

    return HuggingFaceClip


VISION = ("visual.", "vision_model.", "visual_projection.")
NEITHER = ("logit_scale", "logit_bias")


def towers(model: Model) -> dict[str, list[str]]:
    """Parameter names of `vision` and `text`; what belongs to neither tower is listed as `temperature`."""
    found: dict[str, list[str]] = {"vision": [], "text": [], "temperature": []}
    for name, _ in model.named_parameters():
        found["vision" if name.startswith(VISION) else "temperature" if name in NEITHER else "text"].append(name)
    return found


# ---------------------------------------------------------------- what the original makes of pictures and prompts


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a picture may be of: each candidate in every template."""

    prompts: Sequence[Sequence[str]]
    """C x M."""
    tokenize: Callable[[Sequence[str]], torch.Tensor]

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def tokens(self) -> torch.Tensor:
        """(C, M, T)"""
        flat = self.tokenize([prompt for prompts in self.prompts for prompt in prompts])
        return flat.view(len(self), -1, flat.shape[-1])

    @cached_property
    def key(self) -> str:
        """Digest of all prompts."""
        return digest(json.dumps([list(prompts) for prompts in self.prompts]))


class Edited(NamedTuple):
    """Which towers of a model differ from the original's."""

    vision: bool
    text: bool


class Original:
    """The unedited model, and what its towers made of prompts and pictures, which the cache keeps under its digest."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        model, self.preparation, self.tokenize = weights.load()
        self.digest, self.scale = weights.digest(), _scale(model)
        self._kept: dict[Path, torch.Tensor] = {}
        self._towers = {tower: names for tower, names in towers(model).items() if tower in ("vision", "text")}
        self._sums = self._checksums(model)
        self._spare: Clip | None = model

    def copy(self) -> Clip:
        """A model to edit: the one that was read, as long as nobody has it, then another; two at a time take twice the
        memory, and methods of a large model have little to spare."""
        model, self._spare = self._spare, None
        return self._read() if model is None else model

    def _read(self) -> Clip:
        """The same model anew."""
        with of_its_data():
            model = self.weights.load().model
        if self._checksums(model) != self._sums:
            raise MissingData(
                f"pretrained={self.weights.pretrained} has changed while it was in use; give a file that stays, and run "
                "the same command again."
            )
        return model

    def edited(self, model: Model) -> Edited:
        """Told by checksums, for which no second copy of the model has to be where this one is."""
        sums = self._checksums(model)
        return Edited(*(sums[tower] != self._sums[tower] for tower in Edited._fields))

    def _checksums(self, model: Model) -> dict[str, int]:
        weights = dict(model.named_parameters())
        return {
            tower: checksum([weights[name] for name in names if name in weights]) for tower, names in self._towers.items()
        }

    def texts(self, model: Clip, candidates: Candidates, edited: Edited) -> torch.Tensor:
        """(C, D) unit vectors of the candidates, on the model's device; without gradients."""
        device = next(model.parameters()).device
        return embed_texts(model, candidates) if edited.text else self.kept_texts(candidates).to(device)

    def images(self, model: Clip, pictures: Pictures, rows: np.ndarray, edited: Edited) -> torch.Tensor:
        """(N, D) unit vectors of the pictures at `rows`, on the model's device; without gradients."""
        import torch

        # of a model not edited at all they are computed: a method may want to see what its blocks give, to spare itself
        # the blocks before those it will edit
        if edited.text and not edited.vision:
            return self.kept_images(pictures)[torch.from_numpy(rows)].to(next(model.parameters()).device)
        return embed_images(model, pictures, rows)

    def kept_texts(self, candidates: Candidates) -> torch.Tensor:
        """(C, D) unit vectors of the candidates by the original, on the CPU."""
        key = {"weights": self.digest, "prompts": candidates.key}
        return self._keep("clip-texts", key, lambda model: embed_texts(model, candidates))

    def kept_images(self, pictures: Pictures) -> torch.Tensor:
        """(N, D) unit vectors of all pictures by the original, on the CPU."""
        key = {"weights": self.digest, **pictures.key}
        return self._keep("clip-images", key, lambda model: embed_images(model, pictures, np.arange(len(pictures))))

    def _keep(self, name: str, key: Mapping[str, Any], embed: Callable[[Clip], torch.Tensor]) -> torch.Tensor:
        import torch

        def make(path: Path) -> None:
            device = "cuda" if torch.cuda.is_available() else "cpu"  # made once for all: on what is fastest
            model = self._read() if self._spare is None else self._spare
            np.save(path, embed(model.to(device)).float().cpu().numpy())
            model.cpu()  # as it was
            if device == "cuda":
                torch.cuda.empty_cache()  # or it would count as what a method took

        path = cached(name, key, make, suffix=".npy")
        if path not in self._kept:
            self._kept[path] = torch.from_numpy(np.load(path))
        return self._kept[path]


@cache
def original(weights: Weights) -> Original:
    """One for all requests of a process."""
    return Original(weights)


PIECE = 2**20
"""Numbers summed at a time: 8 MB for their factors, and as much for each of two intermediate results."""


def checksum(tensors: Sequence[torch.Tensor]) -> int:
    """A number that says whether weights are the same, bit for bit, whatever device they are on.

    Sums of the bits, read as integers, times fixed random odd factors, modulo 2^64: two different lists have the same one
    by a chance below one in a billion.
    """
    import torch

    found = []
    for tensor in tensors:
        bits = tensor.detach().contiguous().flatten().view(torch.uint8 if tensor.element_size() % 4 else torch.int32)
        found += [(part.long() * _factors(str(part.device))[: len(part)]).sum() for part in bits.split(PIECE)]
    return int(digest(str(torch.stack(found).tolist() if found else []))[:15], 16)


@cache
def _factors(device: str) -> torch.Tensor:
    import torch

    generator = torch.Generator().manual_seed(0)
    return (2 * torch.randint(-(2**62), 2**62, (PIECE,), generator=generator) + 1).to(device)


def embed_texts(model: Clip, candidates: Candidates) -> torch.Tensor:
    """(C, D) unit vectors, averaged over templates, on the model's device; without gradients."""
    import torch

    tokens_CMT, device = candidates.tokens, next(model.parameters()).device
    with torch.no_grad():
        parts = tokens_CMT.split(max(1, AT_A_TIME // tokens_CMT.shape[1]))
        return torch.cat([embed_candidates(model, part.to(device)) for part in parts])


def embed_images(model: Clip, pictures: Pictures, rows: np.ndarray) -> torch.Tensor:
    """(N, D) unit vectors, on the model's device; without gradients."""
    import torch

    device, parts = next(model.parameters()).device, range(0, len(rows), AT_A_TIME)
    with torch.no_grad():
        batches = (pictures.batch(rows[start : start + AT_A_TIME]) for start in parts)
        return torch.cat([model.encode_image(batch.to(device), normalize=True) for batch in batches])


# ---------------------------------------------------------------- zero-shot answers


def zero_shot(
    image_ND: torch.Tensor, text_CD: torch.Tensor, label_N: np.ndarray, *, scale: float, blocked: Sequence[int] = ()
) -> Answers:
    """What a model says is to be seen, out of C candidates.

    Args:
        image_ND: unit vectors.
        text_CD: unit vectors.
        label_N: the true candidates.
        scale: of the cosines.
        blocked: candidates that are never answered.

    Returns:
        One row a picture: `predicted` (-1: nothing that is a number), `rank` (a tie is no answer), `score` (log p / (1 - p)
        of the true candidate), `cosine` to it, and the entropies of `bench.entropies`.
    """
    parts = [
        _zero_shot(image_ND[start : start + AT_A_TIME], text_CD, label_N[start : start + AT_A_TIME], scale, blocked)
        for start in range(0, len(label_N), AT_A_TIME)  # in double precision ten thousand names are 80 kB a picture
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _zero_shot(
    image_ND: torch.Tensor, text_CD: torch.Tensor, label_N: np.ndarray, scale: float, blocked: Sequence[int]
) -> Answers:
    import torch

    label_N1 = torch.as_tensor(label_N)[:, None]
    cosine_NC = (image_ND @ text_CD.T).double().cpu()
    void_N = ~cosine_NC.isfinite().all(1)  # finite weights can still overflow, and NaN would rank as the best answer
    cosine_NC = cosine_NC.masked_fill(void_N[:, None], 0)
    logits_NC = cosine_NC * scale
    logits_NC[:, list(blocked)] = NEVER
    true_N1 = logits_NC.gather(1, label_N1)
    others_NC = logits_NC.scatter(1, label_N1, -torch.inf)
    columns = {
        "predicted": logits_NC.argmax(1).masked_fill(void_N, -1),
        "rank": (others_NC >= true_N1).sum(1).masked_fill(void_N, logits_NC.shape[1] - 1),
        "score": (true_N1[:, 0] - others_NC.logsumexp(1)).masked_fill(void_N, NEVER),
        "cosine": cosine_NC.gather(1, label_N1)[:, 0].masked_fill(void_N, -1),
        **entropies(logits_NC, label_N1[:, 0]),
    }
    return {name: column.numpy() for name, column in columns.items()}


@dataclass(frozen=True, eq=False)
class Quiz:
    """Pictures, the candidate that each shows, and all that it is told from."""

    original: Original
    candidates: Candidates
    shown: Shown
    about_targets: bool = True
    """Whether the candidates are those of the request, of which a masked model does not answer some."""

    def __len__(self) -> int:
        return len(self.shown.rows)

    @cached_property
    def pictures(self) -> Pictures:
        """Of the whole gallery, decoded once for all."""
        return self.shown.gallery.pictures(self.original.preparation, keep=True)

    def answers(self, model: Clip, edited: Edited, rows: np.ndarray | None = None) -> Answers:
        """A model's answers, to all or to some, as of `zero_shot`."""
        rows = np.arange(len(self)) if rows is None else rows
        images = self.original.images(model, self.pictures, self.shown.rows[rows], edited)
        texts = self.original.texts(model, self.candidates, edited)
        blocked = getattr(model, "blocked", ()) if self.about_targets else ()
        return zero_shot(images, texts, self.shown.label[rows], scale=_scale(model), blocked=blocked)

    def originals(self) -> Answers:
        """The original's answers to all, which run no model once they are known."""
        images = self.original.kept_images(self.pictures)[self.shown.rows]
        texts = self.original.kept_texts(self.candidates)
        return zero_shot(images, texts, self.shown.label, scale=self.original.scale)

    def features(self, model: Clip, edited: Edited, rows: np.ndarray) -> np.ndarray:
        """(n, D) unit embeddings."""
        images = self.original.images(model, self.pictures, self.shown.rows[rows], edited)
        return images.float().cpu().numpy()


def _scale(model: Clip) -> float:
    return float(temperature(model).detach())


@dataclass(frozen=True, eq=False)
class Exam:
    """All questions of a trial: of one quiz after the other."""

    quizzes: Sequence[Quiz]

    def ask(self, model: Clip, rows: np.ndarray | None = None) -> Answers:
        """A model's answers to all questions, or to those at `rows`."""
        edited = self.quizzes[0].original.edited(model)
        return self._gathered(rows, lambda quiz, mine: quiz.answers(model, edited, mine))

    def original(self) -> Answers:
        """The original's answers."""
        found = [quiz.originals() for quiz in self.quizzes]
        return {name: np.concatenate([answers[name] for answers in found]) for name in found[0]}

    def features(self, model: Clip, rows: np.ndarray) -> np.ndarray:
        """(n, D) unit embeddings of the pictures of those questions."""
        edited = self.quizzes[0].original.edited(model)
        return self._gathered(rows, lambda quiz, mine: {"image": quiz.features(model, edited, mine)})["image"]

    def _gathered(self, rows: np.ndarray | None, part: Callable[[Quiz, np.ndarray], Answers]) -> Answers:
        ends = np.cumsum([len(quiz) for quiz in self.quizzes])
        rows = np.arange(ends[-1]) if rows is None else np.asarray(rows)
        of = np.searchsorted(ends, rows, side="right")
        found = [
            (np.flatnonzero(of == number), part(quiz, rows[of == number] - (ends[number] - len(quiz))))
            for number, quiz in enumerate(self.quizzes)
            if (of == number).any()
        ]
        order = np.argsort(np.concatenate([places for places, _ in found]), kind="stable")
        return {name: np.concatenate([columns[name] for _, columns in found])[order] for name in found[0][1]}


# ---------------------------------------------------------------- objective


@dataclass
class Pairs(Captions):
    """`Objective` of a CLIP over pictures and captions; batches hold `image`, `text`, `label`.

    A label at or beyond the number of candidates is of a pair whose caption names none of them, one label a pair.
    """

    original: Original
    candidates: Candidates
    names: Sequence[str]
    """Of the candidates."""
    targets: tuple[int, ...]
    """Candidates to be forgotten: nothing is relabelled to one of them."""
    kind: str = "clip"

    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The same pictures under the name of a random other, retained candidate."""
        import torch

        kept = torch.tensor([i for i in range(len(self.candidates)) if i not in self.targets])
        drawn = other_labels(batch["label"].cpu(), kept, generator)
        tokens_CMT = self.candidates.tokens
        text = tokens_CMT[drawn, torch.randint(tokens_CMT.shape[1], (len(drawn),), generator=generator)]
        return {**batch, "label": drawn.to(batch["label"].device), "text": text.to(batch["text"].device)}

    def logits(self, model: Clip, batch: Batch) -> torch.Tensor:
        """(B, C) zero-shot scores. Gradients reach the vision tower and the temperature alone: for those of the text
        tower all ten thousand prompts had to be held at once."""
        import torch

        text_CD = self.original.texts(model, self.candidates, self.original.edited(model))
        logits_BC = temperature(model) * model.encode_image(batch["image"], normalize=True) @ text_CD.T
        blocked = torch.tensor(getattr(model, "blocked", []), dtype=torch.long, device=logits_BC.device)
        return logits_BC.index_fill(1, blocked, NEVER)

    def weights(self, model: Clip) -> dict[str, list[str]]:
        """`vision` and `text` towers, and `temperature`, which belongs to neither."""
        return towers(model)

    def masked(self, model: Clip, targets: Sequence[str]) -> Clip:
        """A copy that never answers with `targets`, by a filter on its output: no weight is changed."""
        copied = copy.deepcopy(model)
        object.__setattr__(copied, "blocked", [list(self.names).index(target) for target in targets])
        return copied


# ---------------------------------------------------------------- trials

EPOCHS, BATCH = 10, 32  # of every baseline in the comparison of Cai et al., 2025
EVALUATIONS = 400
"""As in `identities`: enough for SLUG's ten evaluations in each of the 36 layers that its authors' log shows."""


@dataclass(frozen=True, eq=False)
class Setting:
    """One request to one model."""

    original: Original
    candidates: Candidates
    names: Sequence[str]
    """Of the candidates."""
    dealt: Dealt
    utility: Candidates | None = None
    """What the pictures of the utility task are told from."""

    @property
    def exam(self) -> Exam:
        """All questions, in the order of `Dealt.questions`."""
        quizzes = [self._quiz(self.dealt.test.forget), self._quiz(self.dealt.test.retain)]
        if self.dealt.utility is not None and self.utility is not None:
            quizzes.append(Quiz(self.original, self.utility, self.dealt.utility, about_targets=False))
        return Exam(quizzes)

    def trial(self, forget: Split | None = None, retain: Split | None = None) -> Trial:
        """The trial; methods train on the splits given, or else on the pictures dealt for it."""
        dealt, exam, objective = self.dealt, self.exam, self._objective()
        forget = forget or self.split(dealt.train.forget, keep=False)
        retain = retain or self.split(dealt.train.retain, keep=False)
        searched = self._quiz(dealt.validation.forget), self._quiz(dealt.validation.retain)
        known = exam.original()  # before its model is given away: where nothing is cached yet it is asked
        n_train = len(forget) + len(retain)
        request = Request(
            model=self.original.copy(),
            targets=tuple(self.names[target] for target in dealt.targets),
            forget=forget,
            retain=retain,
            validation=Validation(*(self.split(shown, keep=True) for shown in dealt.validation)),
            objective=objective,
            validate=partial(validate, *searched),
            budget=Budget(max_steps=EPOCHS * -(-n_train // BATCH), max_reads=EPOCHS * n_train, max_evals=EVALUATIONS),
            goal=1 / len(self.candidates),
        )
        return Trial(
            request=request,
            questions=dealt.questions(len(self.candidates)),
            answer=exam.ask,
            original=known,
            oracles=(),
            oracle_model=no_oracle,
            n_classes=len(self.candidates),
            joint=len(dealt.targets) > 1,
            original_model=self.original.copy,
            features=exam.features,
        )

    def gates(self) -> list[Gate]:
        """The original knows the targets.

        All pictures that are decoded once for all are so now: what is wrong with them comes to light before any method runs.

        Raises:
            MissingData: some cannot be decoded; all that cannot are named.
        """
        asked = (*self.dealt.test, *self.dealt.validation, self.dealt.utility)
        for shown in filter(None, asked):
            shown.gallery.pictures(self.original.preparation, keep=True).kept()
        quiz = self._quiz(self.dealt.test.forget)
        names = ", ".join(self.names[target] for target in self.dealt.targets)
        return [at_least(f"the original knows {names}: test top-1", (quiz.originals()["rank"] == 0).mean(), LEAST_KNOWN)]

    def split(self, shown: Shown, *, keep: bool) -> PictureSplit:
        """Pictures each with a prompt of what it shows, the templates in turn.

        Args:
            shown: the pictures.
            keep: decode them once for all, rather than batch by batch.
        """
        import torch

        label, index = (torch.from_numpy(column.astype(np.int64)) for column in (shown.label, shown.index))
        tokens_CMT = self.candidates.tokens
        columns = {"text": tokens_CMT[label, index % tokens_CMT.shape[1]], "label": label, "index": index}
        members = {self.names[i]: torch.nonzero(label == i)[:, 0] for i in label.unique().tolist()}
        return PictureSplit(shown.gallery.pictures(self.original.preparation, keep=keep), shown.rows, columns, members)

    def _quiz(self, shown: Shown) -> Quiz:
        return Quiz(self.original, self.candidates, shown)

    def _objective(self) -> Pairs:
        return Pairs(self.original, self.candidates, self.names, self.dealt.targets)


def no_oracle(number: int) -> Model:
    """In the place of an oracle."""
    raise UsageError(f"there is no oracle number {number}: nobody retrained such a model without the target.")


def validate(forget: Quiz, kept: Quiz, model: Model, *, retain: bool = True) -> Scores:
    """Accuracies on validation pictures of the targets and, unless `retain` is off, of the others."""
    edited = forget.original.edited(model)
    right = forget.answers(model, edited)["rank"] == 0
    p = float(right.mean())
    retained = float((kept.answers(model, edited)["rank"] == 0).mean()) if retain else math.nan
    return Scores(p, retained, math.sqrt(p * (1 - p) / len(right)))


LEAST_KNOWN = 0.1
"""Of a target by the original. Below it next to nothing is there to be forgotten, and a search has nothing to go by."""


def activation_gate(weights: Weights) -> Gate:
    """Says which activation ran: open_clip's plain names have GELU, also for weights that were trained with QuickGELU.

    Its value is 1 where that is the one of training, 0 where it is not, and None where nobody knows.
    """
    ran, trained = ran_with(weights), weights.trained_with()
    value = None if trained is None else float(trained == ran)
    said = f"trained with {trained}" if trained else f"no file of weights says what it was trained with{_choice(weights)}"
    return Gate("activation is the one of training", value, "any; that of Cai et al. is 0", True, f"runs with {ran}; {said}")


def _choice(weights: Weights) -> str:
    """How to say it oneself; nothing where that was done, or where open_clip has no such weights with QuickGELU."""
    known = _table().get(weights.model, {})
    quick = [name for name, facts in known.items() if facts.get("quick_gelu")]
    if weights.quickgelu is not None or weights.model.endswith("-quickgelu") or not quick:
        return ""
    return (
        f": quickgelu=true if it is a copy of open_clip's {and_more(quick)}, or of others trained with QuickGELU, else "
        "quickgelu=false"
    )
