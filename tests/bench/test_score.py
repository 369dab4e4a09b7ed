"""`slugbench score`: images made elsewhere give the table and reports that a run gives."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from slugbench.bench.cli import main

from ..canvas_files import INPUT, SEED, SPEC, classifiers, images, small_input, write_answer_set  # noqa: F401 - fixtures
from ..toys import TOY_TASK, restored_registry

pytestmark = pytest.mark.usefixtures("small_input", "cache")
METRICS = ["--metrics", "canvas_accuracy"]


def score(images, classifiers, out, *arguments, target="Van_Gogh"):
    folders = ["--images", str(images), "--classifiers", str(classifiers), "--out", str(out)]
    return main(["score", SPEC, "--target", target, *folders, "--threads", "1", *arguments])


def test_a_folder_of_images_becomes_a_table_a_run_file_and_reports(images, classifiers, tmp_path, capsys):
    assert score(images, classifiers, tmp_path / "out", "--name", "theirs") == 0
    frame = pd.read_parquet(tmp_path / "out" / "table.parquet")
    assert set(frame.task) == {"unlearncanvas"} and set(frame.method) == {"theirs"} and set(frame.status) == {"ok"}
    assert frame.note.str.contains("raised").sum() == 0, "metrics that do not apply have to say so, not to break"
    print(frame[["metric","value","ci_low","ci_high","chance","n_images","n_units","note"]].to_string())
    out = capsys.readouterr().out
    print(out)
    assert 0
