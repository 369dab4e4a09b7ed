"""slugbench: how well do machine-unlearning methods forget, what do they keep, what leaks, and what does it cost.

Plug-in authors import from `slugbench.bench`; everything else is reached through the command `slugbench`.
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load a sub-package (`slugbench.bench`, ...) on first use, so that `import slugbench` costs nothing."""
    if name in {"bench", "methods", "tasks", "metrics", "reports"}:
        from importlib import import_module

        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
