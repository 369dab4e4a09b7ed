"""Reports: the table in, files out; and the functions that draw their figures, for figures of one's own (see `plots`)."""

from typing import Any

PLOTS = (
    "NothingToDraw",
    "best_of_k",
    "critical_difference",
    "differences",
    "layer_map",
    "look",
    "profile",
    "quality_cost",
    "quality_costs",
    "relearning",
    "style",
    "trade_off",
)


def __getattr__(name: str) -> Any:
    """Load the figure functions on first use, since pandas comes with them."""
    if name in PLOTS:
        from . import plots

        return getattr(plots, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
