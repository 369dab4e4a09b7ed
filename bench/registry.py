"""Finds methods, tasks, metrics, reports and importers, and turns `name:key=value` into one of them.

Three sources: our own folders (dropping a file is the registration), the entry-point group `slugbench` of installed
packages, and `--plugin FILE.py | package.module`. A source that does not load is remembered and reported, and never
stops the rest.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from .errors import UsageError

Kind = Literal["method", "task", "metric", "report", "importer"]
KINDS: tuple[Kind, ...] = ("method", "task", "metric", "report", "importer")
FOLDERS: dict[Kind, str] = {
    "method": "methods",
    "task": "tasks",
    "metric": "metrics",
    "report": "reports",
    "importer": "methods",  # of what a method's authors left
}
PACKAGE = __name__.split(".")[0]
T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Entry:
    """A registered definition."""

    kind: Kind
    name: str
    cls: type
    source: str
    """The file that defines it."""
    control: bool = False
    """A reference point that is never ranked."""
    sees: Literal["request", "trial"] = "request"
    """What a method is called with; only built-in controls may see the trial."""

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.cls) or "").split("\n")[0]

    def parameters(self) -> dict[str, Any]:
        """Field names and their defaults (`dataclasses.MISSING` where there is none)."""
        return {
            f.name: f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            for f in dataclasses.fields(self.cls)
        }


class Spec(NamedTuple):
    """A parsed `name:key=value,key=value`, whose values are still text; or a name with values."""

    name: str
    params: Mapping[str, Any]


class Broken(NamedTuple):
    """A plug-in that did not load."""

    source: str
    error: str


@dataclass
class Registry:
    """Everything registered in this process."""

    entries: dict[tuple[Kind, str], Entry] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """Register a definition; the same definition imported twice is accepted, a different one is not."""
        known = self.entries.get((entry.kind, entry.name))
        if known is not None and _text(known.cls) != _text(entry.cls):
            raise UsageError(
                f"two different {entry.kind}s are named '{entry.name}', in {known.source} and in {entry.source}; rename one."
            )
        self.entries.setdefault((entry.kind, entry.name), entry)

    def names(self, kind: Kind) -> list[str]:
        """The registered names of one kind, sorted."""
        return sorted(name for k, name in self.entries if k == kind)

    def get(self, kind: Kind, name: str) -> Entry:
        """The definition of that name, or a `UsageError` with the nearest names."""
        if (kind, name) in self.entries:
            return self.entries[kind, name]
        names = self.names(kind)
        raise UsageError(f"there is no {kind} '{name}'{did_you_mean(name, names)}; there is {', '.join(names) or 'none'}.")

    def create(self, kind: Kind, name: str, params: Mapping[str, Any] | None = None) -> Any:
        """An instance; text values are read by the field's type, and a refused one says why."""
        entry = self.get(kind, name)
        values = {key: self._convert(entry, key, value) for key, value in (params or {}).items()}
        try:
            return entry.cls(**values)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{kind} '{name}' refuses {_call(values)}: {error}") from error

    def _convert(self, entry: Entry, key: str, value: Any) -> Any:
        import pydantic

        known = [f.name for f in dataclasses.fields(entry.cls) if f.init]
        if key not in known:
            raise UsageError(
                f"{entry.kind} '{entry.name}' has no parameter '{key}'{did_you_mean(key, known)}; "
                f"it has {', '.join(known) or 'none'}."
            )
        hint = typing.get_type_hints(entry.cls, include_extras=True)[key]
        try:
            return pydantic.TypeAdapter(hint).validate_python(_null(value))
        except pydantic.ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise UsageError(
                f"{entry.kind} '{entry.name}' cannot take {key}={value}: {reason[0].lower()}{reason[1:]}."
            ) from error

    # ------------------------------------------------------------ sources

    def load_builtin(self, kinds: Iterable[Kind] = KINDS) -> None:
        """Import every module of our own folders of these kinds."""
        for folder in dict.fromkeys(FOLDERS[kind] for kind in kinds):
            package = importlib.import_module(f"{PACKAGE}.{folder}")
            for info in pkgutil.iter_modules(package.__path__):
                self._guard(f"{PACKAGE}.{folder}.{info.name}", importlib.import_module)

    def load_entry_points(self) -> None:
        """Import what installed packages name under the entry-point group `slugbench`."""
        for point in importlib.metadata.entry_points(group=PACKAGE):
            self._guard(point.value, lambda _: point.load())  # noqa: B023 - called at once

    def load_plugin(self, where: str) -> None:
        """Import a plug-in by file or by module name.

        Raises:
            UsageError: there is no such file or module, or executing it failed.
        """
        if is_file(where):
            _execute_file(Path(where))
            return
        try:
            importlib.import_module(where)
        except UsageError:
            raise
        except (Exception, SystemExit) as error:
            raise UsageError(f"plug-in {where} does not load: {_reason(error)}.") from error

    def _guard(self, source: str, load: Callable[[str], object]) -> None:
        try:
            load(source)
        except (Exception, SystemExit) as error:  # a foreign plug-in may fail in any way; `slugbench list` reports it
            self.broken.append(Broken(source, _reason(error)))


REGISTRY = Registry()


_loaded: set[Kind] = set()


def load(plugins: Iterable[str] = (), *, kinds: Iterable[Kind] = KINDS) -> Registry:
    """The process's registry with our own folders, installed plug-ins and the ones named; sources load once."""
    missing = [kind for kind in kinds if kind not in _loaded]
    if missing:
        REGISTRY.load_builtin(missing)
        if not _loaded:
            REGISTRY.load_entry_points()
        _loaded.update(missing)
    for plugin in plugins:
        REGISTRY.load_plugin(plugin)
    return REGISTRY


# ---------------------------------------------------------------- decorators


def method(name: str, *, control: bool = False, sees: Literal["request", "trial"] = "request") -> Callable[[T], T]:
    """Register a frozen dataclass with `__call__(self, request) -> model` as a method.

    Args:
        name: what users type; lower case, digits and underscores.
        control: a reference point, shown apart and never ranked.
        sees: `"trial"` hands it the whole trial; kept for the built-in controls.

    Example:
        >>> @method("nothing")
        ... @dataclass(frozen=True)
        ... class Nothing:
        ...     def __call__(self, request):
        ...         return request.model
    """
    return _register("method", name, ("request",) if sees == "request" else ("trial",), control=control, sees=sees)


def task(name: str) -> Callable[[T], T]:
    """Register a frozen dataclass that keeps the `Task` protocol."""
    return _register("task", name, None)


def metric(name: str) -> Callable[[T], T]:
    """Register a frozen dataclass with `__call__(self, outcome) -> list[Value]` as a metric."""
    return _register("metric", name, ("outcome",))


def report(name: str) -> Callable[[T], T]:
    """Register a frozen dataclass with `__call__(self, frame, runs, out) -> list[Path]` as a report."""
    return _register("report", name, ("frame", "runs", "out"))


def importer(name: str) -> Callable[[T], T]:
    """Register a frozen dataclass with `__call__(self, folder, weights) -> Imported` as an importer."""
    return _register("importer", name, ("folder", "weights"))


def _register(kind: Kind, name: str, arguments: tuple[str, ...] | None, **flags: Any) -> Callable[[T], T]:
    def add(cls: T) -> T:
        _check_definition(kind, name, cls, arguments)
        source = _file(cls)
        if flags.get("sees") == "trial" and not cls.__module__.startswith(f"{PACKAGE}."):
            raise UsageError(f"method '{name}' in {source} asks to see the trial; only built-in controls may.")
        REGISTRY.add(Entry(kind, name, cls, source, **flags))
        return cls

    return add


def _check_definition(kind: Kind, name: str, cls: type, arguments: tuple[str, ...] | None) -> None:
    if not re.fullmatch("[a-z0-9_]*[a-z0-9][a-z0-9_]*", name):
        raise UsageError(f"'{name}' is no {kind} name; use lower-case letters, digits and underscores.")
    params = getattr(cls, "__dataclass_params__", None)
    if params is None or not params.frozen:
        raise UsageError(
            f"{kind} '{name}' ({cls.__qualname__}) must be a frozen dataclass; put @dataclass(frozen=True) under @{kind}."
        )
    if arguments is None:
        return
    callable_ = any("__call__" in vars(base) for base in cls.__mro__)  # cls.__call__ alone would find type's own
    given = tuple(inspect.signature(cls.__call__).parameters)[1:] if callable_ else None
    if given != arguments:
        wanted = f"__call__(self, {', '.join(arguments)})"
        raise UsageError(f"{kind} '{name}' ({cls.__qualname__}) needs {wanted}; it has {given or 'no __call__'}.")


# ---------------------------------------------------------------- specs


def parse_spec(text: str) -> Spec:
    """`name:key=value,key=value` -> Spec."""
    name, _, rest = (part.strip() for part in text.partition(":"))
    params: dict[str, str] = {}
    why = "" if name else "it has no name"
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key:
            why = f"'{part}' is no key=value"
        elif key in params:
            why = f"'{key}' is given twice"
        params[key] = value
    if why:
        raise UsageError(f"'{text}' is not of the form name:key=value,key=value; {why}.")
    return Spec(name, params)


def parse_specs(text: str) -> list[Spec]:
    """A comma-separated list of specs; a comma followed by `key=` continues the spec before it."""
    specs: list[str] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        before_colon = part.split(":")[0]
        if specs and "=" in before_colon:
            specs[-1] += f",{part}" if ":" in specs[-1] else f":{part}"
        else:
            specs.append(part)
    return [parse_spec(spec) for spec in specs]


def is_file(plugin: str) -> bool:
    """Whether a plug-in is named by its file rather than as a module."""
    return plugin.endswith(".py") or "/" in plugin


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`, did you mean 'x'?`-clause, empty when nothing is near."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


# ---------------------------------------------------------------- helpers


def _execute_file(path: Path) -> None:
    """Run a plug-in file as a module named after its digest, so that two files of one name do not collide."""
    if not path.is_file():
        raise UsageError(f"plug-in file {path} does not exist; give a .py file or a module name.")
    path = path.resolve()
    name = f"{PACKAGE}_plugin_{hashlib.sha256(path.read_bytes() + str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before execution: dataclasses look their module up
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except UsageError:
        del sys.modules[name]
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"plug-in {path} does not load: {_reason(error)}.") from error


def _reason(error: BaseException) -> str:
    """`Type: message` in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _file(cls: type) -> str:
    """The file that defines a class; `<unknown>` for one typed into a prompt or a notebook."""
    try:
        return inspect.getsourcefile(cls) or "<unknown>"
    except (OSError, TypeError):
        return "<unknown>"


def _text(cls: type) -> str:
    """What two imports of one definition agree in: its name and the whole text of its file, since a copy may differ
    in a helper or a constant alone."""
    try:
        lines, _ = inspect.findsource(cls)
    except (OSError, TypeError):
        return f"{cls.__module__}.{cls.__qualname__}@{id(cls)}"
    return "".join([f"{cls.__qualname__}\n", *lines])


def _null(value: Any) -> Any:
    return None if isinstance(value, str) and value.lower() in {"none", "null"} else value


def _call(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in values.items()) or "its defaults"
