"""The house stands as it was laid: layout, import direction, a light core, documented definitions, no machine's paths."""

from __future__ import annotations

import ast
import graphlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from slugbench.bench.registry import FOLDERS, PACKAGE, load

from .toys import FAILING, ROOT, TOY_TASK, restored_registry, run_python, tracked_files

TOP = {
    *("bench", "methods", "tasks", "metrics", "reports", "tests", "docs", "examples", ".ci"),
    *("__init__.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile", ".gitignore", ".gitattributes"),
}
HOUSE = ("bench", *FOLDERS.values())
LAYERS = {"types": 0, "errors": 0, "runner": 2, "commands": 3, "cli": 4, "__main__": 5}
"""Of the modules in `bench/`; all others are in layer 1. A module imports from its own layer and those below."""
HEAVY = (
    *("torch", "torchvision", "open_clip", "diffusers", "transformers", "timm", "safetensors.torch"),
    *("sklearn", "scipy", "statsmodels"),
)
"""Imported inside functions only."""
PRELOADED = f"{PACKAGE}.bench.preloaded"
"""The one exception: what the server that cells are forked from imports for all of them, by name; nobody imports it."""
TORCH = ("torch", "torchvision", "open_clip", "diffusers", "transformers")
"""Never imported by what does not compute: `--help`, `list`, `plan`, `report`."""


class Import(NamedTuple):
    """One imported module."""

    name: str
    line: int
    where: str
    """`top`, `function` or `typing` (under TYPE_CHECKING)."""


def modules(folder: str) -> dict[str, Path]:
    """Dotted name and file of every module of a folder of ours."""
    found = {}
    for path in tracked_files():
        if path.parts[0] == folder and path.suffix == ".py":
            parts = path.with_suffix("").parts
            found[".".join((PACKAGE, *parts[: -1 if parts[-1] == "__init__" else None]))] = ROOT / path
    return found


ALL = {name: path for folder in HOUSE for name, path in modules(folder).items()}


LIGHT = sorted(set(ALL) - {PRELOADED})


def imports(name: str, path: Path) -> Iterator[Import]:
    """Every import of a module, wherever it stands; `from . import x` is an import of `x` if that is a module."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node, where in _walk(ast.parse(path.read_text(encoding="utf-8")), "top"):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, where) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                full = f"{module}.{alias.name}"
                yield Import(full if full in ALL else module, node.lineno, where)


def _walk(node: ast.AST, where: str) -> Iterator[tuple[ast.AST, str]]:
    for child in ast.iter_child_nodes(node):
        inside = where
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside = "function"
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            inside = "typing"
        yield child, inside
        yield from _walk(child, inside)


def ours(name: str, path: Path) -> set[str]:
    """The modules of ours that a module imports."""
    return {found.name for found in imports(name, path) if found.name.split(".")[0] == PACKAGE}


def test_imports_are_read_wherever_they_stand(tmp_path):
    path = tmp_path / "probe.py"
    top = "from . import types\nfrom .errors import UsageError\n"
    path.write_text(top + "if TYPE_CHECKING:\n    import torch\ndef f():\n    import scipy.stats\n")
    assert set(imports("slugbench.bench.probe", path)) == {
        ("slugbench.bench.types", 1, "top"),
        ("slugbench.bench.errors", 2, "top"),
        ("torch", 4, "typing"),
        ("scipy.stats", 6, "function"),
    }


# ---------------------------------------------------------------- layout


def test_the_top_level_holds_nothing_else():
    assert {path.parts[0] for path in tracked_files()} <= TOP


def test_the_package_itself_holds_a_docstring_a_version_and_lazy_access():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    defined = {getattr(node, "name", None) or ast.unparse(getattr(node, "targets", [node])[0]) for node in tree.body}
    assert {"__version__", "__getattr__"} <= defined and len(tree.body) <= 4


@pytest.mark.parametrize("folder", FOLDERS.values())
def test_the_folders_have_no_sub_packages(folder):
    """One file a method: the folder scan looks no deeper."""
    assert all(path.parent == ROOT / folder or "assets" in path.parts for path in modules(folder).values())


def test_static_tools_see_the_import_name_through_links():
    linked = {path.name for path in (ROOT / ".ci" / "path" / PACKAGE).iterdir() if path.is_symlink() and path.exists()}
    assert linked == {"__init__.py", *HOUSE}


# ---------------------------------------------------------------- import direction


@pytest.mark.parametrize("name", ALL)
def test_imports_point_down(name):
    """`methods | tasks | metrics | reports -> bench`; the four know nothing of each other, nor does `bench` of them."""
    folder = name.split(".")[1]
    allowed = {"bench"} if folder == "bench" else {"bench", folder}
    wrong = {found for found in ours(name, ALL[name]) if len(found.split(".")) > 1 and found.split(".")[1] not in allowed}
    assert not wrong, f"{name} imports {', '.join(sorted(wrong))}; {folder}/ may import {' and '.join(sorted(allowed))}"


@pytest.mark.parametrize("name", modules("bench"))
def test_the_harness_is_layered(name):
    if name == f"{PACKAGE}.bench":
        return  # it re-exports for authors of plug-ins
    layer = LAYERS.get(name.split(".")[2], 1)
    for found in ours(name, ALL[name]) - {PACKAGE}:
        assert found != f"{PACKAGE}.bench", f"{name} imports through the package; name the module, or the two are a circle"
        assert LAYERS.get(found.split(".")[2], 1) <= layer, f"{name} imports {found}, which is above it"
        assert layer > 0, f"{name} imports {found}; the nouns import nothing of ours"


def test_no_two_modules_import_each_other_in_a_circle():
    graph = {name: ours(name, path) - {name} for name, path in ALL.items()}
    graphlib.TopologicalSorter(graph).prepare()  # a CycleError names the circle


# ---------------------------------------------------------------- a light core


@pytest.mark.parametrize("name", LIGHT)
def test_heavy_libraries_are_imported_inside_functions(name):
    banned = HEAVY if name.startswith(f"{PACKAGE}.reports") else (*HEAVY, "pandas")
    for found in imports(name, ALL[name]):
        heavy = any(found.name == library or found.name.startswith(f"{library}.") for library in banned)
        assert not heavy or found.where != "top", (
            f"{name}, line {found.line}: import {found.name} inside the function that needs it"
        )


def test_nothing_imports_what_is_preloaded():
    assert [name for name, path in ALL.items() if PRELOADED in ours(name, path)] == []


def test_importing_everything_else_of_ours_imports_no_torch():
    code = f"""
import importlib, json, sys
blame = {{}}
for name in {LIGHT!r}:
    before = set(sys.modules)
    importlib.import_module(name)
    blame |= {{library: name for library in {TORCH!r} if library in set(sys.modules) - before}}
print(json.dumps(blame))
"""
    assert json.loads(run_python(code)) == {}


def test_listing_tasks_and_their_requests_imports_no_torch():
    code = f"""
import sys
from slugbench.bench.registry import load
registry = load([{str(TOY_TASK)!r}, {str(FAILING)!r}])
for kind, name in registry.entries:
    registry.get(kind, name).summary, registry.get(kind, name).parameters()
for name in registry.names("task"):
    task = registry.create("task", name)
    task.requests(), task.wanted()
print([library for library in {TORCH!r} if library in sys.modules])
"""
    assert run_python(code) == "[]\n"


PLAN = ["plan", "quick", "--tasks", "toy", "--methods", "noop", "--plugin", str(TOY_TASK), "--plugin", str(FAILING)]


@pytest.mark.parametrize("command", [["--help"], ["list"], ["run", "--help"], PLAN], ids=lambda c: " ".join(c[:2]))
def test_commands_that_do_not_compute_import_no_torch(command, tmp_path):
    code = f"""
import sys
from slugbench.bench.cli import main
try:
    code = main({command!r})
except SystemExit as done:
    code = done.code
print("\\n", code or 0, [library for library in {TORCH!r} if library in sys.modules])
"""
    assert run_python(code, cwd=tmp_path, SLUGBENCH_CACHE=str(tmp_path)).splitlines()[-1] == " 0 []"


# ---------------------------------------------------------------- what is written


def test_everything_registered_is_documented():
    """The first line is what `list` shows."""
    with restored_registry() as registry:
        for entry in registry.entries.values():
            first = vars(entry.cls).get("__doc__") or ""
            written = first and not first.startswith(f"{entry.cls.__name__}(")  # what @dataclass fills in by itself
            assert written and entry.summary.endswith("."), (
                f"{entry.kind} {entry.name}: give it a docstring, a sentence first"
            )


@pytest.mark.parametrize("name", ALL)
def test_every_public_definition_has_a_docstring(name):
    tree = ast.parse(ALL[name].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{name} does not say what it is for"
    bare = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert not bare, f"{name}: no docstring on {', '.join(bare)}"


MACHINE = re.compile(r"(?<![\w.}$-])/(?:work|root|home|Users)/\w")
"""A path that is there on one machine only; not a URL's, nor one below a variable."""


def test_no_file_names_a_path_of_one_machine():
    found = []
    for path in tracked_files():
        if path.parts[:2] == (".ci", "path"):
            continue  # links to what is read anyway
        data = (ROOT / path).read_bytes()
        if b"\0" not in data[:8192]:
            lines = data.decode("utf-8").splitlines()
            found += [f"{path}:{i}: {line.strip()[:80]}" for i, line in enumerate(lines, 1) if MACHINE.search(line)]
    assert not found


def test_a_path_of_one_machine_is_told_from_others():
    for bad in ("open('/" + "home/ann/x')", "see /" + "root/x", "`/" + "work/shared`"):
        assert MACHINE.search(bad)
    for good in ("https://example.org/home/ann", "$HOME/work/x", "./work/x", "/usr/lib", "a/work/b"):
        assert not MACHINE.search(good)


def test_registered_definitions_come_from_the_folder_of_their_kind():
    for entry in load().entries.values():
        assert Path(inspect.getfile(entry.cls)).resolve().parent == ROOT / FOLDERS[entry.kind]
