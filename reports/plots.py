"""Figures for papers, one function each: rows of the table in, matplotlib axes out.

    from slugbench.bench.frame import read_run
    from slugbench.reports import style, trade_off

    rows, run = read_run("runs/standard")
    with style():
        ax = trade_off(rows[(rows["task"] == "identities") & rows["request"].str.startswith("joint")])
    ax.figure.savefig("trade-off.pdf")

Each takes rows of one board (one task, one kind of request, one device) or a `tables.Board`, and draws into `ax`, or into
a figure of its own at the width of a column (3.3 in). `style` sets fonts of 7 to 9 points; without it yours are used. A
name has the same colour and marker everywhere (`looks.look`); hollow marks are controls and methods with unfinished
cells. Names stand beside their marks where that fits, else in a legend below.

    trade_off             forgetting against retaining, with the front of methods that none beats on both
    quality_cost          distance to the oracle against time, memory or any other cost
    relearning            forget accuracy over steps of fine-tuning on the forgotten, beside the oracle's
    differences           heat map, methods x requests, of a metric less the oracle's
    profile               every quality metric of every method, with the oracle's band; makes its own figure
    critical_difference   mean ranks, and which methods a test does not tell apart
    layer_map             SLUG's layers: importance against alignment, with each tower's front
    best_of_k             tuning: what k configurations give; makes its own figure

What cannot be drawn raises `NothingToDraw`, whose text says why.
"""

from ._curves import best_of_k, relearning
from ._grids import critical_difference, differences, profile
from ._layout import style
from ._points import layer_map, memory_of, quality_cost, quality_costs, trade_off
from ._subject import NothingToDraw
from .looks import look

__all__ = [
    "NothingToDraw",
    "best_of_k",
    "critical_difference",
    "differences",
    "layer_map",
    "look",
    "memory_of",
    "profile",
    "quality_cost",
    "quality_costs",
    "relearning",
    "style",
    "trade_off",
]
