"""The command line's grammar, and what its errors become. What the commands do is in `commands`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import commands
from .errors import SlugbenchError, UsageError
from .registry import did_you_mean
from .types import STATUSES

EXIT_INTERRUPTED = 130
EXIT_UNREAD = 128 + signal.SIGPIPE  # as shells say of any program that ends so
DEFAULT_FORMATS = "html,md,csv"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 good, 2 bad usage, 3 some cells not ok, 4 a gate failed, 130 interrupted, 141
    nobody reads what it prints any more."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        arguments = parser().parse_args(argv)
        code: int = arguments.run(arguments)
        sys.stdout.flush()  # here, where a reader who left is noticed
        return code
    except SlugbenchError as error:
        print(f"slugbench: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("slugbench: interrupted; finished cells are kept, the same command goes on from here.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except FileNotFoundError as error:
        print(f"slugbench: {error.filename} is missing; put it back, or see `slugbench doctor`.", file=sys.stderr)
        return UsageError.exit_code
    except BrokenPipeError:  # `slugbench run ... | head`, which stops with its reader; cells may be missing or not ok
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if arguments.run in (commands.run, commands.tune):
            print("slugbench: stopped, as nobody reads what it prints; the same command goes on from here.", file=sys.stderr)
        return EXIT_UNREAD


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


# ---------------------------------------------------------------- grammar


class _Parser(argparse.ArgumentParser):
    """argparse, but with one sentence for an error."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`.")


def parser() -> argparse.ArgumentParser:
    """The whole grammar."""
    top = _Parser(prog="slugbench", description="Measures how well machine-unlearning methods forget.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=_version())
    sub = top.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    _add_list(sub)
    _add_plan(sub)
    _add_run(sub)
    _add_tune(sub)
    _add_score(sub)
    _add_import(sub)
    _add_reproduce(sub)
    _add_status(sub)
    _add_report(sub)
    _add_doctor(sub)
    _add_artifacts(sub)
    return top


def _version() -> str:
    import slugbench

    return f"slugbench {slugbench.__version__}"


def _command(sub: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    command = sub.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.set_defaults(run=run)
    return command


def _add_list(sub: Any) -> None:
    command = _command(sub, "list", commands.list_, "what is registered, with parameters")
    command.add_argument("what", nargs="?", choices=commands.LISTED, help="only these")
    _add_plugin(command)


def _add_plan(sub: Any) -> None:
    command = _command(
        sub, "plan", commands.plan, "the cells of a suite, which of them are done, and what differences they can resolve"
    )
    command.add_argument("--out", type=Path, help="a folder with cells finished before")
    _add_suite(command)
    _add_measured(command)


def _add_run(sub: Any) -> None:
    command = _command(sub, "run", commands.run, "run a suite, or what is missing of it, and report")
    command.add_argument(
        "--out", type=Path, required=True, help="folder of cells, table and report; extended if it is there"
    )
    _add_suite(command)
    _add_measured(command)
    _add_running(command)
    command.add_argument("--format", default=DEFAULT_FORMATS, help="reports to write (default: %(default)s)")


def _add_tune(sub: Any) -> None:
    command = _command(
        sub, "tune", commands.tune, "choose parameters for every method, on tuning requests alone and with one budget"
    )
    command.add_argument("--budget", type=_positive(int), required=True, metavar="N", help="configurations of each method")
    command.add_argument("--seed", type=int, default=0, help="of the draw of configurations (default: %(default)s)")
    command.add_argument(
        "--out", type=Path, required=True, help="folder of cells, trace.csv and tuned.toml; extended if it is there"
    )
    _add_suite(command)
    _add_running(command)


def _add_score(sub: Any) -> None:
    command = _command(sub, "score", commands.score, "score images made elsewhere, and report as of a run")
    command.add_argument("task", help="a task spec, of a task that scores images, such as unlearncanvas")
    command.add_argument("--images", type=Path, required=True, metavar="DIR", help="all images of the unlearned model")
    command.add_argument("--target", required=True, metavar="NAME", help="what it was to forget: one of the task's requests")
    command.add_argument(
        "--out", type=Path, required=True, help="folder of scores, table and report; extended if it is there"
    )
    command.add_argument("--classifiers", type=Path, metavar="DIR", help="their checkpoints (default: the task's)")
    command.add_argument("--original", type=Path, metavar="DIR", help="the same images of the model before unlearning")
    command.add_argument(
        "--oracle",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="those of a model that never saw the target; may be repeated",
    )
    command.add_argument(
        "--name", type=_name, default=commands.ELSEWHERE, metavar="METHOD", help="what made them (default: %(default)s)"
    )
    command.add_argument("--metrics", metavar="SPECS", help="instead of all that read answers alone")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--threads", type=_positive(int), help="torch threads (default: one a core)")
    command.add_argument("--format", default=DEFAULT_FORMATS, help="reports to write (default: %(default)s)")
    _add_plugin(command)


def _add_import(sub: Any) -> None:
    command = _command(sub, "import", commands.import_, "take over what a method's authors measured, and report as of a run")
    command.add_argument("source", help="of `slugbench list importers`, such as slug-results")
    command.add_argument("folder", type=Path, metavar="DIR", help="the results, laid out as the authors' code does")
    command.add_argument(
        "--out", type=Path, required=True, help="folder of cells, table and report; extended if it is there"
    )
    command.add_argument(
        "--task", metavar="SPEC", help="the task that they are of (default: that of the suite which repeats them)"
    )
    command.add_argument("--weights", type=Path, metavar="FILE", help="the original's weights, to score layers by gradients")
    command.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda", help="beside whose runs they stand (default: %(default)s)"
    )
    command.add_argument("--threads", type=_positive(int), default=1, help="the same (default: %(default)s)")
    command.add_argument("--format", default=DEFAULT_FORMATS, help="reports to write (default: %(default)s)")
    _add_plugin(command)


def _add_reproduce(sub: Any) -> None:
    command = _command(
        sub, "reproduce", commands.reproduce, "plan a published experiment as it was done, and say how to run it"
    )
    command.add_argument("name", help="the experiment, such as clip-celeba")
    command.add_argument("--out", type=Path, metavar="DIR", help="write its suite there, to be changed")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    _add_plugin(command)


def _add_suite(command: argparse.ArgumentParser) -> None:
    command.add_argument("suite", help="a suite's name, or a .toml file")
    command.add_argument("--methods", metavar="SPECS", help="instead of the suite's: name:key=value,...")
    command.add_argument("--tasks", metavar="SPECS", help="instead of the suite's")
    command.add_argument("--base-seeds", type=_integers, metavar="LIST", help="base models, such as 0,1,2")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--threads", type=_positive(int), help="torch threads of a cell; part of what a result depends on")
    command.add_argument("--timeout", type=_positive(float), metavar="S", help="seconds a cell may take")
    command.add_argument("--memory", type=_positive(float), metavar="GB", help="memory (PSS) a cell's processes may hold")
    _add_plugin(command)


def _add_measured(command: argparse.ArgumentParser) -> None:
    command.add_argument("--metrics", metavar="SPECS", help="instead of the suite's")
    command.add_argument(
        "--requests", metavar="N|IDS", type=_requests, help="how many of each task's test requests, or which"
    )
    command.add_argument("--method-seeds", type=_integers, metavar="LIST", help="seeds of the method's own randomness")
    command.add_argument(
        "--params", metavar="FILE|SUITE", help="also run methods with these tuned parameters, a file's or those of a suite"
    )


def _add_running(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--jobs",
        type=_positive(int),
        help="cells at a time (default: one a core, GPU or worker's thread)",
    )
    command.add_argument(
        "--backend",
        choices=("threads", "loky", "dask"),
        default="threads",
        help="what waits for cells; dask: on other machines (default: %(default)s)",
    )
    command.add_argument("--scheduler", metavar="ADDRESS", help="dask's, such as tcp://host:8786")
    command.add_argument(
        "--retry", type=_statuses, default=(), metavar="STATUSES", help="run finished cells of these statuses again"
    )


def _add_plugin(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--plugin", action="append", default=[], metavar="FILE|MODULE", help="load this too; may be repeated"
    )


def _add_status(sub: Any) -> None:
    command = _command(sub, "status", commands.status, "what a run's folder holds")
    command.add_argument("folder", type=Path)


def _add_report(sub: Any) -> None:
    command = _command(sub, "report", commands.report, "make reports of one or several runs")
    command.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    command.add_argument("--out", type=Path, help="where to (default: DIR/report of the first)")
    command.add_argument(
        "--format", default=DEFAULT_FORMATS, help="comma-separated, of `slugbench list reports` (default: %(default)s)"
    )
    _add_plugin(command)


def _add_doctor(sub: Any) -> None:
    command = _command(sub, "doctor", commands.doctor, "which files tasks need, and whether their models pass the gates")
    command.add_argument("task", nargs="?", help="a task spec: evaluate its acceptance gates too")
    _add_plugin(command)


def _add_artifacts(sub: Any) -> None:
    command = _command(
        sub, "artifacts", commands.artifacts_list, "shared work in the cache, and what ships with the package"
    )
    actions = command.add_subparsers(metavar="ACTION", parser_class=_Parser)
    _command(actions, "list", commands.artifacts_list, "what the cache holds")
    rebuild = _command(actions, "rebuild", commands.artifacts_rebuild, "remake a task's shipped models and answers")
    rebuild.add_argument("task", metavar="TASK", help="its name, or a spec such as cifar10:data=DIR")
    rebuild.add_argument("--out", type=Path, help="folder to write to (default: NAME-rebuilt)")
    rebuild.add_argument(
        "--requests", metavar="IDS", type=_names, help="only these requests' oracles, where a task takes hours"
    )
    rebuild.add_argument("--jobs", type=_positive(int), default=1)
    _add_plugin(rebuild)
    gc = _command(actions, "gc", commands.artifacts_gc, "remove what was used longest ago")
    gc.add_argument("--keep", type=_bytes, required=True, metavar="SIZE", help="how much may stay, such as 5GB")


def _positive(kind: type) -> Any:
    def number(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not a positive {'whole number' if kind is int else 'number'}")
        return value

    return number


def _name(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is no name that a table can show")
    return text


def _integers(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 0,1,2") from None


def _requests(text: str) -> int | list[str]:
    try:
        return int(text)
    except ValueError:
        return _names(text)


def _names(text: str) -> list[str]:
    ids = [part.strip() for part in text.split(",") if part.strip()]
    if not ids:
        raise argparse.ArgumentTypeError("it names no request; give a number or names")
    return ids


def _statuses(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in STATUSES:
            raise argparse.ArgumentTypeError(
                f"there is no status {name!r}{did_you_mean(name, STATUSES)}; there is {', '.join(STATUSES)}"
            )
    return names


def _bytes(text: str) -> int:
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "B": 1}
    unit = next((u for u in units if text.upper().endswith(u)), "")
    try:
        size = int(float(text[: len(text) - len(unit)]) * units.get(unit, 1))
    except (ValueError, OverflowError):
        size = -1
    if size < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 5GB")
    return size
