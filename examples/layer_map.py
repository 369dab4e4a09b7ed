"""Draws where SLUG would edit: `python examples/layer_map.py identities hugo-alder layers.pdf`.

Every layer by the importance and the alignment of its gradients at the original weights, and each tower's Pareto front.
"""

import sys
from pathlib import Path

import pandas as pd

from slugbench.bench.registry import load
from slugbench.methods.slug import Slug
from slugbench.reports import layer_map, style


def scores_of(task: str, request: str, base_seed: int = 0) -> pd.DataFrame:
    """A row a layer; of a request with several targets, the first one's."""
    trial = load(kinds=("task",)).create("task", task).build(request, base_seed)
    found: list[pd.DataFrame] = []

    def noted(scores: pd.DataFrame) -> list[str]:
        found.append(scores)
        return []  # no layer is to be searched

    Slug().edits(trial.request, choose=noted)
    return found[0]


def main(task: str, request: str, path: Path) -> None:
    """Write the figure in the format of the path's ending."""
    with style():
        layer_map(scores_of(task, request)).figure.savefig(path)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
