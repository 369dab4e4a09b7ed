"""What is recorded of where rows were made."""

from pathlib import Path

from slugbench.bench.provenance import shared_form


def test_a_recorded_command_does_not_say_where_somebodys_folders_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plugin = str(tmp_path.parent / "mine.py")
    given = ["run", "quick", "--out", str(tmp_path / "runs" / "one"), "--plugin", plugin, "slug:a=1", "../up"]
    shared = ["run", "quick", "--out", str(Path("runs") / "one"), "--plugin", "mine.py", "slug:a=1", "../up"]
    assert [*map(shared_form, given)] == shared
