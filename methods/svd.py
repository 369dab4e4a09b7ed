"""Deep Unlearning: take out of every layer the input directions that only what is to be forgotten uses.

No gradient is taken and nothing is trained. The paper decomposes stored activations by SVD; here the same projections
come from their Gram matrices, which are summed up batch by batch (the two agree: see the tests).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from pydantic import PositiveFloat, PositiveInt

from slugbench.bench import Batch, Model, Request, Split, method

from ._common import Allowance, Best, generator_of

if TYPE_CHECKING:
    import torch

ALPHA_RETAIN = (10.0, 30.0, 100.0, 300.0, 1000.0)
ALPHA_FORGET = (1.0, 3.0, 10.0, 30.0, 100.0)
"""The grid of the authors' tuning script."""

BATCH = 128


@method("svd")
@dataclass(frozen=True)
class DeepUnlearning:
    """W <- W (I - Mf + Mr Mf) in every linear and convolutional layer; M = U diag(a r / ((a - 1) r + 1)) U^T of its inputs.

    U and r are the principal directions of the layer's inputs and the share of their power in each, for samples to
    forget (Mf) and to keep (Mr); a scales how soon a direction counts as used. Biases and norms stay as they are. All
    inputs are those of the original model. The pair of alphas is chosen on validation data from the authors' grid,
    with the unmodified model as a candidate.

    On CLIP it is the image tower that is projected: the text tower is the head of its zero-shot classifier, and
    `both` projects it, too. Packed attention weights share one input space for queries, keys and values.

    References:
        Kodge et al., Deep Unlearning: Fast and Efficient Gradient-free Class Forgetting, 2024, equations 1 to 3.
    """

    samples: PositiveInt = 900  # of each split, drawn at random; the authors: the first ones, 900 for ten classes
    alpha_retain: PositiveFloat | None = None  # None: chosen from the grid
    alpha_forget: PositiveFloat | None = None
    both: bool = False

    def __call__(self, request: Request) -> Model:
        """The projected model."""
        model, allowance, generator = request.model, Allowance(request), generator_of(request)
        request.progress("prepare")
        towers = request.objective.weights(model)
        names = (
            towers["vision"]
            if "vision" in towers and not self.both
            else [name for tower in towers.values() for name in tower]
        )
        spaces = Inputs(model, names, text=towers.get("text", ()))
        grams = [
            spaces.grams(request, self._draw(allowance, split, generator)) for split in (request.retain, request.forget)
        ]
        original = {name: model.get_parameter(name).detach().clone() for name in grams[0].keys() & grams[1].keys()}

        def project(alpha_retain: float, alpha_forget: float) -> None:
            for name, weight in original.items():
                keep, drop = projection(grams[0][name], alpha_retain), projection(grams[1][name], alpha_forget)
                projected = spaces.projected(name, weight, m_forget=drop, m_retain=keep)
                model.get_parameter(name).data.copy_(projected)

        best = Best[tuple[float, float]](request)
        grid = list(product(self._grid(self.alpha_retain, ALPHA_RETAIN), self._grid(self.alpha_forget, ALPHA_FORGET)))
        if allowance.evals:
            best.offer(allowance.validate(model), (0.0, 0.0))  # no projection at all
        for done, pair in enumerate(grid):
            request.progress("search", done, len(grid))
            if allowance.evals < 2:
                break
            project(*pair)
            best.offer(best.look(allowance), pair)
        request.progress("apply")
        for name, weight in original.items():
            model.get_parameter(name).data.copy_(weight)
        if best.candidate and best.candidate != (0.0, 0.0):
            project(*best.candidate)
        return model.eval()

    def _draw(self, allowance: Allowance, split: Split, generator: torch.Generator) -> Iterator[Batch]:
        left = self.samples
        for batch in allowance.batches(split, min(BATCH, self.samples), generator):
            yield {name: column[:left] for name, column in batch.items()}
            left -= len(batch["index"])
            if left <= 0:
                return

    def _grid(self, given: float | None, grid: tuple[float, ...]) -> tuple[float, ...]:
        return grid if given is None else (given,)


# ---------------------------------------------------------------- formulas


def projection(gram: torch.Tensor, alpha: float) -> torch.Tensor:
    """M = alpha g ((alpha - 1) g + I)^-1 with g = C / tr C, which is U diag(alpha r / ((alpha - 1) r + 1)) U^T.

    Args:
        gram: (..., d, d), C = X^T X of inputs X (n, d), neither centred nor normalised.
        alpha: above 0; a direction that holds the share r = 1 / (alpha + 1) of the power is weighted with one half.

    Returns:
        (..., d, d) float64, symmetric, eigenvalues in [0, 1]; zero where there was no input at all.
    """
    import torch

    power = gram.double().diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    g = gram.double() / power.clamp_min(torch.finfo(torch.float64).tiny)
    m = torch.linalg.solve((alpha - 1) * g + torch.eye(g.shape[-1], dtype=g.dtype, device=g.device), alpha * g)
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


# ---------------------------------------------------------------- what goes into the layers


class Inputs:
    """The inputs of weights, wherever they are used: modules, packed attention and bare parameters alike.

    Functions are watched instead of modules: `nn.MultiheadAttention` never calls its projections as modules, and
    CLIP's `visual.proj` and `text_projection` have none.

    Args:
        model: whose weights are watched.
        names: which parameters; those that no linear map, convolution or attention uses are left alone.
        text: names whose inputs are tokens; what follows the end of a text is padding and does not count.
    """

    def __init__(self, model: Model, names: list[str], *, text: Any = ()) -> None:
        self.model = model
        self.name_of = {id(model.get_parameter(name)): name for name in names}
        self.text = set(text)
        self.right: set[str] = set()
        """Bare parameters, applied as x @ W."""

    def grams(self, request: Request, batches: Iterator[Batch]) -> dict[str, torch.Tensor]:
        """name -> sum over samples of X^T X, (d, d) float64, or (groups, d, d) for a grouped convolution."""
        import torch

        totals: dict[str, torch.Tensor] = {}
        for batch in batches:
            with torch.no_grad(), self._watching(totals, batch):
                request.objective.loss(self.model, batch)  # whatever runs the model on a batch would do
        return totals

    def projected(self, name: str, weight: torch.Tensor, *, m_forget: torch.Tensor, m_retain: torch.Tensor) -> torch.Tensor:
        """The projected weight, whatever its shape and side."""
        if name in self.right:
            return project_weight(weight.T, m_forget, m_retain).T
        flat = weight.flatten(1)
        if m_forget.ndim == 3:  # one block of outputs a group
            flat = flat.unflatten(0, (len(m_forget), -1))
        return project_weight(flat, m_forget, m_retain).reshape(weight.shape)

    @contextmanager
    def _watching(self, totals: dict[str, torch.Tensor], batch: Batch) -> Iterator[None]:
        import torch
        from torch.nn import functional as F
        from torch.overrides import TorchFunctionMode

        def add(weight: Any, rows: torch.Tensor) -> None:
            """Rows (..., d), or (groups, n, d)."""
            name = self.name_of.get(id(weight))
            if name is None:
                return
            if name in self.text and rows.shape[:2] == batch["text"].shape:
                rows = rows[_before_end(batch["text"])]
            x = rows if weight.ndim == 4 else rows.reshape(-1, rows.shape[-1])
            gram = (x.mT @ x).double()
            totals[name] = totals[name] + gram if name in totals else gram

        def attention(*args: Any, **kwargs: Any) -> Any:
            call = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs).arguments
            weight, bias = call["out_proj_weight"], call["out_proj_bias"]
            # with the identity for an output projection attention gives what goes into that projection
            heads, maps = F.multi_head_attention_forward(
                **{**call, "out_proj_weight": torch.eye(len(weight)).to(weight), "out_proj_bias": None}
            )
            tokens_first = call["query"].ndim == 3  # (T, B, d), as this function has it
            if call["query"] is call["key"] is call["value"]:  # else queries and keys have no space in common
                add(call["in_proj_weight"], call["query"].transpose(0, 1) if tokens_first else call["query"])
            add(weight, heads.transpose(0, 1) if tokens_first else heads)
            return F.linear(heads, weight, bias), maps

        class Watch(TorchFunctionMode):
            def __torch_function__(watch, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                kwargs = kwargs or {}
                if func is F.multi_head_attention_forward:
                    return attention(*args, **kwargs)
                if func is F.linear:
                    add(args[1], args[0])
                elif func is F.conv2d and id(args[1]) in self.name_of:
                    add(args[1], patches(*args, **kwargs))
                elif func in (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__):
                    if id(args[1]) in self.name_of:
                        self.right.add(self.name_of[id(args[1])])
                    add(args[1], args[0])
                return func(*args, **kwargs)

        with Watch():
            yield


def patches(
    image: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> torch.Tensor:
    """(B, C, H, W) -> (groups, B * places, C / groups * kh * kw): a convolution is linear in these. Arguments of F.conv2d.

    Whole maps with their padding. The authors crop the maps at random first, and so see borders that no layer sees.
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


def _before_end(text: torch.Tensor) -> torch.Tensor:
    """(B, T) -> bool (B, T): up to the end of the text, which is the largest id, as in open_clip."""
    import torch

    return torch.arange(text.shape[1], device=text.device) <= text.argmax(dim=1, keepdim=True)
