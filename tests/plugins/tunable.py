"""Methods with a space of parameters: one with a best configuration planted in it, and others that make tuning stumble."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from slugbench.bench import Model, Request, method


@method("fades")
@dataclass(frozen=True)
class Fades:
    """Never name the targets again where `shift` is large; shrink what tells the others apart by `spill`.

    Nothing is better than shift=100, spill=0, and none of the others of the space is as good.
    """

    shift: float = 0.0
    spill: float = 0.5

    space: ClassVar[Mapping[str, tuple]] = {"shift": (0.0, 100.0), "spill": (0.0, 0.5, 1.0)}

    def __call__(self, request: Request) -> Model:
        import torch

        output = request.model.get_submodule("output")
        with torch.no_grad():
            for name in request.targets:
                output.bias[int(name.removeprefix("blob"))] -= self.shift
            output.weight *= 1 - self.spill
        return request.model


@method("stumbles")
@dataclass(frozen=True)
class Stumbles:
    """Fail in one of three ways, or do nothing."""

    how: Literal["raise", "nan", "crash", "not"] = "raise"

    space: ClassVar[Mapping[str, tuple]] = {"how": ("nan", "crash", "not")}

    def __call__(self, request: Request) -> Model:
        import torch

        if self.how == "raise":
            raise ArithmeticError("raised on purpose")
        if self.how == "crash":
            os.abort()
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


@method("wide")
@dataclass(frozen=True)
class Wide:
    """Do nothing, in 25 ways."""

    a: int = 0
    b: float | None = None

    space: ClassVar[Mapping[str, tuple]] = {"a": (0, 1, 2, 3, 4), "b": (None, 0.1, 0.2, 0.3, 0.4)}

    def __call__(self, request: Request) -> Model:
        return request.model
