"""What `run.json` says, read with a fallback for every key: reports also serve runs of other versions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from slugbench.bench.frame import normalised
from slugbench.bench.types import STATUSES

from .glossary import BETTER, about, number, position
from .tables import Board

Runs = Sequence[Mapping[str, Any]]


class Origin(NamedTuple):
    """One provenance: where and by what cells were measured."""

    digest: str
    n_cells: int
    facts: tuple[tuple[str, str], ...]
    """(name, text) pairs, nested ones flattened."""


class Term(NamedTuple):
    """A metric of the glossary."""

    name: str
    title: str
    text: str
    direction: str
    chance: str
    unit: str


def suites(frame: pd.DataFrame, runs: Runs) -> str:
    """The suite's name, or several."""
    names = [str(s["name"]) for run in runs if isinstance(s := run.get("suite"), Mapping) and s.get("name")]
    names += [str(run["suite"]) for run in runs if isinstance(run.get("suite"), str)]
    return ", ".join(dict.fromkeys(names)) or ", ".join(sorted(set(frame["suite"].dropna()))) or "unnamed"


def dates(frame: pd.DataFrame) -> str:
    """The day of the first and of the last cell; from the table, so the same table gives the same report."""
    days = sorted({str(s)[:10] for s in frame["started"].dropna()})
    return "" if not days else days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def counts(frame: pd.DataFrame) -> list[tuple[str, int]]:
    """(status, cells) pairs in the order of `STATUSES`, those that occur."""
    found = frame.drop_duplicates("cell")["status"].value_counts()
    return [(s, int(found[s])) for s in STATUSES if s in found]


def fingerprint(frame: pd.DataFrame) -> str:
    """Twelve hexadecimal digits of the table's SHA-256, whatever the order of its rows."""
    rows = normalised(frame).sort_values(["cell", "metric"], na_position="first")
    return hashlib.sha256(rows.to_csv(index=False).encode()).hexdigest()[:12]


def gates(runs: Runs) -> list[dict[str, Any]]:
    """Every gate of every run, the same one once, with a printable value."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for run in runs:
        for gate in run.get("gates") or ():
            value = gate.get("value")
            text = number(float(value)) if isinstance(value, int | float) else "—"
            line: dict[str, Any] = {k: str(gate.get(k) or "") for k in ("task", "when", "name", "limit", "note")}
            line |= {"ok": bool(gate.get("ok")), "value": text}
            found.setdefault(tuple(map(str, line.values())), line)
    return list(found.values())


def origins(frame: pd.DataFrame, runs: Runs) -> list[Origin]:
    """Provenance by digest, also of digests that no `run.json` explains."""
    known: dict[str, Any] = {}
    for run in runs:
        known |= run.get("provenance") or {}
    used = frame.drop_duplicates("cell")["provenance"].dropna().value_counts().sort_index()
    return [Origin(str(d), int(n), tuple(_flat(known.get(str(d)) or {}))) for d, n in used.items()]


def commands(frame: pd.DataFrame, runs: Runs) -> list[str]:
    """The command lines that made the table; one from the suite's name where none is recorded."""
    lines = [dict(o.facts).get("command", "") for o in origins(frame, runs)]
    return list(dict.fromkeys(filter(None, lines))) or [f"slugbench run {suites(frame, runs)} --out DIR"]


def version(frame: pd.DataFrame, runs: Runs) -> str:
    """The version of slugbench that measured, or nothing."""
    found = [dict(o.facts).get("versions.slugbench", "") for o in origins(frame, runs)]
    return ", ".join(dict.fromkeys(filter(None, found)))


def citation(frame: pd.DataFrame, runs: Runs) -> str:
    """What to name so that others find the same numbers."""
    software = f"slugbench {version(frame, runs)}".strip()
    return f"{software}, suite {suites(frame, runs)}, {dates(frame) or 'undated'}, table {fingerprint(frame)}"


def glossary(boards: Sequence[Board]) -> list[Term]:
    """Every metric of the boards, once."""
    terms: dict[str, Term] = {}
    chances: dict[str, set[str]] = {}
    for board in boards:
        for c in board.columns:
            known = about(c.name)
            if c.chance is not None:
                chances.setdefault(c.name, set()).add(number(c.chance))
            terms[c.name] = Term(c.name, known.title, known.text, BETTER.get(c.better, c.better), "", c.unit)
    made = [t._replace(chance=", ".join(sorted(chances.get(name, ())))) for name, t in terms.items()]
    return sorted(made, key=lambda t: position(t.name))


def _flat(facts: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(facts, Mapping):
        return [pair for key in facts for pair in _flat(facts[key], f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(facts, list | tuple):
        return [(prefix, " ".join(map(str, facts)))]
    return [(prefix, "—" if facts is None else str(facts))]
