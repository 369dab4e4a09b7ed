"""Makes docs/results/costs-*.md: what methods cost at the sizes of real models, beside what the hardware could do.

    python docs/costs.py clip --models ViT-B-32,ViT-L-14,EVA01-g-14 --device cuda --out docs/results/costs-clip.md
    python docs/costs.py sd --device cuda --out docs/results/costs-sd.md

Weights are random and nothing is downloaded: how long a step takes, and how much memory, does not depend on what the
weights know. This file is a plug-in with a task for each kind of model and a metric, so that the harness runs every method
in a process of its own and its meter does the measuring. A finished line is in the CSV beside the document before the next
one starts, and the same command again does only what is missing; delete a line that failed to try it again. With a GPU,
`--device cuda` is all there is to it: models, pictures and the parts of a pipeline are then there from the start.
`pytest -m gpu tests/test_costs.py` tries that at toy size.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import PositiveInt

from slugbench.bench import (
    Batch,
    Budget,
    Cost,
    Listed,
    Model,
    Objective,
    Outcome,
    Request,
    Scores,
    TensorSplit,
    TextToImage,
    Trial,
    UsageError,
    Validation,
    Value,
    digest,
    file_digest,
    metric,
    task,
)
from slugbench.bench.isolate import Limits
from slugbench.bench.plan import Cell, Suite, expand, preloads
from slugbench.bench.provenance import KEYED, hardware, keyed_versions, shared_form
from slugbench.bench.registry import REGISTRY, load, parse_spec, parse_specs
from slugbench.bench.runner import Finished, Job, Settings, run
from slugbench.methods._common import differentiable
from slugbench.reports.markdown import table
from slugbench.tasks._canvas_model import prompts, tokenizer
from slugbench.tasks._canvas_recipe import cells as grid
from slugbench.tasks._canvas_scenes import OBJECTS, STYLES
from slugbench.tasks._diffusion import Contrast, Denoising, editable, generate, with_model
from slugbench.tasks._open_clip import Candidates, Pairs, embed_texts

if TYPE_CHECKING:
    import torch

UNBOUNDED = 10**6
NEVER_REACHED = -1.0
"""The forget accuracy to aim at. No model has it, so that methods which stop when the target is forgotten take all of
their steps, whatever the weights."""
Device = Literal["cpu", "cuda"]
Precision = Literal["highest", "high"]
"""How float32 matrices and convolutions are multiplied: as such, or with TF32. By torch's default, which the harness leaves
alone, matrices are not and convolutions are; the floor needs one rate for both."""


# ---------------------------------------------------------------- random data

APART = 997
"""Numbers between the beginnings of two pictures on a tape of noise: it divides no row of pixels."""


def pictures(count: int, side: int, seed: int, device: str) -> torch.Tensor:
    """(count, 3, side, side) of noise, from -1 to 1, all different, in the memory of few: windows on one tape.

    A batch is gathered where the model runs, so that no method pays for making, decoding or moving pictures.
    """
    import torch

    noise = torch.Generator().manual_seed(seed)
    tape = torch.randn(3 * side**2 + APART * (count - 1), generator=noise).clamp_(-1, 1).to(device)
    return tape.as_strided((count, 3, side, side), (APART, side**2, side, 1))


@dataclass(frozen=True)
class _Sized:
    """What the two tasks share: one request, no data of their own."""

    model: str
    forget: PositiveInt
    retain: PositiveInt
    batch: PositiveInt = 64
    """Pictures that run at a time where it is not the method that says how many."""
    steps: PositiveInt | None = None
    """Optimiser steps at most; None: as many as a method has by default."""
    device: Device = "cpu"
    precision: Precision = "highest"

    base_seeds: ClassVar[tuple[int, ...]] = (0,)

    def requests(self) -> tuple[Listed, ...]:
        """The only one."""
        return (Listed("one", ("0",), "test"),)

    def fingerprint(self, request_id: str, base_seed: int) -> str:
        """Digest of the architecture; the rest is parameters."""
        return file_digest(Path(self.model)) if self.model.endswith(".json") else digest(self.model)

    def _budget(self) -> Budget:
        return Budget(self.steps or UNBOUNDED, max_reads=1000 * UNBOUNDED, max_evals=UNBOUNDED)

    def _prepared(self) -> None:
        import torch

        torch.set_float32_matmul_precision(self.precision)
        torch.backends.cudnn.allow_tf32 = self.precision == "high"
        torch.default_generator.manual_seed(0)


def _no_oracle(number: int) -> Model:
    raise UsageError(f"there is no oracle number {number}: nothing was trained here.")


# ---------------------------------------------------------------- CLIP


@task("costs_clip")
@dataclass(frozen=True)
class ClipSized(_Sized):
    """One of so many names, by an open_clip model of random weights.

    Args:
        model: an architecture of open_clip, or the JSON file of one.
        forget: pairs of picture and caption of the name to be forgotten.
        retain: pairs of all others.
        names: candidates of the zero-shot classifier.
        kept_forget: validation pictures of the name to be forgotten.
        kept_retain: of the others.
    """

    model: str = "ViT-B-32"
    forget: PositiveInt = 1000
    retain: PositiveInt = 8000
    names: PositiveInt = 100
    kept_forget: PositiveInt = 10
    kept_retain: PositiveInt = 500

    preload: ClassVar[tuple[str, ...]] = ("open_clip", "timm")

    def build(self, request_id: str, base_seed: int) -> Trial:
        """The trial; labels of validation are what the model itself answers, so that at first it is right."""
        import torch

        self._prepared()
        model = _open_clip(self.model).to(self.device).eval()
        text_CT = _texts(self.names, model.context_length, model.vocab_size)
        candidates = Candidates([[str(name)] for name in range(self.names)], lambda texts: text_CT)
        others = torch.arange(self.retain) % (self.names - 1) + 1

        def split(seed: int, label: torch.Tensor) -> TensorSplit:
            image = pictures(len(label), model.visual.image_size[0], seed, self.device)
            columns = {"image": image, "text": text_CT[label].to(self.device), "label": label.to(self.device)}
            return TensorSplit(columns, {str(i): torch.nonzero(label == i)[:, 0] for i in label.unique().tolist()})

        def own(seed: int, count: int) -> TensorSplit:
            found = split(seed, torch.zeros(count, dtype=torch.long))
            found.tensors["label"] = answers(model, candidates, found, self.batch)
            return found

        names = tuple(map(str, range(self.names)))
        validation = Validation(own(3, self.kept_forget), own(4, self.kept_retain))

        return Trial(
            request=Request(
                model=model,
                targets=("0",),
                forget=split(1, torch.zeros(self.forget, dtype=torch.long)),
                retain=split(2, others),
                validation=validation,
                objective=Pairs(_Recomputed(), candidates, names, (0,)),
                validate=partial(_zero_shot, validation, candidates, self.batch),
                budget=self._budget(),
                goal=NEVER_REACHED,
            ),
            questions={},
            answer=lambda model, rows=None: {},
            original={},
            oracles=(),
            oracle_model=_no_oracle,
            n_classes=self.names,
            joint=False,
        )


def _open_clip(name: str) -> Any:
    import open_clip

    if name.endswith(".json"):
        open_clip.add_model_config(name)
        name = Path(name).stem
    return open_clip.create_model(name, pretrained=None)


def _texts(count: int, length: int, vocabulary: int) -> torch.Tensor:
    """(count, length) tokens: start, some words, the end, which is the largest number, and padding."""
    import torch

    text, last = torch.zeros(count, length, dtype=torch.long), min(8, length - 1)
    text[:, :last] = torch.randint(1, vocabulary - 2, (count, last), generator=torch.Generator().manual_seed(0))
    text[:, 0], text[:, last] = vocabulary - 2, vocabulary - 1
    return text


class _Recomputed:
    """In the place of `tasks._open_clip.Original`, which has weights' digests and a cache: prompts are embedded anew."""

    def edited(self, model: Model) -> None:
        """Not asked."""

    def texts(self, model: Model, candidates: Candidates, edited: None) -> torch.Tensor:
        """(C, D) unit vectors, without gradients."""
        return embed_texts(model, candidates)


def answers(model: Any, candidates: Candidates, split: TensorSplit, batch: int) -> torch.Tensor:
    """(N,) which candidate a model says each picture shows."""
    import torch

    with torch.no_grad():
        text_CD = embed_texts(model, candidates)
        found = (model.encode_image(part["image"], normalize=True) @ text_CD.T for part in split.batches(batch))
        return torch.cat([cosine_BC.argmax(1) for cosine_BC in found])


def _zero_shot(validation: Validation, candidates: Candidates, batch: int, model: Model, *, retain: bool = True) -> Scores:
    def accuracy(split: Any) -> float:
        return (answers(model, candidates, split, batch) == split.tensors["label"]).float().mean().item()

    p = accuracy(validation.forget)
    kept = accuracy(validation.retain) if retain else math.nan
    return Scores(p, kept, math.sqrt(p * (1 - p) / len(validation.forget)))


# ---------------------------------------------------------------- Stable Diffusion

SD_15: Mapping[str, Mapping[str, Any]] = {
    "unet": {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,  # diffusers' name for the number of heads
    },
    "vae": {
        "sample_size": 512,
        "latent_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "norm_num_groups": 32,
        "scaling_factor": 0.18215,
    },
    "text": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "projection_dim": 768,
    },
    "vision": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 768,
    },
}
"""What diffusers and transformers are to build; `vision` is the tower beside the text encoder in its CLIP, ViT-L/14."""
SD_NAME = "SD-1.5"
GUIDANCE = 9.0  # UnlearnCanvas's
TARGET = 3
"""The style to be forgotten, of those of `canvas`: prompts are its grid's, and of as many tokens as the text encoder has."""


@task("costs_sd")
@dataclass(frozen=True)
class DiffusionSized(_Sized):
    """A style, by a Stable Diffusion pipeline of random weights.

    Args:
        model: `SD-1.5`, or a JSON file of the form of `SD_15`.
        forget: pictures of the style to be forgotten: UnlearnCanvas has 20 of each of 20 objects.
        retain: pictures of all others.
        drawn: pictures that validation draws of the style to be forgotten, and of others as many: three in the search of
            Cai et al. for UnlearnCanvas.
        drawing: steps of the sampler in that.
    """

    model: str = SD_NAME
    forget: PositiveInt = 400
    retain: PositiveInt = 8000
    batch: PositiveInt = 4
    drawn: PositiveInt = 3
    drawing: PositiveInt = 20

    preload: ClassVar[tuple[str, ...]] = ("diffusers", "transformers")

    def build(self, request_id: str, base_seed: int) -> Trial:
        """The trial; whether a picture that the model draws shows a style is told by the CLIP."""
        import torch

        self._prepared()
        config = SD_15 if self.model == SD_NAME else json.loads(Path(self.model).read_text())
        made = _stable_diffusion(config, self.device)
        words = made.words
        cell_of = {"forget": torch.arange(self.forget) % len(OBJECTS) + TARGET * len(OBJECTS)}
        others = torch.tensor([cell for cell in range(len(STYLES) * len(OBJECTS)) if cell // len(OBJECTS) != TARGET])
        cell_of["retain"] = others[torch.arange(self.retain) % len(others)]
        texts = words(prompts(*grid()))

        def split(seed: int, cell: torch.Tensor) -> TensorSplit:
            columns = {"text": texts[cell], "label": cell // len(OBJECTS), "cell": cell}
            columns = {name: column.to(self.device) for name, column in columns.items()}
            image = pictures(len(cell), config["vae"]["sample_size"], seed, self.device)
            return TensorSplit({"image": image, **columns}, {STYLES[TARGET]: torch.arange(len(cell))})

        forget, retain = split(1, cell_of["forget"]), split(2, cell_of["retain"])
        model, objective = editable(made.pipeline), _denoising(made)
        with torch.no_grad():
            named = objective.contrast.encode(model, {"text": words(STYLES).to(self.device)}, "text")
        shown = Shown(made.pipeline, objective.contrast, named, self.drawn, self.drawing, self.batch)
        return Trial(
            request=Request(
                model=model,
                targets=(STYLES[TARGET],),
                forget=forget,
                retain=retain,
                validation=Validation(forget, retain),
                objective=objective,
                validate=shown.validate,
                budget=self._budget(),
                goal=NEVER_REACHED,
            ),
            questions={},
            answer=lambda model, rows=None: {},
            original={},
            oracles=(),
            oracle_model=_no_oracle,
            n_classes=len(STYLES),
            joint=False,
        )


class Parts(NamedTuple):
    """A pipeline, the CLIP whose text encoder it has, and the tokens of texts."""

    pipeline: Any
    clip: Any
    words: Any
    """texts -> (N, T)"""


def _stable_diffusion(config: Mapping[str, Mapping[str, Any]], device: str) -> Parts:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPConfig, CLIPModel

    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}  # of the tokenizer of `canvas`
    text = {**config["text"], "hidden_act": "quick_gelu", **ends}
    vision = {**config["vision"], "hidden_act": "quick_gelu"}
    width = config["text"]["projection_dim"]
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)).eval().requires_grad_(False)
    read = copy.deepcopy(tokenizer())
    read.model_max_length = config["text"]["max_position_embeddings"]
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(**config["vae"]).eval().requires_grad_(False),
        text_encoder=clip.text_model,
        tokenizer=read,
        unet=UNet2DConditionModel(**config["unet"]).eval(),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(device)

    def words(texts: Sequence[str]) -> torch.Tensor:
        found = read(list(texts), padding="max_length", truncation=True, return_tensors="pt")
        return found.input_ids

    return Parts(pipeline, clip.to(device), words)


def _denoising(made: Parts) -> Denoising:
    import torch

    style, thing = grid()
    columns = [made.words(prompts(np.full_like(style, number), thing)) for number in range(len(STYLES))]
    candidates_KCT = torch.stack(columns, dim=1)
    kept = torch.tensor([number for number in range(len(STYLES)) if number != TARGET])
    names = (*STYLES, *OBJECTS)
    return Denoising(
        made.pipeline.vae,
        made.pipeline.scheduler,
        made.words([""]),
        candidates_KCT,
        kept,
        {STYLES[TARGET]: TARGET},
        dict(zip(names, made.words(names), strict=True)),
        _Shrunk(made.clip, candidates_KCT, kept),
    )


class _Shrunk(Contrast):
    """The CLIP's objective over pictures that are larger than it looks at."""

    def encode(self, model: Model, batch: Batch, tower: str) -> torch.Tensor:
        """(B, D) unit embeddings."""
        from torch.nn.functional import interpolate

        if tower == "vision":
            side = self.clip.config.vision_config.image_size
            batch = {"image": interpolate(batch["image"], size=(side, side), mode="bilinear", antialias=True)}
        return super().encode(model, batch, tower)


@dataclass(frozen=True)
class Shown:
    """Draws pictures and asks the CLIP which style they show."""

    pipeline: Any
    contrast: Any
    named_CD: Any
    drawn: int
    drawing: int
    batch: int

    def validate(self, model: Model, *, retain: bool = True) -> Scores:
        """As `Validate`: with `retain`, as many pictures of other styles are drawn."""
        count = self.drawn
        style = np.concatenate([np.full(count, TARGET), np.arange(count) % TARGET] if retain else [np.full(count, TARGET)])
        wanted = prompts(style, np.arange(len(style)) % len(OBJECTS))
        right = np.concatenate([*self._styles(model, wanted)]) == style
        p = float(right[:count].mean())
        kept = float(right[count:].mean()) if retain else math.nan
        return Scores(p, kept, math.sqrt(p * (1 - p) / count))

    def _styles(self, model: Model, wanted: Sequence[str]) -> Any:
        import torch

        pipeline = with_model(self.pipeline, model)
        drawn = generate(pipeline, wanted, range(len(wanted)), steps=self.drawing, guidance=GUIDANCE, batch=self.batch)
        with torch.no_grad():
            for image in drawn:
                found = self.contrast.encode(model, {"image": image * 2 - 1}, "vision")
                yield (found @ self.named_CD.T).argmax(1).cpu().numpy()


# ---------------------------------------------------------------- the floor


@metric("costs_floor")
@dataclass(frozen=True)
class Floor:
    """What the samples that a method read cost at least: floating-point operations of a sample, and the device's rate.

    Args:
        batch: samples that are run to count.
    """

    batch: PositiveInt = 16

    needs_model: ClassVar[bool] = True

    def __call__(self, outcome: Outcome) -> list[Value]:
        """`flops_forward` and `flops` (forwards and backwards) of one sample; of a text-to-image model `flops_text`, the
        same of its CLIP's losses; `rate`, operations a second of a matrix product; and `weights_bytes`."""
        request, model = outcome.trial.request, outcome.model
        assert model is not None  # it is asked for
        weights = list(model.parameters())
        batch = {
            name: column.to(weights[0].device) for name, column in next(iter(request.retain.batches(self.batch))).items()
        }
        forward, both = flops(model, request.objective, batch)
        found = {"flops_forward": forward, "flops": both}
        if isinstance(request.objective, TextToImage):
            found["flops_text"] = flops(model, request.objective.contrast, batch)[1]
        found["rate"] = matrix_rate(weights[0].device, weights[0].dtype)
        found["weights_bytes"] = sum(weight.numel() * weight.element_size() for weight in weights)
        return [Value(name, float(value)) for name, value in found.items()]


def flops(model: Model, objective: Objective, batch: Batch) -> tuple[float, float]:
    """Floating-point operations of the training loss a sample: forwards, and forwards and backwards.

    A matrix product of (m, k) and (k, n) counts 2 m k n; what is no product, convolution or attention counts nothing.
    """
    from torch.utils.flop_counter import FlopCounterMode

    names = [name for tower in objective.weights(model).values() for name in tower]
    with differentiable(model, names), FlopCounterMode(display=False) as counter:
        loss = objective.loss(model, batch)
        forward = counter.get_total_flops()
        loss.backward()
    model.zero_grad(set_to_none=True)
    count = len(batch["index"])
    return forward / count, counter.get_total_flops() / count


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product, in the precision that models run with here; the best
    of a second's repetitions."""
    import torch
    from torch.utils.benchmark import Timer

    n = 8192 if device.type == "cuda" else 1024
    square = torch.randn(n, n, device=device, dtype=dtype)
    timer = Timer("square @ square", globals={"square": square}, num_threads=torch.get_num_threads())
    return 2 * n**3 / min(timer.blocked_autorange(min_run_time=1.0).times)


# ---------------------------------------------------------------- measuring

TEXT_TO_IMAGE = ("concept_ablation", "esd", "uce")
SD_METHODS = (
    *("slug:physical=16", "ga:batch=8", "ft:batch=8", "salun:batch=8,retain_batch=8", "svd", "esd", "uce"),
    "concept_ablation:batch=8",
)
"""With batches that fit beside pictures of 512 pixels; all else is as by default."""
HERE = str(Path(__file__).resolve())


def planned(arguments: argparse.Namespace) -> list[Cell]:
    """Every method on every model."""
    registry = load([HERE, *arguments.plugin], kinds=("method", "task", "metric"))
    everything = [name for name in registry.names("method") if not registry.get("method", name).control]
    named = [_text(spec.name, spec.params) for spec in parse_specs(arguments.methods)] if arguments.methods else None
    given = dict(part.split("=", 1) for part in arguments.set.split(",") if part)
    given |= {"device": arguments.device, "precision": arguments.precision}
    given |= {"steps": arguments.steps} if arguments.steps else {}
    given |= {"batch": arguments.physical} if arguments.physical else {}
    if arguments.command == "sd":
        models, methods, kind = [arguments.model], named or SD_METHODS, "costs_sd"
    else:
        models, kind = arguments.models.split(","), "costs_clip"
        methods = named or [name for name in everything if name not in TEXT_TO_IMAGE]
    suite = Suite(
        name="costs",
        tasks=[_text(kind, {"model": model, **given}) for model in models],
        methods=[_in_pieces(text, arguments.physical) for text in methods],
        metrics=["costs_floor" + (f":batch={arguments.physical}" if arguments.physical else "")],
        threads=arguments.threads,
    )
    return expand(suite, device=arguments.device)


def _text(name: str, params: Mapping[str, Any]) -> str:
    return f"{name}:" + ",".join(f"{key}={value}" for key, value in params.items()) if params else name


def _in_pieces(text: str, physical: int | None) -> str:
    """A method's spec with the physical batch, where it has one apart from its logical one."""
    spec = parse_spec(text)
    if physical is None or "physical" not in REGISTRY.get("method", spec.name).parameters():
        return text
    return _text(spec.name, {**spec.params, "physical": physical})


def measured(arguments: argparse.Namespace) -> pd.DataFrame:
    """A line for every model and method, those of the CSV beside the document included."""
    cells, path = planned(arguments), arguments.out.with_suffix(".csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = _read(path).to_dict("records") if path.exists() else []
    done, machine = {line["key"] for line in lines}, _machine(arguments.device)
    settings = Settings(
        Limits(arguments.timeout, int(arguments.memory * 1e9)),
        plugins=(HERE, *(str(Path(plugin).resolve()) for plugin in arguments.plugin)),
        preload=tuple(preloads(cells)),
    )
    with TemporaryDirectory() as folder:
        jobs = [Job(cell, (*cell.judges,), Path(folder, cell.name)) for cell in cells if cell.key not in done]
        for job in jobs:
            job.scratch.mkdir()
        for finished in run(jobs, settings):
            lines.append(line_of(finished, machine))
            _put(pd.DataFrame(lines), path)
            print(*(lines[-1][name] for name in ("model", "method", "status", "t_total")), flush=True)
    return _read(path).set_index("key").loc[[cell.key for cell in cells]].reset_index()


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"error": object})


def _machine(device: str) -> str:
    found = hardware(device)
    parts = [*found.get("accelerators", [])[:1], f"{found['processor']}, {found['cores']} cores"]
    versions = ", ".join(f"{name} {keyed_versions()[name]}" for name in KEYED)
    return f"{'; '.join(parts)}, {found['memory_bytes'] / 1e9:.0f} GB; {versions}"


def _put(frame: pd.DataFrame, path: Path) -> None:
    """The whole file or what was there before, whenever it is interrupted."""
    unfinished = path.with_name(f".{path.name}")
    frame.to_csv(unfinished, index=False)
    os.replace(unfinished, path)


def line_of(finished: Finished, machine: str) -> dict[str, Any]:
    """What became of one method on one model, whatever that is."""
    cell, record = finished.cell, finished.record
    rows = [row for judged in record["values"].values() for row in judged["rows"]]
    values = {row["metric"]: row.get("value") for row in rows}
    cost = record["cost"] or dict.fromkeys(asdict(Cost()))
    defaults = REGISTRY.get("method", cell.method).parameters()
    changed = {name: value for name, value in cell.method_params.items() if value != defaults[name]}
    notes = [row["note"] for row in rows if row.get("value") is None and row.get("note")]
    return {
        "key": cell.key,
        "model": Path(cell.task_params["model"]).name.removesuffix(".json"),
        "method": _text(cell.method, changed),
        "status": record["status"],
        "error": record["error"] or "; ".join(notes) or None,
        **{name: value for name, value in cost.items() if name != "notes"},
        "peak_process_bytes": record["peak_pss_bytes"],
        "wall_seconds": record["wall_seconds"],
        **{name: values.get(name) for name in ("flops_forward", "flops", "flops_text", "rate", "weights_bytes")},
        "floor_seconds": floor_seconds(cell.method, cost, values),
        "machine": machine,
    }


def floor_seconds(method: str, cost: Mapping[str, Any], values: Mapping[str, float | None]) -> float | None:
    """The least time for one pass over the samples that a method read; None where it, or the count, came to no end.

    Forwards and backwards through what it takes gradients of; forwards alone where it takes none.
    """
    flops = values.get("flops_forward") if method == "svd" else values.get("flops")
    if method == "slug":  # which of a text-to-image model edits the text encoder, by the losses of its CLIP
        flops = values.get("flops_text") or flops
    if flops is None or not values.get("rate") or cost["n_forget_read"] is None:
        return None
    return flops * (cost["n_forget_read"] + cost["n_retain_read"]) / values["rate"]


# ---------------------------------------------------------------- the document

PUBLISHED = {
    "slug": (39, 3.61, "Cai et al., 2025, second-hand; the time seems to leave out the search and the retain pass"),
    "esd": (6163, 17.8, "UnlearnCanvas's leaderboard"),
    "uce": (434, 5.1, "UnlearnCanvas's leaderboard"),
    "salun": (667, 30.8, "UnlearnCanvas's leaderboard; the mask of the code it was measured with is never applied"),
    "concept_ablation": (734, 10.1, "UnlearnCanvas's leaderboard, as CA"),
}
"""Seconds and GB for one target of UnlearnCanvas by Stable Diffusion 1.5, and who says so. On what hardware is not said."""
TITLES = {
    "clip": "Costs on CLIP models at full size",
    "sd": "Costs on Stable Diffusion 1.5 at full size",
}


def document(arguments: argparse.Namespace, frame: pd.DataFrame) -> str:
    """The file's text."""
    params = planned(arguments)[0].task_params
    parts = [
        f"# {TITLES[arguments.command]}",
        f"Made by `{arguments.made_by}`. Weights are random: what a step or a look costs does not depend on what they know. "
        "How many looks a search takes can: slug's are ten a layer of its fronts, whose lengths are the gradients' to say.",
        "\n".join(f"- {machine}" for machine in frame["machine"].unique()),
        _setup(arguments.command, params, arguments.threads),
        table(table_of(frame, arguments.command), numbers_from=2),
        "Seconds of the phases, as the harness's meter has them, with the device synchronised. The **floor** is the time in "
        "which the device would do one forward and one backward pass (svd: the forward pass alone) of each sample that the "
        "method read, at the rate that it reaches on one large matrix product in the same precision; "
        f"{_rates(frame)}. Further passes over a sample, pictures drawn on the way (esd reads prompts alone) and all "
        "looks at validation are the method's own doing, so × floor says how far the whole is from one perfect pass; "
        "× without search leaves validation out. Peaks are those of the method's run and hold the weights twice, as the "
        "harness keeps the original's to tell what was changed; of a pipeline also what no method edits, the autoencoder "
        "and the picture tower of the CLIP.",
    ]
    if arguments.command == "sd":
        sources = [f"- {method}: {source}." for method, (_, _, source) in PUBLISHED.items()]
        parts += ["## Published numbers", "One target each, on hardware that is not said:", "\n".join(sources)]
    return "\n\n".join(parts) + "\n"


def _setup(command: str, params: Mapping[str, Any], threads: int) -> str:
    seen = f"{params['forget']:,} samples to forget, {params['retain']:,} to retain"
    if command == "sd":
        seen += f"; validation draws {params['drawn']} pictures of either in {params['drawing']} steps"
    else:
        seen += f"; validation has {params['kept_forget']} and {params['kept_retain']} pictures, of {params['names']} names"
    steps = "as many steps as each method has by default" if params["steps"] is None else f"at most {params['steps']} steps"
    return (
        f"{seen}; {steps}, as nothing counts as forgotten; {params['batch']} pictures at a time where the method has "
        f"no batch of its own; float32, precision `{params['precision']}`, deterministic kernels, {threads} threads."
    )


def _rates(frame: pd.DataFrame) -> str:
    rates = frame["rate"].dropna() / 1e12
    return f"here {rates.min():.3g} to {rates.max():.3g} TFLOP/s" if len(rates) else "here it was never measured"


def table_of(frame: pd.DataFrame, command: str) -> pd.DataFrame:
    """The lines as readers see them."""
    floor = frame["floor_seconds"].where(frame["floor_seconds"] > 0)
    shown = {
        "model": frame["model"],
        "method": frame["method"],
        "prepare s": _seconds(frame["t_prepare"]),
        "search s": _seconds(frame["t_search"]),
        "apply s": _seconds(frame["t_apply"]),
        "total s": _seconds(frame["t_total"]),
        "floor s": _seconds(frame["floor_seconds"]),
        "× floor": _seconds(frame["t_total"] / floor),
        "× without search": _seconds((frame["t_total"] - frame["t_search"]) / floor),
    }
    if frame["peak_device_bytes"].notna().any():
        shown |= {
            "allocated GB": _gigabytes(frame["peak_device_bytes"]),
            "reserved GB": _gigabytes(frame["peak_device_reserved_bytes"]),
        }
    shown |= {"peak RSS GB": _gigabytes(frame["peak_rss_bytes"]), "weights GB": _gigabytes(frame["weights_bytes"])}
    shown |= {"read": _counts(frame["n_forget_read"] + frame["n_retain_read"]), "evaluations": _counts(frame["n_evals"])}
    if command == "sd":
        known = [PUBLISHED.get(method.split(":")[0], (None, None, "")) for method in frame["method"]]
        shown |= {
            "published s": [seconds or "" for seconds, _, _ in known],
            "published GB": [gb or "" for _, gb, _ in known],
        }
    reasons = zip(frame["status"], frame["error"].fillna(""), strict=True)
    shown["outcome"] = [f"{status}: {error[:200]}" if error else status for status, error in reasons]
    return pd.DataFrame(shown)


def _seconds(column: pd.Series) -> list[str]:
    return ["" if pd.isna(value) else f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in column]


def _gigabytes(column: pd.Series) -> list[str]:
    return ["" if pd.isna(value) else f"{value / 1e9:.2f}" for value in column]


def _counts(column: pd.Series) -> list[str]:
    return ["" if pd.isna(value) else f"{value:,.0f}" for value in column]


# ---------------------------------------------------------------- the commands


def parser() -> argparse.ArgumentParser:
    """Of the two commands."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = made.add_subparsers(dest="command", required=True)
    for name, title in TITLES.items():
        command = commands.add_parser(name, help=title)
        if name == "clip":
            command.add_argument("--models", default="ViT-B-32,ViT-L-14,EVA01-g-14", help="of open_clip, or JSON files")
        else:
            command.add_argument("--model", default=SD_NAME if name == "sd" else "ViT-B-32", help="or a JSON file")
        command.add_argument("--out", type=Path, default=Path(f"docs/results/costs-{name}.md"))
        command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
        command.add_argument("--methods", default="", help="as of `slugbench run`")
        command.add_argument("--physical", type=int, help="pictures that run at a time, in `slug`, validation and the count")
        command.add_argument("--steps", type=int, help="optimiser steps at most")
        command.add_argument("--precision", choices=("highest", "high"), default="highest", help="high: with TF32")
        command.add_argument("--threads", type=int, default=1)
        command.add_argument("--timeout", type=float, default=6 * 3600, help="seconds a method may take")
        command.add_argument("--memory", type=float, default=100, help="GB of main memory it may take")
        command.add_argument("--plugin", action="append", default=[], help="a file with a method of your own")
        command.add_argument("--set", default="", help="key=value,... further parameters of the task")
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing and write the document."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser().parse_args(argv)
    arguments.made_by = shlex.join(["python", "docs/costs.py", *map(shared_form, argv)])
    try:
        frame = measured(arguments)
    except UsageError as error:
        sys.exit(str(error))
    arguments.out.write_text(document(arguments, frame), encoding="utf-8")


if __name__ == "__main__":
    main()
