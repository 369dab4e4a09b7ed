"""The nouns of the benchmark. Everything imports them; they import nothing of ours.

    Task.build -> Trial (Request + test data + oracles) -> Method(request) -> Outcome -> Metric -> Value -> Row

Two of them carry the fairness contract: a `Request` is all that a method may see, a `Trial` is what metrics
may see. Legend for array shapes: B batch, C channels or classes, H and W pixels, T tokens, N test images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

Model: TypeAlias = "torch.nn.Module"
Batch: TypeAlias = "dict[str, torch.Tensor]"
"""`image` (B, C, H, W) float, `text` (B, T) long or `label` (B,) long, and always `index` (B,) long."""

Answers: TypeAlias = "dict[str, np.ndarray]"
"""What one model answers on every question of a trial, one row a question (see `Trial.questions`)."""

Pool = Literal["dev", "tune", "test", "sealed"]
Better = Literal["higher", "lower", "oracle"]
Status = Literal["ok", "skipped", "failed", "timeout", "oom", "crashed", "invalid"]
STATUSES: tuple[Status, ...] = ("ok", "skipped", "failed", "timeout", "oom", "crashed", "invalid")
SCHEMA = 1


# ---------------------------------------------------------------- what a method sees


class Split(Protocol):
    """A set of samples. `batches` yields every sample once, in a fixed order or in one drawn from `generator`."""

    def __len__(self) -> int: ...

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Batches of `size` samples; the last may be smaller."""
        ...

    def of(self, target: str) -> Split:
        """The samples of one target (of a joint request's forget split)."""
        ...


class Validation(NamedTuple):
    """The validation split of a request: same concepts, images that neither training nor testing sees.

    Of a request for samples (without targets) `forget` is its forget split itself: there is nothing else of the kind.
    """

    forget: Split
    retain: Split


class Scores(NamedTuple):
    """What `validate` returns: accuracies in [0, 1] on the validation split."""

    forget: float
    retain: float
    forget_se: float
    """Standard error of `forget`, sqrt(p (1 - p) / n)."""


class Validate(Protocol):
    """Scores a model on the validation split; counted and timed as search."""

    def __call__(self, model: Model, *, retain: bool = True) -> Scores:
        """With `retain=False` only the forget images are run and `Scores.retain` is NaN: cheap steering."""
        ...


class Objective(Protocol):
    """The task's way to speak of its model, so that a method written once serves CLIP, classifiers and diffusion.

    All losses are scalar means over the batch and carry gradients. All functions work on the device of `batch`.
    """

    kind: str
    """`clip`, `classifier` or `diffusion`."""

    def loss(self, model: Model, batch: Batch) -> torch.Tensor:
        """The training loss (InfoNCE for CLIP, cross-entropy for classifiers)."""
        ...

    def forget_loss(self, model: Model, batch: Batch) -> torch.Tensor:
        """The loss whose *ascent* forgets (1 - cos for CLIP, cross-entropy for classifiers)."""
        ...

    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The random-label analogue: the same images with another concept's label (and caption), y' != y always."""
        ...

    def logits(self, model: Model, batch: Batch) -> torch.Tensor:
        """(B, C) scores over the fixed candidate list, zero-shot for CLIP; column c belongs to `label` c."""
        ...

    def weights(self, model: Model) -> dict[str, list[str]]:
        """`{tower: [parameter names]}`, every trainable parameter once; one tower `model` where there is only one."""
        ...

    def masked(self, model: Model, targets: Sequence[str]) -> Model:
        """A model that never answers `targets` though no weight is changed (for the control `mask`)."""
        ...


@runtime_checkable
class TwoTowers(Protocol):
    """What an `Objective` of kind `clip` can do besides: its losses in two steps, over embeddings.

    `loss(model, batch)` is `loss_of(model, {tower: encode(model, batch, tower)}, batch)`. With the steps apart a method
    can run pictures in pieces of one size and contrast them in groups of another, or run one tower at a time.
    """

    def encode(self, model: Model, batch: Batch, tower: str) -> torch.Tensor:
        """(B, D) unit embeddings by one tower, `vision` or `text`; each row depends on its own sample alone."""
        ...

    def loss_of(self, model: Model, embedded: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """`Objective.loss`, given the embeddings; of the batch it reads no pictures and no texts."""
        ...

    def forget_loss_of(self, model: Model, embedded: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """`Objective.forget_loss`, given the embeddings."""
        ...


class Noised(NamedTuple):
    """Pictures on the way between themselves and noise."""

    latents: torch.Tensor
    """(B, C, H, W)"""
    time: torch.Tensor
    """(B,) long."""
    wanted: torch.Tensor | None = None
    """(B, C, H, W) what a U-Net should predict of them, where that is known."""


@runtime_checkable
class TextToImage(Protocol):
    """What an `Objective` of kind `diffusion` can do besides; `text` is (B, T) tokens, of whole prompts or of a name."""

    contrast: Objective
    """Of the CLIP whose text encoder reads the prompts, over the same batches; `weights` are those of the text encoder."""
    nothing: torch.Tensor
    """(1, T), the empty prompt."""

    def anew(self) -> Objective:
        """The same objective, whose own generator is at its beginning."""
        ...

    def noised(self, batch: Batch, draws: torch.Generator | None = None) -> Noised:
        """Pictures at a time and under noise drawn for each, by the objective's own generator if no other is given."""
        ...

    def drawn(self, model: Model, text: torch.Tensor, generator: torch.Generator, *, guidance: float) -> Noised:
        """What the model has made of noise by a time drawn for the batch, on the way to pictures of that text."""
        ...

    def predict(self, model: Model, state: Noised, text: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) what the U-Net says under that text."""
        ...

    def said(self, batch: Batch, target: str) -> torch.Tensor:
        """The prompts of a batch, with a target in the place of the concept of its domain."""
        ...

    def names(self, targets: Sequence[str] | None = None) -> torch.Tensor:
        """(n, T) the bare names of those targets, or of all that is no target."""
        ...


@dataclass(frozen=True)
class Budget:
    """What one method may spend on one request. Never seconds, so that results do not depend on speed."""

    max_steps: int
    """Optimiser steps; methods read and keep it."""
    max_reads: int
    """Samples read from the train splits; enforced."""
    max_evals: int
    """Calls of `validate`; enforced."""


@dataclass(frozen=True)
class Request:
    """All a method may see. Never test data, never the oracle.

    `progress("prepare" | "search" | "apply", done, total)` names the phase whose clock runs from here on and feeds
    the progress bar; without a call all time counts as `apply`. Calls of `validate` and reads of `validation` are
    timed and counted as search wherever they happen.
    """

    model: Model
    """The method's own copy of the original, to edit in place and return; in eval mode."""
    targets: tuple[str, ...]
    """The concepts to be forgotten; () where training samples of all concepts are, which concepts then cannot name."""
    forget: Split
    retain: Split
    validation: Validation
    objective: Objective
    validate: Validate
    budget: Budget
    goal: float
    """The forget accuracy to aim at: chance for concepts, the original's on samples it never saw for samples."""
    floor: float = 0.0
    """The retain accuracy to keep. The runner sets it to the original's on validation data less 2 points."""
    generator: torch.Generator | None = None
    """Seeded by task, request and seeds, the same for every method; on the CPU."""
    device: str = "cpu"
    progress: Callable[..., None] = lambda phase, done=0, total=None: None

    def reached(self, scores: Scores) -> bool:
        """The stopping rule all methods share: validation forget accuracy at most `goal` + 1 standard error."""
        return scores.forget <= self.goal + scores.forget_se

    def shortfall(self, scores: Scores) -> float:
        """By how much scores miss the two conditions together, in accuracy: 0 where the targets are forgotten
        (`reached`) and retain accuracy is at least `floor`. What is chosen on validation data has the least of it."""
        missed_forget = scores.forget - self.goal - scores.forget_se
        return max(0.0, missed_forget) + max(0.0, self.floor - scores.retain)


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of hyperparameters; its fields are its CLI options, table columns and cache key.

    It may have `skips(request)`, which says why it does not run; a control that sees the trial may have `answers(trial)`,
    which stand for its model where no metric needs weights.
    """

    def __call__(self, request: Request) -> Model: ...


# ---------------------------------------------------------------- what metrics see


class Answer(Protocol):
    """Runs a model over the questions of a trial, on the device the model is on."""

    def __call__(self, model: Model, rows: np.ndarray | None = None) -> Answers:
        """Answers to all questions, or to those at the positions `rows`."""
        ...


class Prompts(Protocol):
    """What attacks by the prompt can do with a CLIP: put other prompts, or vectors, in the place of a target's name."""

    def start(self, label: int) -> torch.Tensor:
        """(T,) tokens of a prompt of the candidate `label`."""
        ...

    def places(self, label: int) -> Sequence[int]:
        """Positions in `start` that hold words, from the last to the first."""
        ...

    def words(self) -> Sequence[int]:
        """Tokens that may be put in such a place."""
        ...

    def embed(self, model: Model, tokens_KT: torch.Tensor) -> torch.Tensor:
        """(K, D) unit text embeddings."""
        ...

    def margins(self, model: Model, label: int, text_KD: torch.Tensor, rows: np.ndarray) -> np.ndarray:
        """(K, n) by how much the logit of `label`, with each of K vectors for its name, leads that of the best other
        candidate, on the images of those questions."""
        ...


class Drawing(Protocol):
    """What attacks can do with a text-to-image model: put vectors in the place of a name, and begin at a picture."""

    def vectors(self, model: Model, target: str) -> torch.Tensor:
        """(W, D) what the tokens of a concept's name are embedded as before the text encoder's first layer."""
        ...

    def instead(self, model: Model, target: str, vectors_WD: torch.Tensor) -> AbstractContextManager[None]:
        """Inside, the model reads those vectors wherever a prompt names the target; gradients reach them."""
        ...

    def redraw(self, model: Model, batch: Batch, *, strength: float, seed: int) -> np.ndarray:
        """(B,) class that is seen, in the targets' domain, in what the model makes of the pictures of a batch.

        They are noised up to `strength` of the way to pure noise, in (0, 1], and denoised under their own prompts.
        """
        ...


@dataclass(frozen=True)
class Trial:
    """A request together with what its unlearned model is measured on and against.

    `questions` and the answers of a model are aligned columns of length N, the primary artefact from which every
    aggregate is derived:

    questions: `split` (str: `forget`, `retain` = test images of targets and of the other concepts, `forget_train` =
        the forget split itself, `retain_train` = some of the retain split, for attacks to learn from, where a task can
        afford it, `outsider` = never-trained concepts, `utility` = another task on the same model),
        `unit` (int, the concept: the sampling unit of every interval), `label` (int), `near` (bool, a retained
        concept from a target's neighbourhood), `index` (int, the image), and where some concepts are commoner than others
        `frequent` (bool, of one of those, the targets included). Of a request for samples (without targets)
        `forget` are the samples themselves, `retain` test images of all concepts, and there is no `forget_train`.
    answers: `predicted` (int), `rank` (int, 0 = the true label is on top), `score` (float, log p/(1-p) of the true
        label's probability: the logit-scaled confidence), and what the task adds: `cosine` (image to the true name's
        text), `phrased` (N, M; the rank under each of M ways to put the question that training never used, -1 where it
        is not put), `entropy`, `m_entropy` and `m_entropy_legacy` (see `bench.entropies`), ...

    Of a model that makes images a question is one prompt with one seed, and the answer what frozen classifiers see in
    the image. A concept is of one domain of several (a style, an object), and `classes` names those of each. The usual
    columns are about the domain of the targets. Besides, for each domain `d`, questions hold `d` (int, the class
    prompted), and `seed` (int); answers hold `d` (int, the class seen), `d_score` (the log-odds of the class prompted)
    and `d_log_p` (N, classes of d; log-probabilities), and may hold `second_d` (int, the class that another classifier
    sees) and `cosine` (image to its prompt, by one frozen CLIP for all models). The splits `forget_train`, training
    images of the targets, and `forget_unseen`, as many that no model saw, are not to be drawn but to be denoised: of
    them `score` is minus the error.
    """

    request: Request
    questions: dict[str, np.ndarray]
    answer: Answer
    """Asks a model."""
    original: Answers
    oracles: tuple[Answers, ...]
    """Of models retrained without the targets, oracle number s at position s."""
    oracle_model: Callable[[int], Model]
    """Oracle number s itself: shipped, cached or trained now."""
    n_classes: int
    """Number of candidates; chance of `fa@k` is k / n_classes."""
    joint: bool
    """Whether several targets are to be forgotten at once."""
    original_model: Callable[[], Model] | None = None
    """A fresh copy of the original; `request.model` is the method's to edit."""
    features: Callable[[Model, np.ndarray], np.ndarray] | None = None
    """(n, D) image features of those rows of the questions, as the last layer before the answer has them."""
    prompts: Prompts | None = None
    """Of a CLIP."""
    shadow: Callable[[int], Request] | None = None
    """This request to shadow original number s: trained on the same data as the original, from another seed, at its first
    use, and kept in the cache."""
    alone: Callable[[int, Model], Request] | None = None
    """Of a joint request, that to forget the target at position j alone, of a model made to forget those before it: these
    are in none of its splits, those after it are among what it retains."""
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of a model that makes images: by domain the names of its classes, in the order of their numbers."""
    real: np.ndarray | None = None
    """(M, D) features of real pictures of the retained concepts, as the column `features` of the answers."""
    pictures: Callable[[Answers, np.ndarray], Iterable[np.ndarray] | None] | None = None
    """(n of (H, W, 3) uint8) what the model that gave those answers drew at those rows of the questions, to be looked at;
    None where that is no longer there."""
    drawing: Drawing | None = None
    """Of a text-to-image model."""
    method_seed: int = 0
    """Set by the runner; the control `oracle` is oracle number `method_seed`."""


@dataclass
class Cost:
    """What a method spent. Seconds with the device synchronised; `None` with a reason in `notes` where unknown."""

    t_prepare: float | None = None
    t_search: float | None = None
    t_apply: float | None = None
    t_total: float | None = None
    n_forget_read: int | None = None
    n_retain_read: int | None = None
    n_evals: int | None = None
    peak_device_bytes: int | None = None
    peak_device_reserved_bytes: int | None = None
    peak_rss_bytes: int | None = None
    bytes_delta: int | None = None
    """Smallest file that restores the unlearned from the original model: the changed tensors, uncompressed."""
    energy_j: float | None = None
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """An unlearned model and all that is needed to judge it.

    The same metric is evaluated on the method's model and on each oracle in its place (then `cost` is None and
    `oracles` leaves that oracle out), which is how every value gets its oracle mean and spread.
    """

    trial: Trial
    answers: Answers
    oracles: tuple[Answers, ...]
    """The reference oracles: without the model itself where it is one of them."""
    model: Model | None = None
    """None when answers come from a file or an oracle's weights are not loaded. A metric must not change it."""
    cost: Cost | None = None
    others: tuple[int, ...] = ()
    """The numbers of the reference oracles, for `trial.oracle_model`."""
    unlearn: Callable[[Request], Model] | None = None
    """Runs the judged method on another request to the same task, unmeasured; None where an oracle is judged."""


@dataclass(frozen=True)
class Value:
    """One number of one metric with what an interval and a reader need.

    `arrays` holds per-image `x` (the values whose macro average, images -> units, is `value`) and `unit` (the
    concept of each image), from which the interval is bootstrapped; a metric that is no such average gives
    `statistic`, a function of the resampled `arrays`.
    """

    name: str
    value: float | None
    unit: str = ""
    better: Better = "higher"
    chance: float | None = None
    n_images: int | None = None
    n_units: int | None = None
    arrays: Mapping[str, np.ndarray] | None = None
    statistic: Callable[[Mapping[str, np.ndarray]], float] | None = None
    note: str = ""


@runtime_checkable
class Metric(Protocol):
    """A frozen dataclass; returns no value at all where it does not apply, a null value with a note where it
    applies but cannot be had."""

    def __call__(self, outcome: Outcome) -> list[Value]: ...


def needs_model(metric: Any) -> bool:
    """Whether a metric, or its class, reads weights and not just answers; it says so by `needs_model = True`."""
    return bool(getattr(metric, "needs_model", False))


# ---------------------------------------------------------------- tasks and reports


class Listed(NamedTuple):
    """A request as listed before anything is built (no torch needed)."""

    id: str
    targets: tuple[str, ...]
    pool: Pool


class Gate(NamedTuple):
    """An acceptance gate: what was measured, what it must keep, and whether it does."""

    name: str
    value: float | None
    """None where it cannot be known."""
    limit: str
    """In words and numbers: `0.80 to 0.95`, `at most 0.02`."""
    ok: bool
    note: str = ""


class Wanted(NamedTuple):
    """A file a task needs, for `slugbench doctor`."""

    path: Path
    found: bool
    note: str
    """What it is, its size and licence, and the command or page that gives it."""


@runtime_checkable
class Task(Protocol):
    """A frozen dataclass of parameters (model, data); builds trials and vouches for its own models.

    Everything but `build`, `gates` and `rebuild` runs without torch. A `UsageError` that it raises, or that its trial's
    answers and splits raise, is of its data: it ends the run with that sentence, and no method gets a row for it.
    """

    base_seeds: ClassVar[tuple[int, ...]]
    preload: ClassVar[tuple[str, ...]]
    """Modules worth importing once in the server that cells are forked from, such as `open_clip`."""

    def requests(self) -> tuple[Listed, ...]: ...

    def build(self, request_id: str, base_seed: int) -> Trial: ...

    def fingerprint(self, request_id: str, base_seed: int) -> str:
        """Content hash of base weights, oracles and splits: part of every cell's key."""
        ...

    def gates(self, request_ids: Sequence[str], base_seeds: Sequence[int]) -> list[Gate]:
        """Acceptance gates that need no method, over the requests and base seeds about to run."""
        ...

    def gates_after(self, frame: pd.DataFrame) -> list[Gate]:
        """Gates on the finished table of this task: the controls are caught."""
        ...

    def wanted(self) -> list[Wanted]: ...

    def rebuild(self, folder: Path, *, jobs: int = 1) -> None:
        """Remake the shipped models and answers into `folder`."""
        ...


class Size(NamedTuple):
    """How much a trial asks about one split."""

    images: int
    units: int
    """Concepts."""


@runtime_checkable
class Sized(Protocol):
    """What a `Task` can do besides: say before anything is built, without torch, how much a trial will ask.

    `slugbench plan` computes from it what differences can be resolved.
    """

    def sizes(self, request_id: str) -> Mapping[str, Size]:
        """By the split's name, as in `Trial.questions`."""
        ...


class Scored(NamedTuple):
    """What a folder of images comes to: a trial without a model, and answers to its questions."""

    trial: Trial
    """Its request names targets and kind alone; what would take a model or training data says that there is none."""
    answers: Answers
    content: str
    """Digest of everything that trial and answers were made from."""
    gates: tuple[Gate, ...] = ()
    """What has to hold for the answers to mean anything, such as that classifiers know the original's images."""


@runtime_checkable
class Scoring(Protocol):
    """What a `Task` whose models make images can do besides: answer by images that were made elsewhere."""

    def score(
        self,
        request_id: str,
        images: Path,
        *,
        cache: Path,
        classifiers: Path | None = None,
        original: Path | None = None,
        oracles: Sequence[Path] = (),
        device: str = "cpu",
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Scored:
        """Classify folders of images.

        Args:
            request_id: what was to be forgotten.
            images: folder with all images of the unlearned model, named as the task's protocol has it.
            cache: folder for what classifiers say of each image, so that no image is classified twice.
            classifiers: folder of their checkpoints; by default where the task looks for them.
            original: the same images of the original model, for values that need it.
            oracles: those of models that never saw the target.
            device: where the classifiers run.
            progress: called with the number of images done and of all.

        Raises:
            UsageError: an image or a checkpoint is missing, cannot be read or is not of the protocol's form.
        """
        ...


@runtime_checkable
class Report(Protocol):
    """Rows in, files out: writes under `out` and returns what it wrote, the main file first.

    `runs` holds the `run.json` of each folder the rows came from, and under the key `folder` where that is, if it is known.
    """

    def __call__(self, frame: pd.DataFrame, runs: Sequence[Mapping[str, Any]], out: Path) -> list[Path]: ...


class Result(NamedTuple):
    """What other code measured of one model: values without intervals, since images are not known."""

    request: str
    """The task's name for it."""
    method: str
    values: tuple[Value, ...]


class Imported(NamedTuple):
    """What a folder of another code's results comes to."""

    suite: str
    """The suite that repeats the experiment; by default the results are of its first task."""
    params: Mapping[str, str]
    """Parameters of the task that the files speak of, which it therefore has to have."""
    results: tuple[Result, ...]
    tables: Mapping[str, pd.DataFrame]
    """By the file's name what else was found, to be written beside the table."""
    content: str
    """Digest of the files that values come from."""
    remarks: tuple[str, ...] = ()
    """What was left aside and why, a sentence each."""


@runtime_checkable
class Importer(Protocol):
    """A frozen dataclass that reads what the code of a method's authors left."""

    def __call__(self, folder: Path, weights: Path | None) -> Imported:
        """Read a folder.

        Args:
            folder: with the authors' files, laid out as their code does.
            weights: a file of the original's weights, for what can only be said beside them.

        Raises:
            UsageError: there is nothing to read, or a file is not of the authors' form; names the file.
        """
        ...


# ---------------------------------------------------------------- the table


@dataclass(frozen=True, kw_only=True)
class Row:
    """One flat observation: one metric of one cell. `*_params` and `targets` are JSON text."""

    schema: int = SCHEMA
    suite: str
    cell: str
    task: str
    task_params: str
    request: str
    targets: str
    pool: str
    base_seed: int
    method: str
    method_params: str
    method_seed: int
    status: Status
    failure: str | None = None
    """Failure class of a finished run: `no effect`, `destroyed`, `over-generalised`, `masked`, `recoverable`."""
    error: str | None = None
    """`Type: message`, or why the method skipped."""
    metric: str | None = None
    value: float | None = None
    unit: str | None = None
    better: str | None = None
    oracle_mean: float | None = None
    oracle_sd: float | None = None
    chance: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    n_images: int | None = None
    n_units: int | None = None
    note: str | None = None
    device: str
    threads: int
    concurrent: bool
    started: str
    provenance: str

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """The table's columns, in order."""
        return tuple(f.name for f in fields(cls))
