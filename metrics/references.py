"""How many retrained models the values of a cell stand beside."""

from __future__ import annotations

from dataclasses import dataclass

from slugbench.bench import Outcome, Value, metric


@metric("references")
@dataclass(frozen=True)
class References:
    """The number of oracles behind `oracle_mean` and `oracle_sd`: a spread of three says less than one of eight."""

    def __call__(self, outcome: Outcome) -> list[Value]:
        """One value `n_oracles`, a whole number; an oracle in a method's place is not among its own."""
        return [Value("n_oracles", float(len(outcome.oracles)), "models", "higher")]
