"""Reports: the table in, files out; and the functions that draw their figures, for figures of one's own (see `plots`)."""

from typing import Any

PLOTS = (
    "NothingToDraw",
    "best_of_k",
    "critical_difference",
    "differences",
    "layer_map",
    "profile",
    "quality_cost",
    "quality_costs",
    "relearning",
    "trade_off",
)


def __getattr__(name: str) -> Any:
    """Load the figure functions on first use: pandas and more come with them."""
    if name in PLOTS:
        from . import plots

        return getattr(plots, name)
    if name == "style":
        from ._layout import style

        return style
    if name == "look":
        from .looks import look

        return look
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
