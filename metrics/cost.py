"""What a method spent, as its meter read it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from slugbench.bench import Cost, Outcome, Value, metric

UNITS = {
    "t_prepare": "s",
    "t_search": "s",
    "t_apply": "s",
    "t_total": "s",
    "n_forget_read": "samples",
    "n_retain_read": "samples",
    "n_evals": "evals",
    "peak_device_bytes": "bytes",
    "peak_device_reserved_bytes": "bytes",
    "peak_rss_bytes": "bytes",
    "bytes_delta": "bytes",
    "energy_j": "J",
}


@metric("cost")
@dataclass(frozen=True)
class Spent:
    """Seconds, samples read, evaluations, bytes and joules; null with a reason where unknown, never 0."""

    def __call__(self, outcome: Outcome) -> list[Value]:
        """One value for every field of `Cost`; none for a model that no method made."""
        cost = outcome.cost
        if cost is None:
            return []
        names = [f.name for f in fields(Cost) if f.name != "notes"]
        return [Value(name, getattr(cost, name), UNITS[name], "lower", note=_note(cost, name)) for name in names]


def _note(cost: Cost, name: str) -> str:
    unknown = "" if getattr(cost, name) is not None else "not measured"
    return cost.notes.get(name, unknown)
