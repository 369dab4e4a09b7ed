"""What tests share: the checkout, toy plug-ins, and a registry that forgets what a test taught it.

Test modules import it relatively: `from .toys import ...`, from a sub-folder `from ..toys import ...`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from slugbench.bench.registry import PACKAGE, REGISTRY, Registry, load
from slugbench.bench.types import Trial

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
TOY_TASK = ROOT / "tests" / "plugins" / "toy_task.py"
"""The plug-in with the task `toy`: requests `dev tune single joint sealed samples`, base seeds 0 and 1."""
FAILING = ROOT / "tests" / "plugins" / "failing.py"
"""The plug-in with the methods `noop raises hoards sleeps kills_itself nans`."""
MISBEHAVING = ROOT / "tests" / "plugins" / "misbehaving.py"
"""The plug-in with methods and a metric that break rules of the conformance tests, each of which has to notice."""
EXAMPLE = ROOT / "examples" / "my_method.py"
FAILURES = {"raises": "failed", "hoards": "oom", "sleeps": "timeout", "kills_itself": "crashed", "nans": "invalid"}
"""The method of each way to fail, and the status its cell gets."""


@contextlib.contextmanager
def restored_registry() -> Iterator[Registry]:
    """The process's registry; what is registered inside, and how it was imported, is forgotten at the end."""
    load()  # first: our own definitions register once a process and would be forgotten for good
    entries, broken, path = dict(REGISTRY.entries), list(REGISTRY.broken), list(sys.path)
    imported = _take_plugins()  # or a file imported before would be found imported, and register nothing
    try:
        yield REGISTRY
    finally:
        REGISTRY.entries, REGISTRY.broken, sys.path[:] = entries, broken, path
        _take_plugins()
        sys.modules.update(imported)


def _take_plugins() -> dict[str, ModuleType]:
    """Take all plug-in files out of `sys.modules`."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith(f"{PACKAGE}_plugin_")}


def toy_trial(request_id: str = "single", base_seed: int = 0, *, seed: int = 0, **params: Any) -> Trial:
    """A fresh trial of the toy task, its request seeded as the runner does it."""
    import torch

    with restored_registry() as registry:
        registry.load_plugin(str(TOY_TASK))
        trial = registry.create("task", "toy", params).build(request_id, base_seed)
    return replace(trial, request=replace(trial.request, generator=torch.Generator().manual_seed(seed)))


def toy_frame(*, statuses: tuple[str, ...] = ("ok",)) -> pd.DataFrame:
    """A table as the runner writes it: two requests, an oracle and an original among five methods, one failed cell per
    further status."""
    import pandas as pd

    from slugbench.bench import Row

    facts = {"suite": "toy", "task": "toy", "task_params": "{}", "base_seed": 0, "method_params": "{}", "method_seed": 0}
    facts |= {"pool": "test", "device": "cpu", "threads": 1, "concurrent": False, "provenance": "0" * 64}
    facts |= {"started": "2026-01-02T03:04:05+00:00"}
    forget = {"oracle": 0.0, "original": 0.95, "raises": 0.5, "noop": 0.9, "nans": 0.1}
    rows = []
    for request, target in (("single", '["blob2"]'), ("dev", '["blob0"]')):
        for method, value in forget.items():
            cell = {**facts, "cell": f"{request}-{method}", "request": request, "targets": target, "method": method}
            scores = {
                "acc_forget": (value, "oracle"),
                "acc_retain": (1 - value / 4, "higher"),
                "t_apply": (1 + value, "lower"),
            }
            for metric, (score, better) in scores.items():
                interval = {"ci_low": score - 0.1, "ci_high": score + 0.1, "n_images": 24, "n_units": 1}
                measured = {"metric": metric, "value": score, "better": better, "unit": "s" if metric == "t_apply" else ""}
                reference = (
                    {} if metric == "t_apply" else {"oracle_mean": 0.5, "oracle_sd": 0.01, "chance": 0.125, **interval}
                )
                rows.append(Row(**cell, status="ok", **measured, **reference))
    for status in statuses:
        if status != "ok":
            cell = {
                **facts,
                "cell": f"joint-{status}",
                "request": "joint",
                "targets": '["blob4", "blob5"]',
                "method": "noop",
            }
            rows.append(Row(**cell, status=status, error=f"ArithmeticError: {status} on purpose"))
    return pd.DataFrame([vars(row) for row in rows], columns=list(Row.columns()))


@contextlib.contextmanager
def files_no_longer_than(n_bytes: int) -> Iterator[None]:
    """Inside, the system refuses to write further into any file of this process, as where a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run_python(code: str, *, cwd: Path | None = None, **environment: str) -> str:
    """Standard output of a program in a fresh interpreter; its traceback fails the test."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def tracked_files() -> list[Path]:
    """The files of this checkout that git knows or would add, relative to `ROOT`; what it ignores is left out."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return sorted({Path(name) for name in names if name and (ROOT / name).exists()})
