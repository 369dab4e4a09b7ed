"""The script behind docs/results/people.md, on a model of a few thousand weights."""

import importlib.util
import json
import os

import pandas as pd
import pytest

from slugbench.bench.registry import load

from .toys import ROOT

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture
def people(monkeypatch):
    """The script as a module, for a smaller ImageNet."""
    spec = importlib.util.spec_from_file_location("people", ROOT / "docs" / "people.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "OF_A_CLASS", 2)
    monkeypatch.setattr(module, "CLASSES", 12)
    return module


@pytest.mark.slow
def test_all_methods_finish_on_people_written_as_celeba_is(people, tmp_path):
    config, plugin, out = tmp_path / "tiny-people.json", tmp_path / "plugin.py", tmp_path / "people.md"
    config.write_text(json.dumps(TINY))
    plugin.write_text(f"import open_clip\nopen_clip.add_model_config({str(config)!r})\n")
    load([str(plugin)])
    command = ["--model", "tiny-people", "--plugin", str(plugin), "--work", str(tmp_path / "work"), "--out", str(out)]
    people.main([*command, "--threads", "1"])
    found = pd.read_parquet(tmp_path / "work" / "run" / "table.parquet").pivot(
        index="method", columns="metric", values="value"
    )
    assert found.loc["original", "fa@1"] == 1  # the projection was fitted on such pictures
    assert len([line for line in out.read_text().splitlines() if "| ok |" in line]) == len(people.METHODS)
    assert str(tmp_path) not in out.read_text()
    changed = os.stat(tmp_path / "work" / "weights.pt").st_mtime
    people.main(command)  # nothing is left to do
    assert os.stat(tmp_path / "work" / "weights.pt").st_mtime == changed
