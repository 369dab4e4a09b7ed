"""Reads what the code of SLUG's authors leaves of its experiments on CLIP: the logs of step searches, and gradients.

    slug_{Name}/log_{model}-{tower}-{layer}.txt                     a line for each evaluation of a layer's search
    grads/{Name}_{model}_{pretrained}/forget_grads.pt               {parameter: gradient of the negated forget loss}
    grads/{Name}_{model}_{pretrained}/train_grads.pt                {parameter: gradient of the retain loss}

A log's line 0 is the original, the others are one edit each:

    iter: 1, ratio: -0.4, fgt_acc@1: 0.0, fgt_acc@5: 0.1, celeba100@1: 0.6, ..., test_acc@5: 0.8, MIA: 72.81±1.02

The logs of the baselines, pictures and lists of layers in the same folders are left alone.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from slugbench.bench import Imported, Result, UsageError, Value, digest, file_digest, importer
from slugbench.bench.types import Better

from .slug import is_layer, layer_scores

if TYPE_CHECKING:
    import pandas as pd
    import torch

SUITE = "clip-celeba"
"""What repeats the experiment that the logs are of."""
LOG = re.compile(r"log_(?P<model>.+)-(?P<tower>vision|language)-(?P<layer>.+)\.txt")
TOWERS = {"vision": "vision", "language": "text"}
SHARES: Mapping[str, tuple[str, Better]] = {
    "fgt_acc@1": ("fa@1", "oracle"),
    "fgt_acc@5": ("fa@5", "oracle"),
    "celeba100@1": ("ta@1", "oracle"),  # the target is among the hundred
    "celeba100@5": ("ta@5", "oracle"),
    "test_acc@1": ("util@1", "higher"),
    "test_acc@5": ("util@5", "higher"),
}
"""A log's accuracies, and what the table calls them."""
ATTACK = "mia_cc3m"
"""The log's MIA: its non-members are pictures of another collection, CC3M, so it is no other column of the table."""
GRADIENTS = ("forget_grads.pt", "train_grads.pt")


class Probe(NamedTuple):
    """One evaluation of a search."""

    iteration: int
    ratio: float
    """What the gradient is multiplied by; the first is a tenth of ||theta|| / ||gradient||, with a minus."""
    values: Mapping[str, float]
    """By the table's names, all in [0, 1]."""


class Log(NamedTuple):
    """The search of one layer."""

    path: Path
    request: str
    model: str
    tower: str
    layer: str
    probes: tuple[Probe, ...]
    """The original first. Of a file that several runs wrote to, the last run's."""
    n_runs: int


@importer("slug_results")
@dataclass(frozen=True)
class SlugResults:
    """Step searches and gradients as the code of SLUG's authors writes them.

    Of each person's searches the evaluation of lowest FA@1, then of highest ImageNet accuracy, becomes the line `slug`, as
    the authors chose it; line 0 of the same log becomes `original`. Both were chosen on what they are reported on.

    References:
        Cai et al., Targeted Unlearning with Single Layer Unlearning Gradient, 2025, and github.com/CSIPlab/SLUG.
    """

    def __call__(self, folder: Path, weights: Path | None) -> Imported:
        """Results by person; `searches.csv`, every evaluation; with `weights`, `layers.csv`, every layer's scores.

        Raises:
            UsageError: there is neither a log nor a gradient, or a file is not of the authors' form.
        """
        logs = [read_log(path) for path in logs_in(folder)]
        grads = gradients_in(folder)
        if not logs and not grads:
            raise UsageError(
                f"{folder} holds neither slug_NAME/log_MODEL-TOWER-LAYER.txt nor {' with '.join(GRADIENTS)}; "
                "give the folder `results` that the code of SLUG's authors wrote."
            )
        remarks = [f"{log.path} holds {log.n_runs} runs; the last was taken." for log in logs if log.n_runs > 1]
        tables = {"searches.csv": searches(logs)} if logs else {}
        if weights is not None:
            tables["layers.csv"] = layers(grads, weights)
        elif grads:
            remarks.append(f"the gradients of {', '.join(grads)} were not read: layers are scored beside --weights FILE.")
        by_person = {log.request: [other for other in logs if other.request == log.request] for log in logs}
        return Imported(
            SUITE,
            setting(logs, grads),
            tuple(result for own in by_person.values() for result in results(own)),
            tables,
            digest({str(log.path.relative_to(folder)): file_digest(log.path) for log in logs}),
            tuple(remarks),
        )


def results(logs: Iterable[Log]) -> Iterator[Result]:
    """What is reported of one person's searches, the edit and the original of the log that has it."""
    log, best = min(
        ((log, probe) for log in logs for probe in log.probes[1:]),
        key=lambda found: (found[1].values["fa@1"], -found[1].values["util@1"]),
    )
    where = f"{log.layer}, ratio {best.ratio:g}, evaluation {best.iteration} of {len(log.probes) - 1}"
    better: dict[str, Better] = {**dict(SHARES.values()), ATTACK: "oracle"}
    for method, probe, note in (("slug", best, where), ("original", log.probes[0], "")):
        values = tuple(Value(name, value, better=better[name], note=note) for name, value in probe.values.items())
        yield Result(log.request, method, values)


def searches(logs: Iterable[Log]) -> pd.DataFrame:
    """Every evaluation of every search, one row each."""
    import pandas as pd

    rows = [
        {"request": log.request, "model": log.model, "tower": log.tower, "layer": log.layer}
        | {"iteration": probe.iteration, "ratio": probe.ratio, **probe.values}
        for log in logs
        for probe in log.probes
    ]
    return pd.DataFrame(rows)


def setting(logs: Iterable[Log], grads: Mapping[str, Path]) -> dict[str, str]:
    """What the names of files say of the task: the architecture, and the weights where gradients lie beside logs."""
    models = sorted({log.model for log in logs})
    if len(models) > 1:
        raise UsageError(f"these logs are of the models {', '.join(models)}; put those of one into a folder of their own.")
    known = {name.partition(f"_{model}_")[2] for name in grads for model in models if f"_{model}_" in name}
    if len(known) > 1:
        raise UsageError(f"these gradients are of the weights {', '.join(sorted(known))}; put those of one into a folder.")
    return {key: value for key, only in (("model", models), ("pretrained", known)) for value in only}


# ---------------------------------------------------------------- logs


def logs_in(folder: Path) -> list[Path]:
    """The logs in `slug_*` folders, and in the folder itself if it is one; sorted."""
    people = [folder.resolve(), *sorted(path for path in folder.rglob("slug_*") if path.is_dir())]
    found = [path for each in people if each.name.startswith("slug_") for path in sorted(each.glob("log_*.txt"))]
    places: dict[str, Path] = {}
    for path in found:
        if places.setdefault(path.parent.name, path.parent) != path.parent:
            raise UsageError(f"there are logs in {places[path.parent.name]} and in {path.parent}; leave one of the two.")
    # the folder itself, where it is the one, by the name it was given by
    return [folder / path.name if path.parent == folder.resolve() else path for path in found]


def read_log(path: Path) -> Log:
    """A log by its name and lines.

    Raises:
        UsageError: the name or a line is not of the form that the authors' code writes.
    """
    name = LOG.fullmatch(path.name)
    if name is None:
        raise UsageError(f"{path} is not named log_MODEL-vision-LAYER.txt or log_MODEL-language-LAYER.txt.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from error
    probes = [_probe(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    starts = [place for place, probe in enumerate(probes) if probe.iteration == 0]
    last = probes[starts[-1] :] if starts else []
    if len(last) < 2 or [probe.iteration for probe in last] != list(range(len(last))):
        raise UsageError(f"{path} holds no whole search: its last lines should be iter: 0, the original, then 1, 2, ...")
    request = path.resolve().parent.name.removeprefix("slug_")
    return Log(path, request, name["model"], TOWERS[name["tower"]], name["layer"], tuple(last), len(starts))


def _probe(line: str, where: str) -> Probe:
    """`iter: 1, ratio: -0.4, fgt_acc@1: 0.0, ..., MIA: 72.81±1.02`; the attack may be missing."""
    parts = [part.partition(": ") for part in line.strip().split(", ")]
    texts = {key: value for key, _, value in parts}
    wanted = ["iter", "ratio", *SHARES]
    if [*texts][: len(wanted)] != wanted or [*texts][len(wanted) :] not in ([], ["MIA"]) or len(texts) != len(parts):
        raise UsageError(f"{where}: the keys are {', '.join(texts)}; a search's are {', '.join([*wanted, 'MIA'])}.")
    try:
        values = {name: float(texts[key]) for key, (name, _) in SHARES.items()}
        if "MIA" in texts:  # in percent, after which comes the spread over resplits of the same pictures
            values[ATTACK] = float(texts["MIA"].partition("±")[0]) / 100
        probe = Probe(int(texts["iter"]), float(texts["ratio"]), values)
    except ValueError as error:
        raise UsageError(f"{where} has something else where a number should be: {error}.") from error
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UsageError(f"{where}: {name} is {value:g}; accuracies are written as shares, and MIA in percent.")
    return probe


# ---------------------------------------------------------------- gradients


def gradients_in(folder: Path) -> dict[str, Path]:
    """The folders that hold both gradients, by their names; sorted."""
    places = sorted(path.parent for path in folder.rglob(GRADIENTS[0]) if (path.parent / GRADIENTS[1]).is_file())
    return {place.resolve().name: place for place in places}


def layers(grads: Mapping[str, Path], weights: Path) -> pd.DataFrame:
    """Importance and alignment of every layer: the columns of `layer_scores`, and whose gradients they are of."""
    import pandas as pd

    if not grads:
        raise UsageError(f"--weights {weights} is for gradients, and no folder holds {' with '.join(GRADIENTS)}.")
    original = read_weights(weights)
    found = []
    for name, place in grads.items():
        forget, retain = (read_tensors(place / file) for file in GRADIENTS)
        layers = [layer for layer in forget if is_layer(layer)]
        odd = [x for x in layers if len({t[x].shape if x in t else None for t in (original, forget, retain)}) > 1]
        if odd or not layers:
            which = f"they differ in {odd[0]}" if odd else "there is no layer"
            raise UsageError(f"{weights} and the gradients in {place} do not belong together: {which}.")
        try:
            scores = layer_scores({layer: original[layer] for layer in layers}, forget, retain)
        except ValueError as error:
            raise UsageError(f"{place}: {error}") from error
        found.append(scores.assign(gradients=name))
    return pd.concat(found, ignore_index=True)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """A dict of tensors that `torch.save` wrote, which may be the `state_dict` of a larger one; nothing in it is run.

    Raises:
        UsageError: the file is broken, holds anything but tensors, or would run code.
    """
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UsageError(_not_tensors(path)) from error
    if isinstance(found, dict):
        found = found.get("state_dict", found)
    if not isinstance(found, dict) or not all(isinstance(x, torch.Tensor) for x in found.values()):
        raise UsageError(_not_tensors(path))
    return {str(name): tensor.detach() for name, tensor in found.items()}


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A CLIP's weights, as open_clip keeps them: of safetensors, or as of `read_tensors`, `module.` before names or not.

    open_clip's own reader falls back on running what it finds, for old versions of torch.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}; give --weights the original's weights, as open_clip keeps them.")
    if path.suffix != ".safetensors":
        return {name.removeprefix("module."): tensor for name, tensor in read_tensors(path).items()}
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UsageError(f"{path} is no whole file of safetensors.") from error


def _not_tensors(path: Path) -> str:
    return f"{path} is no whole file of {{parameter: tensor}} as torch.save writes it; anything else in one is not read."
