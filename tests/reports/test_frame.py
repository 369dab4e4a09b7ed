import json

import pandas as pd
import pytest

from slugbench.bench import Row, UsageError
from slugbench.bench.frame import merge, normalised, read_run


def write(folder, frame, run=None):
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(folder / "table.parquet")
    (folder / "run.json").write_text(
        json.dumps(run or {"schema": 1, "suite": {"name": "quick"}, "settings": {"threads": 1, "device": "cpu"}})
    )
    return folder


def test_a_run_comes_back_as_it_was_written(tmp_path, frame):
    read, run = read_run(write(tmp_path / "run", frame))
    assert list(read.columns) == list(Row.columns()) and len(read) == len(frame)
    assert run["suite"]["name"] == "quick"
    pd.testing.assert_frame_equal(read, normalised(frame))


def test_a_folder_that_is_no_run_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"is no run of slugbench: it has no run\.json"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["table.parquet", "run.json"])
def test_a_broken_file_is_refused(tmp_path, frame, name):
    write(tmp_path, frame)
    (tmp_path / name).write_bytes(b"PAR1 not really")
    with pytest.raises(UsageError, match="cannot be read"):
        read_run(tmp_path)


def test_another_schema_is_refused(tmp_path, frame):
    with pytest.raises(UsageError, match="schema 2; this version reads schema 1"):
        read_run(write(tmp_path / "a", frame.assign(schema=2)))
    with pytest.raises(UsageError, match="schema 9"):
        read_run(
            write(
                tmp_path / "b", frame, {"schema": 9, "suite": {"name": "quick"}, "settings": {"threads": 1, "device": "cpu"}}
            )
        )


def test_a_missing_column_and_an_unknown_status_are_named(frame):
    with pytest.raises(UsageError, match="lacks the columns ci_low"):
        normalised(frame.drop(columns="ci_low"))
    with pytest.raises(UsageError, match="holds the statuses fine"):
        normalised(frame.assign(status="fine"))


def test_merging_refuses_differing_schemas_and_nothing(frame):
    with pytest.raises(UsageError, match=r"schemas \[1, 2\], which cannot be merged"):
        merge([(frame, {}), (frame.assign(schema=2), {})])
    with pytest.raises(UsageError, match="no run to report on"):
        merge([])


def test_merging_keeps_a_cell_once_and_prefers_the_finished_one(made):
    failed = made.table(made.cells("digits", "3", "ga", status="oom", error="MemoryError: no"))
    done = made.table(
        made.cells(
            "digits", "3", "ga", metrics=[{"metric": "acc_forget", "value": 0.5}, {"metric": "acc_test", "value": 0.6}]
        )
    )
    merged, runs = merge([(failed, {"a": 1}), (done, {"b": 2}), (done, {})])
    assert list(merged["status"]) == ["ok", "ok"] and list(merged["value"]) == [0.5, 0.6]
    assert runs == [{"a": 1}, {"b": 2}, {}]
