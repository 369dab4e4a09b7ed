"""The built wheel, installed alone into an empty folder and used from outside the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from slugbench import __version__
from slugbench.bench.registry import FOLDERS

from .toys import ROOT, tracked_files

pytestmark = pytest.mark.slow


def pip(*arguments: str, cwd: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, "--no-deps", "--no-build-isolation"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of what git tracks: nothing that merely lies about can slip in, and the checkout stays clean."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for path in tracked_files():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, source / path, follow_symlinks=False)
    pip("wheel", "--wheel-dir", str(dist), ".", cwd=source)
    (built,) = dist.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("target")
    pip("install", "--no-index", "--target", str(target), str(wheel), cwd=target)
    return target


@pytest.fixture
def run(installed, tmp_path):
    """Runs a program that sees the installed wheel and this environment's libraries, but not the checkout."""

    def run(code: str) -> str:
        isolated = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(installed)!r})\n{code}"]
        done = subprocess.run(isolated, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_wheel_has_one_importable_name(installed):
    found = {path.name for path in installed.iterdir() if path.name != "bin"}
    assert found == {"slugbench", f"slugbench-{__version__}.dist-info"}


def test_tests_examples_and_documents_stay_at_home(wheel):
    parts = {name.split("/")[1] for name in zipfile.ZipFile(wheel).namelist() if name.startswith("slugbench/")}
    assert parts == {"__init__.py", "bench", *FOLDERS.values()}


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    """Also those that are not Python: suites, templates, shipped models."""
    folders = {"bench", *FOLDERS.values()}
    wanted = {f"slugbench/{path.as_posix()}" for path in tracked_files() if path.parts[0] in folders}
    assert wanted | {"slugbench/__init__.py"} == {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("slugbench/")}


def test_every_sub_package_imports_from_the_wheel(run, installed):
    names = ["slugbench", *(f"slugbench.{folder}" for folder in ("bench", *FOLDERS.values()))]
    code = f"import importlib\nfor name in {names!r}: print(importlib.import_module(name).__file__)"
    assert [Path(line).parent for line in run(code).split()] == [installed / name.replace(".", "/") for name in names]


def test_the_package_loads_its_parts_on_first_use(run):
    assert (
        run("import slugbench; print(slugbench.__version__, slugbench.bench.Request.__name__)") == f"{__version__} Request\n"
    )


def test_everything_registered_here_is_registered_there(run):
    from slugbench.bench.registry import load

    code = "from slugbench.bench.registry import load\nprint(sorted(load().entries), load().broken)"
    assert run(code).strip() == f"{sorted(load().entries)} []"


@pytest.mark.parametrize(("package", "folder"), [("bench", "suites"), ("tasks", "assets"), ("reports", "templates")])
def test_data_is_read_through_importlib_resources(run, package, folder):
    wanted = {
        path.relative_to(f"{package}/{folder}"): path for path in tracked_files() if path.parts[:2] == (package, folder)
    }
    if not wanted:
        pytest.skip(f"{package}/{folder} is empty")
    code = f"""
from importlib import resources
for name in {[path.as_posix() for path in wanted]!r}:
    print(len(resources.files("slugbench.{package}").joinpath("{folder}", *name.split("/")).read_bytes()))
"""
    assert [int(size) for size in run(code).split()] == [(ROOT / path).stat().st_size for path in wanted.values()]


def test_the_wheel_declares_types_licence_and_command(run, installed):
    assert (installed / "slugbench" / "bench" / "py.typed").is_file()
    info = installed / f"slugbench-{__version__}.dist-info"
    assert (info / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert "License-Expression: MIT" in (info / "METADATA").read_text()
    code = f"""
from importlib.metadata import distributions
(own,) = [d for d in distributions(path=[{str(installed)!r}]) if d.name == "slugbench"]
print(*((p.group, p.name, p.value) for p in own.entry_points))
"""
    assert run(code) == "('console_scripts', 'slugbench', 'slugbench.bench.cli:main')\n"


def test_the_installed_command_answers(run):
    if not (ROOT / "bench" / "cli.py").is_file():
        pytest.skip("there is no command line yet")
    out = run("import sys; sys.argv = ['slugbench', '--help']\nfrom slugbench.bench.cli import main\nsys.exit(main())")
    assert "run" in out and "list" in out
