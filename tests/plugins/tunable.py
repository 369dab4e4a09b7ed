"""Methods with a space of parameters: one whose best configuration is planted, and others that make tuning stumble."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from slugbench.bench import Model, Request, method


@method("fades")
@dataclass(frozen=True)
class Fades:
    """Shrink what speaks for the targets, and everything else as well where `spill` says so.

    The fewest mistakes are made with share=1, spill=0, which are not the defaults.
    """

    share: float = 0.25
    spill: float = 0.5
    fail_at: float | None = None
    """The `share` at which to fail."""

    space: ClassVar[Mapping[str, tuple]] = {"share": (0.0, 0.25, 0.5, 1.0), "spill": (0.0, 0.5, 1.0)}

    def __call__(self, request: Request) -> Model:
        import torch

        if self.share == self.fail_at:
            raise ArithmeticError("failed on purpose")
        label = torch.tensor([int(name.removeprefix("blob")) for name in request.targets])
        output = request.model.output
        with torch.no_grad():
            output.bias[label] -= 100 * self.share
            output.weight *= 1 - self.spill
        return request.model


@method("stumbles")
@dataclass(frozen=True)
class Stumbles:
    """Fail, crash the process, or give weights that are no numbers, unless it is told not to."""

    how: Literal["raise", "nan", "not"] = "raise"

    space: ClassVar[Mapping[str, tuple]] = {"how": ("nan", "not")}

    def __call__(self, request: Request) -> Model:
        import torch

        if self.how == "raise":
            raise ArithmeticError("raised on purpose")
        if self.how == "nan":
            with torch.no_grad():
                next(request.model.parameters()).fill_(float("nan"))
        return request.model


@method("declines")
@dataclass(frozen=True)
class Declines:
    """Skip every request."""

    size: int = 1

    space: ClassVar[Mapping[str, tuple]] = {"size": (1, 2)}

    def skips(self, request: Request) -> str | None:
        return "it knows no blobs."

    def __call__(self, request: Request) -> Model:
        return request.model
