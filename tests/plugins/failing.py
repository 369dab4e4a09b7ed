"""One method for every way to fail, and one that does nothing."""

import os
import signal
import time
from dataclasses import dataclass
from typing import ClassVar

from slugbench.bench import Model, Request, method

MEGABYTE = 2**20


@method("noop")
@dataclass(frozen=True)
class Noop:
    """Give the model back as it came."""

    def __call__(self, request: Request) -> Model:
        return request.model


@method("raises")
@dataclass(frozen=True)
class Raises:
    """Raise an exception: `failed`."""

    def __call__(self, request: Request) -> Model:
        raise ArithmeticError("raised on purpose")


@method("hoards")
@dataclass(frozen=True)
class Hoards:
    """Take more and more memory: `oom`."""

    step_mb: int = 64
    most_mb: int = 16_000
    """Where it gives up if nobody stops it, lest it takes the machine down."""

    def __call__(self, request: Request) -> Model:
        hoard = []
        while self.step_mb * len(hoard) < self.most_mb:
            hoard.append(b"\1" * (self.step_mb * MEGABYTE))  # ones: pages of zeros are not there until they are written to
            time.sleep(0.01)  # so that a limit polled every 0.1 s is overshot by little
        raise AssertionError(f"{self.most_mb} MB taken and nobody minded")


@method("sleeps")
@dataclass(frozen=True)
class Sleeps:
    """Sleep past any limit: `timeout`."""

    seconds: float = 3600.0

    def __call__(self, request: Request) -> Model:
        time.sleep(self.seconds)
        return request.model


@method("kills_itself")
@dataclass(frozen=True)
class KillsItself:
    """End as by the system's out-of-memory killer or a fault in native code: `crashed`."""

    def __call__(self, request: Request) -> Model:
        os.kill(os.getpid(), signal.SIGKILL)
        return request.model


@method("nans")
@dataclass(frozen=True)
class Nans:
    """Return a model with weights that are no numbers: `invalid`."""

    expected_failures: ClassVar[dict[str, str]] = {
        "test_methods_return_a_finite_model_in_eval_mode": "on purpose",
        "test_methods_draw_from_the_requests_generator_alone": "NaN equals nothing, not even itself",
    }

    def __call__(self, request: Request) -> Model:
        import torch

        with torch.no_grad():
            next(request.model.parameters()).fill_(float("nan"))
        return request.model
