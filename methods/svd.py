"""Deep Unlearning: take out of every layer the input directions that only what is to be forgotten uses.

No gradient is taken and nothing is trained. The paper decomposes stored inputs of the layers by SVD. Here the same
projections come from the inputs' Gram matrices, summed up batch by batch, and from solving with them: memory and
solving do not grow with the number of samples, and nothing has to be decomposed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt

from slugbench.bench import Batch, Model, Request, Scores, Split, TextToImage, TwoTowers, UsageError, method

from ._common import Allowance, Best, generator_of
from ._cross_attention import reads

if TYPE_CHECKING:
    import torch

ALPHA_RETAIN = (10.0, 30.0, 100.0, 300.0, 1000.0)
ALPHA_FORGET = (1.0, 3.0, 10.0, 30.0, 100.0)
"""The grid of the authors' tuning script."""

BATCH = 128
ROWS, BLOCK = 4096, 512
"""Inputs, and their dimensions, that are multiplied at once: the fastest on processors for 576 to 3,072 dimensions."""
CAP = 10_000
"""Inputs of one layer that the authors decompose at most."""


@method("svd")
@dataclass(frozen=True)
class DeepUnlearning:
    """W <- W (I - Mf + Mr Mf) in every linear and convolutional layer; M = U diag(a r / ((a - 1) r + 1)) U^T of its inputs.

    U and r are the principal directions of the layer's inputs and the share of their power in each, for samples to
    forget (Mf) and to keep (Mr); a scales how soon a direction counts as used. Biases and norms stay as they are. All
    inputs are those of the original model. The pair of alphas is chosen on validation data from the authors' grid,
    with the unmodified model as a candidate.

    On CLIP it is the image tower that is projected: the text tower is the head of its zero-shot classifier, and
    `both` projects it, too. Packed attention weights share one input space for queries, keys and values. Of a text-to-image
    model the keys and values of the cross-attention are projected, whose inputs are the prompts: an extension, the paper
    has none.

    `reference` gathers inputs as the authors' code does: the first samples of each retained class; of a feature map
    wider than three kernels one random window of three by three kernels, padded as if it were the whole map, which
    shows the layer borders that it never sees; of convolutions and attention 10,000 inputs at most. All samples are run
    as one batch, and the whole retain split is read to find them. Their augmentation is left to the task.

    References:
        Kodge et al., Deep Unlearning: Fast and Efficient Gradient-free Class Forgetting, 2024, equations 1 to 3.
    """

    samples: PositiveInt = 900  # of each split; the authors' number for ten classes
    alpha_retain: PositiveFloat | None = None  # None: chosen from the grid
    alpha_forget: PositiveFloat | None = None
    both: bool = False
    reference: bool = False
    score: Literal["rule", "authors"] = "rule"  # theirs is acc_r (1 - acc_f), which they take on test data

    space: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "samples": (100, 300, 900, 3000),
        "both": (False, True),
        "score": ("rule", "authors"),
        "reference": (False, True),
    }

    def skips(self, request: Request) -> str | None:
        """A sentence where what is to be forgotten is no class: the paper has no answer for samples drawn at random."""
        return None if request.targets else "svd forgets classes; the samples of this request are none."

    def __call__(self, request: Request) -> Model:
        """The model with the projection that validation prefers, which may be none."""
        model, allowance, generator = request.model, Allowance(request), generator_of(request)
        alphas_retain = ALPHA_RETAIN if self.alpha_retain is None else (self.alpha_retain,)
        alphas_forget = ALPHA_FORGET if self.alpha_forget is None else (self.alpha_forget,)
        pairs = len(alphas_retain) * len(alphas_forget)
        trying: Literal["search", "apply"] = "search" if pairs > 1 else "apply"
        towers, run = self._towers(request)
        names = [name for tower in towers.values() for name in tower]
        inputs = Inputs(model, names, text=towers.get("text", ()), reference=generator if self.reference else None)

        # W (I - Mf + Mr Mf) = W - (W - W Mr) Mf: once W - W Mr is there, the samples to keep are needed no more
        request.progress("prepare")
        grams = inputs.grams(run, self._retained(allowance, request.retain, generator))
        request.progress(trying)
        original = {name: inputs.matrix(name, gram).clone() for name, gram in grams.items()}
        unused = {name: stacked_rests(original[name], gram, alphas_retain) for name, gram in grams.items()}
        del grams
        request.progress("prepare")
        grams = inputs.grams(run, self._draw(allowance, request.forget, generator))
        grams = {name: gram for name, gram in grams.items() if name in original}

        best: Best[dict[str, torch.Tensor]] = Best(request) if self.score == "rule" else BestProduct(request)
        if allowance.evals:
            best.offer(allowance.validate(model), original)
        request.progress(trying, 0, pairs)
        if allowance.evals >= 2 and grams:
            for done, candidate in enumerate(projections(original, unused, grams, alphas_forget)):
                inputs.put(candidate)
                best.offer(best.look(allowance), candidate)
                del candidate  # as large as the model, and so is the next one
                request.progress(trying, done + 1, pairs)
                if allowance.evals < 2:
                    break
        request.progress("apply")
        inputs.put(best.candidate or original)
        return model.eval()

    def _towers(self, request: Request) -> tuple[dict[str, list[str]], Callable[[Batch], object]]:
        """The towers to be projected, and what runs them on a batch."""
        model, objective = request.model, request.objective
        if isinstance(objective, TextToImage):
            return {"unet": reads(model)}, lambda batch: objective.loss(model, batch)
        towers = objective.weights(model)
        if "vision" in towers:
            towers = {name: towers[name] for name in (("vision", "text") if self.both else ("vision",))}
            if isinstance(objective, TwoTowers):
                return towers, lambda batch: [objective.encode(model, batch, name) for name in towers]
        return towers, lambda batch: objective.loss(model, batch)

    def _draw(self, allowance: Allowance, split: Split, generator: torch.Generator) -> Iterator[Batch]:
        left = self.samples
        for batch in allowance.batches(split, left if self.reference else min(BATCH, left), generator):
            yield {name: column[:left] for name, column in batch.items()}
            left -= len(batch["index"])
            if left <= 0:
                return

    def _retained(self, allowance: Allowance, split: Split, generator: torch.Generator) -> Iterable[Batch]:
        if not self.reference:
            return self._draw(allowance, split, generator)
        import torch

        kept: Batch = {}
        for batch in allowance.batches(split, BATCH):
            joined = {name: torch.cat([kept[name], batch[name]]) for name in kept} or batch
            kept = first_of_each(joined, self.samples)
        return [kept] if kept else []


class BestProduct(Best["dict[str, torch.Tensor]"]):
    """The best by the authors' score acc_r (1 - acc_f)."""

    def prefers(self, scores: Scores) -> bool:
        """Whether the score is higher; of a retain accuracy that was not measured it is not."""
        return self.scores is None or scores.retain * (1 - scores.forget) > self.scores.retain * (1 - self.scores.forget)


def first_of_each(batch: Batch, samples: int) -> Batch:
    """The first samples // classes of each class that the batch has, at least one, in their order."""
    import torch

    if "label" not in batch:
        raise UsageError("svd:reference=true takes the first samples of each class; this task's batches have no label.")
    classes = batch["label"].unique()
    each = max(1, samples // len(classes))
    rows = torch.cat([torch.nonzero(batch["label"] == label)[:each, 0] for label in classes]).sort().values
    return {name: column[rows.to(column.device)] for name, column in batch.items()}


# ---------------------------------------------------------------- formulas


def projection(gram: torch.Tensor, alpha: float) -> torch.Tensor:
    """M = alpha g ((alpha - 1) g + I)^-1 with g = C / tr C, which is U diag(alpha r / ((alpha - 1) r + 1)) U^T.

    Args:
        gram: (..., d, d), C = X^T X of inputs X (n, d), neither centred nor normalised.
        alpha: above 0; a direction that holds the share r = 1 / (alpha + 1) of the power is weighted with one half.

    Returns:
        (..., d, d) float64, symmetric, eigenvalues in [0, 1]; zero where there was no input at all.
    """
    gram = gram.double()
    m = _solver(gram, alpha)(gram)
    return (m + m.mT) / 2  # the factors commute, so M is symmetric but for rounding


def project_weight(weight: torch.Tensor, m_forget: torch.Tensor, m_retain: torch.Tensor) -> torch.Tensor:
    """W (I - Mf + Mr Mf): inputs lose what only forgetting uses, x -> x - Mf x + Mr Mf x transposed.

    Args:
        weight: (..., out, d), applied as W x.
        m_forget: (..., d, d), of the samples to forget.
        m_retain: (..., d, d), of those to keep.

    Returns:
        (..., out, d) of the weight's type; computed in that of the projections.
    """
    w = weight.to(m_forget.dtype)
    return (w - (w - w @ m_retain) @ m_forget).to(weight.dtype)


def stacked_rests(weight: torch.Tensor, gram: torch.Tensor, alphas: Iterable[float]) -> torch.Tensor:
    """W - W M of each alpha, one below the other: (..., alphas * out, d) of the weight's type."""
    import torch

    w = weight.double()
    through = w @ gram
    return torch.cat([w - _solver(gram, alpha)(through) for alpha in alphas], dim=-2).to(weight.dtype)


def projections(
    weights: Mapping[str, torch.Tensor],
    unused: MutableMapping[str, torch.Tensor],
    grams: Mapping[str, torch.Tensor],
    alphas: Iterable[float],
) -> Iterator[dict[str, torch.Tensor]]:
    """W - (W - W Mr) Mf of all layers: for each alpha of Mf, and within it for each one of Mr.

    A matrix is factorised once per alpha, whatever the number of pairs, and M is never formed, as weights have fewer
    rows than M. Ten Cholesky factorisations cost less than the two eigendecompositions that would serve all alphas.

    Args:
        weights: name -> W (..., out, d); layers without an input to forget are left out.
        unused: name -> W - W Mr of each alpha of Mr, stacked: (..., alphas * out, d). Emptied, since what takes its place is
            as large: several times the model.
        grams: name -> (..., d, d) float64, of the samples to forget. Factors are kept below their diagonals: beside them
            they would take as much memory again.
        alphas: of Mf.
    """
    through = {}
    for name, gram in grams.items():
        rests = unused.pop(name)
        through[name] = (rests.double() @ gram).to(rests.dtype).split(weights[name].shape[-2], dim=-2)
    for alpha in alphas:
        removed = {name: _solver(gram, alpha, within=True) for name, gram in grams.items()}
        for k in range(min(map(len, through.values()), default=0)):
            yield {name: weights[name] - removed[name](rows[k].double()).to(rows[k].dtype) for name, rows in through.items()}


def _solver(gram: torch.Tensor, alpha: float, *, within: bool = False) -> Callable[[torch.Tensor], torch.Tensor]:
    """R -> alpha / tr C * R ((alpha - 1) g + I)^-1, which is X M if R = X C; factorised once.

    Args:
        gram: (..., d, d) float64, of which nothing below the diagonal is read.
        alpha: above 0.
        within: keep the factor there, below the diagonal, where it serves until `gram` is factorised again.
    """
    import torch

    power = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    power = torch.where(power > 0, power, 1.0)
    system = (gram.triu() + gram.triu(1).mT).mul_((alpha - 1) / power)
    system.diagonal(dim1=-2, dim2=-1).add_(1)  # eigenvalues between 1 and alpha
    factor, failed = torch.linalg.cholesky_ex(system)
    if not failed.any():
        # L D L^T with ones on L's diagonal, as the Gram matrix needs its own
        root = factor.diagonal(dim1=-2, dim2=-1).clone()
        lower = factor.div_(root[..., None, :])
        if within:
            lower = gram.triu_().add_(lower.tril_(-1))

        def solve(rows: torch.Tensor) -> torch.Tensor:
            half = torch.linalg.solve_triangular(lower, rows.mT, upper=False, unitriangular=True) / root[..., None] ** 2
            return torch.linalg.solve_triangular(lower.mT, half, upper=True, unitriangular=True).mT * (alpha / power)

        return solve
    # rounding left an unused direction a negative share, of which an alpha of many millions makes much: it has none
    values, vectors = torch.linalg.eigh(system)
    kept = torch.where(values > 1, 1 / values, 0.0)[..., None, :]
    return lambda rows: (rows @ vectors * kept) @ vectors.mT * (alpha / power)


# ---------------------------------------------------------------- what goes into the layers


class Inputs:
    """The inputs of weights, wherever they are used: modules, packed attention and bare parameters alike.

    Functions are watched instead of modules: `nn.MultiheadAttention` never calls its projections as modules, and
    CLIP's `visual.proj` and `text_projection` have none.

    Args:
        model: whose weights are watched.
        names: which parameters; those that no linear map, convolution or attention uses are left alone.
        text: names whose inputs are tokens; what follows the end of a text is padding and does not count.
        reference: draws windows and rows as the authors do; None: everything counts.
    """

    def __init__(
        self, model: Model, names: Iterable[str], *, text: Iterable[str] = (), reference: torch.Generator | None = None
    ) -> None:
        self.model = model
        self.name_of = {id(model.get_parameter(name)): name for name in names}
        self.text = set(text)
        self.reference = reference
        self.right: set[str] = set()
        """Bare parameters, applied as x @ W."""
        self._text: torch.Tensor | None = None
        """The texts of the batch that is run."""

    def grams(self, run: Callable[[Batch], object], batches: Iterable[Batch]) -> dict[str, torch.Tensor]:
        """name -> sum over samples of X^T X, (d, d) float64, or (groups, d, d) for a grouped convolution.

        Args:
            run: runs the model on a batch.
            batches: of samples.
        """
        import torch

        totals: dict[str, torch.Tensor] = {}
        watch = self._watch(totals)
        for batch in batches:
            self._text = batch.get("text")
            with torch.no_grad(), watch:
                run(batch)
        # emptied, as the watch is a cycle of references, which would keep all it can see until garbage is collected
        sums = ((name, totals.pop(name)) for name in list(totals))
        return {name: total.triu() + total.triu(1).mT for name, total in sums}

    def matrix(self, name: str, gram: torch.Tensor) -> torch.Tensor:
        """A weight as the matrix that is multiplied with inputs, W x: (out, d), or (groups, out / groups, d)."""
        weight = self.model.get_parameter(name).detach()
        flat = weight.T if name in self.right else weight.flatten(1)
        return flat.unflatten(0, (len(gram), -1)) if gram.ndim == 3 else flat

    def put(self, matrices: Mapping[str, torch.Tensor]) -> None:
        """Write such matrices back into the model."""
        for name, matrix in matrices.items():
            weight = self.model.get_parameter(name).data
            weight.copy_(matrix.T if name in self.right else matrix.reshape(weight.shape))

    def _watch(self, totals: dict[str, torch.Tensor]) -> AbstractContextManager[Any]:
        """Inside it, what goes into the weights is added to `totals`, whose lower triangles mean nothing."""
        import torch
        from torch.nn import functional as F
        from torch.overrides import TorchFunctionMode

        def add(weight: Any, rows: torch.Tensor, *, capped: bool = False) -> None:
            """Rows (..., d), or (groups, n, d) of a grouped convolution."""
            name = self.name_of.get(id(weight))
            if name is None:
                return
            if name in self.text and self._text is not None and rows.shape[:2] == self._text.shape:
                rows = rows[_before_end(self._text)]
            rows = rows if weight.ndim == 4 else rows.reshape(-1, rows.shape[-1])
            if capped and self.reference and rows.shape[-2] > CAP:
                drawn = torch.randperm(rows.shape[-2], generator=self.reference)[:CAP]
                rows = rows[..., drawn.to(rows.device), :]
            if name not in totals:
                d = rows.shape[-1]
                totals[name] = torch.zeros(*rows.shape[:-2], d, d, dtype=torch.float64, device=rows.device)
            accumulate(totals[name], rows)

        def linear(_: Any, input: torch.Tensor, weight: Any, bias: Any = None) -> None:
            add(weight, input)

        def matmul(_: Any, left: torch.Tensor, right: Any = None, **named: Any) -> None:
            if name := self.name_of.get(id(right)):
                self.right.add(name)
                add(right, left)

        def conv2d(output: torch.Tensor, input: torch.Tensor, weight: Any, *options: Any, **named: Any) -> None:
            if id(weight) not in self.name_of:
                return
            if self.reference:
                image = window(input, weight.shape[-2:], self.reference)
                add(weight, patches(image, weight, *options, **named), capped=True)
            else:
                for images in input.split(max(1, ROWS // output[0, 0].numel())):
                    add(weight, patches(images, weight, *options, **named))

        def attention(*args: Any, **kwargs: Any) -> Any:
            call = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs).arguments
            weight, bias = call["out_proj_weight"], call["out_proj_bias"]
            # with the identity for an output projection attention gives what goes into that projection
            heads, maps = F.multi_head_attention_forward(
                **{**call, "out_proj_weight": torch.eye(len(weight)).to(weight), "out_proj_bias": None}
            )
            tokens_first = call["query"].ndim == 3  # (T, B, d), as this function has it
            if call["query"] is call["key"] is call["value"]:  # else queries and keys have no space in common
                query = call["query"].transpose(0, 1) if tokens_first else call["query"]
                add(call["in_proj_weight"], query, capped=True)
            add(weight, heads.transpose(0, 1) if tokens_first else heads, capped=True)
            return F.linear(heads, weight, bias), maps

        watched: dict[Any, Callable[..., None]] = {F.linear: linear, F.conv2d: conv2d, torch.Tensor.__matmul__: matmul}
        watched |= dict.fromkeys((torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm), matmul)

        class Watch(TorchFunctionMode):
            def __torch_function__(watch, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                kwargs = kwargs or {}
                if func is F.multi_head_attention_forward:
                    return attention(*args, **kwargs)
                output = func(*args, **kwargs)
                if func in watched:
                    watched[func](output, *args, **kwargs)
                return output

        return Watch()


def accumulate(total: torch.Tensor, rows: torch.Tensor) -> None:
    """Add X^T X to the upper triangle of `total`, which is symmetric; what is below it means nothing.

    Products of a few thousand rows are taken in the rows' precision, float32 at least, and summed in that of `total`.

    Args:
        total: (..., d, d) float64.
        rows: X (..., n, d).
    """
    import torch

    for piece in rows.split(ROWS, dim=-2):
        piece = piece.to(torch.promote_types(piece.dtype, torch.float32))
        for start in range(0, total.shape[-1], BLOCK):
            block = slice(start, start + BLOCK)
            total[..., block, start:] += piece[..., block].mT @ piece[..., start:]


def patches(
    image: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> torch.Tensor:
    """The rows that a convolution is linear in, of whole maps with their padding. Arguments of F.conv2d.

    Returns:
        (B * places, C * kh * kw), or (groups, B * places, C / groups * kh * kw) if there are several groups.
    """
    from torch.nn import functional as F

    kernel = weight.shape[-2:]
    if isinstance(padding, str):
        steps = dilation if isinstance(dilation, tuple) else (dilation, dilation)
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(steps, kernel, strict=True)]
        image = F.pad(image, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
        padding = 0
    columns = F.unfold(image, kernel, dilation=dilation, padding=padding, stride=stride)  # (B, C * kh * kw, places)
    rows = columns.unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    return rows if groups > 1 else rows[0]


def window(image: torch.Tensor, kernel: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """The authors' crop: a random window of three by three kernels, one for all images; none of narrower maps.

    Args:
        image: (B, C, H, W).
        kernel: height and width.
        generator: draws the place.
    """
    import torch

    if image.shape[-1] <= 3 * kernel[1]:
        return image
    for axis, k in ((-2, kernel[0]), (-1, kernel[1])):
        size = min(3 * k, image.shape[axis])
        start = torch.randint(image.shape[axis] - size + 1, (), generator=generator)
        image = image.narrow(axis, int(start), size)
    return image


def _before_end(text: torch.Tensor) -> torch.Tensor:
    """(B, T) -> bool (B, T): up to the end of the text, which is the largest id, as in open_clip."""
    import torch

    return torch.arange(text.shape[1], device=text.device) <= text.argmax(dim=1, keepdim=True)
