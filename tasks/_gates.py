"""Acceptance gates with a limit below, above, or on both sides, as every embedded task states them."""

from __future__ import annotations

from typing import SupportsFloat

from slugbench.bench import Gate


def at_least(name: str, value: SupportsFloat, limit: float) -> Gate:
    """A gate with a lower limit."""
    return Gate(name, float(value), f"at least {limit}", float(value) >= limit)


def at_most(name: str, value: SupportsFloat, limit: float) -> Gate:
    """A gate with an upper limit."""
    return Gate(name, float(value), f"at most {limit}", float(value) <= limit)


def within(name: str, value: SupportsFloat, low: float, high: float) -> Gate:
    """A gate with both."""
    return Gate(name, float(value), f"{low} to {high}", low <= float(value) <= high)
