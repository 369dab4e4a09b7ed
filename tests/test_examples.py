"""The examples that are programs run on what ships."""

import importlib.util

from slugbench.methods.slug import layers_by_tower
from slugbench.tasks.identities import Identities

from .toys import ROOT


def test_the_layer_map_has_every_layer_that_slug_may_edit(tmp_path):
    spec = importlib.util.spec_from_file_location("layer_map", ROOT / "examples" / "layer_map.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    scores = example.scores_of("identities", "hugo-alder")
    request = Identities().build("hugo-alder", 0).request
    towers = layers_by_tower(request.objective.weights(request.model))
    assert sorted(zip(scores["tower"], scores["layer"], strict=True)) == sorted(
        (tower, layer) for tower, layers in towers.items() for layer in layers
    )
    example.main("identities", "hugo-alder", tmp_path / "layers.svg")
    assert (tmp_path / "layers.svg").read_text().count("<use") >= len(scores)  # a point each
