"""Makes docs/results/people.md: the task `celeba`, whole, at the size of a real model on a laptop's cores.

    python docs/people.py --out docs/results/people.md

Twenty people of twenty pictures each are written as CelebA is laid out, 1,000 pictures as ImageNet's are, and a ViT-B/32 of
random weights as people save theirs; then it is `slugbench run`, with everything that it does on real data. So that there
is something to forget, the projection of the image tower, and nothing else, is fitted to tell the people apart. The work
folder is kept, and the same command goes on in it.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from slugbench.bench.cli import main as slugbench
from slugbench.bench.frame import read_run
from slugbench.bench.provenance import shared_form
from slugbench.bench.store import records
from slugbench.reports.markdown import table
from slugbench.tasks.celeba import FREQUENT, IMAGES, NAMES, PAPER
from slugbench.tasks.imagenet import wnids

if TYPE_CHECKING:
    import torch

PEOPLE = (*PAPER, *(f"Somebody {letter}" for letter in "ABCDEFGHIJ"))
OF_EACH, CLASSES, OF_A_CLASS = 20, 100, 10
METHODS = ("slug:physical=16", "salun:batch=8,retain_batch=8", "ga:batch=16", "svd", "ft:batch=16", "original")
"""With batches that leave room for the weights, the best of them and what optimisers keep; all else is as by default."""
LIMIT = 8.0
"""GB of main memory for all processes of a cell."""
SIDES = (178, 218)
"""Pixels of CelebA's aligned pictures."""


# ---------------------------------------------------------------- data and weights


def picture(motif: int, number: int, size: tuple[int, int] = SIDES) -> bytes:
    """An encoded picture: what all of a person or class have in common is a pattern of coloured fields."""
    from PIL import Image

    fields = np.random.default_rng(motif).integers(20, 236, (6, 5, 3), dtype=np.uint8)
    rng = np.random.default_rng([motif, number])
    image = np.asarray(Image.fromarray(fields).resize(size, Image.Resampling.BICUBIC), dtype=np.float64)
    image = np.roll(image, rng.integers(-20, 21, 2), (0, 1)) + rng.normal(0, 12, image.shape)
    file = BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_celeba(root: Path) -> None:
    """Pictures, the list with its two header lines, and the frequent names."""
    (root / IMAGES).mkdir(parents=True, exist_ok=True)
    files = [f"{number + 1:06d}.jpg" for number in range(len(PEOPLE) * OF_EACH)]
    for number, file in enumerate(files):
        (root / IMAGES / file).write_bytes(picture(number % len(PEOPLE), number))
    names = [name.replace(" ", "_") for name in PEOPLE]
    rows = [f"{file} {names[number % len(names)]}" for number, file in enumerate(files)]
    (root / FREQUENT).write_text("\n".join(names) + "\n")
    (root / NAMES).write_text("\n".join([str(len(rows)), "image_id identity_name", *rows]) + "\n")


def write_imagenet(root: Path) -> None:
    """Validation pictures of some classes, sorted into folders."""
    for label, wnid in enumerate(wnids()[:CLASSES]):
        (root / "val" / wnid).mkdir(parents=True, exist_ok=True)
        for number in range(OF_A_CLASS):
            name = f"ILSVRC2012_val_{label * OF_A_CLASS + number + 1:08d}.JPEG"
            (root / "val" / wnid / name).write_bytes(picture(1000 + label, number, (256, 256)))


def write_weights(model: str, data: Path, path: Path) -> None:
    """A state dict of random weights, but for `visual.proj`, which brings pictures to the embeddings of their names."""
    import open_clip
    import torch
    from PIL import Image

    torch.manual_seed(0)
    clip = open_clip.create_model(model).eval()
    look = open_clip.image_transform(clip.visual.image_size, is_train=False)
    with torch.no_grad():
        said = clip.encode_text(open_clip.get_tokenizer(model)([f"{name}." for name in PEOPLE]), normalize=True)
        projection, seen = clip.visual.proj, []
        clip.visual.proj = None
        for first in range(0, len(PEOPLE) * OF_EACH, len(PEOPLE)):
            files = [data / IMAGES / f"{number + 1:06d}.jpg" for number in range(first, first + len(PEOPLE))]
            seen.append(clip.encode_image(torch.stack([look(Image.open(file)) for file in files])))
        fitted = _ridge(torch.cat(seen), (said - said.mean(0)).repeat(OF_EACH, 1))
        clip.visual.proj = torch.nn.Parameter(fitted * projection.norm() / fitted.norm())
    torch.save(clip.state_dict(), path)


def _ridge(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(d, e) with x @ it near y; what all rows of x have in common, which tells nobody apart, it takes to 0."""
    import torch

    common = torch.nn.functional.normalize(x.double().mean(0), dim=0)
    x, y = x.double() - x.double().mean(0), y.double()
    x = x - (x @ common)[:, None] * common
    inner = x @ x.mT + 1e-3 * (x * x).sum(1).mean() * torch.eye(len(x))
    return (x.mT @ torch.linalg.solve(inner, y)).float()


# ---------------------------------------------------------------- the run


def ran(arguments: argparse.Namespace) -> Path:
    """The folder of the run, which goes on where it was stopped."""
    work: Path = arguments.work
    data, objects, weights = work / "celeba", work / "imagenet", work / "weights.pt"
    if not (data / NAMES).is_file():
        write_celeba(data)
    if not (objects / "val" / wnids()[CLASSES - 1]).is_dir():
        write_imagenet(objects)
    if not weights.is_file():
        write_weights(arguments.model, data, weights)
    task = f"celeba:data={data},model={arguments.model},pretrained={weights},imagenet={objects},templates=single"
    suite = work / "people.toml"
    suite.write_text(
        f'name = "people"\ntasks = ["{task}"]\nmethods = {list(METHODS)!r}\nrequests = 1\nthreads = {arguments.threads}\n'
        f"timeout = {arguments.timeout}\nmemory = {LIMIT}\n".replace("'", '"')
    )
    plugins = [word for plugin in arguments.plugin for word in ("--plugin", plugin)]
    slugbench(["run", str(suite), "--out", str(work / "run"), *plugins])
    return work / "run"


# ---------------------------------------------------------------- the document


def document(run: Path, made_by: str) -> str:
    """The file's text, of a finished run."""
    frame, made = read_run(run)
    parts = [
        "# The task `celeba` at full size on processor cores",
        f"Made by `{made_by}`. {len(PEOPLE)} people of {OF_EACH} pictures each in CelebA's layout, {CLASSES * OF_A_CLASS:,} "
        "in ImageNet's, a model of real size with random weights and a fitted image projection, and then `slugbench run`. "
        "What methods leave and keep of it says nothing about them; that all of it runs, and what it takes, does.",
        "\n".join(f"- {machine}" for machine in sorted({_machine(known) for known in made["provenance"].values()})),
        table(table_of(frame, records(run)), numbers_from=2),
        "Seconds and the peak as the harness's meter has them of the method alone; then of the whole cell, evaluation "
        f"included, all that its processes held, for which {LIMIT:.0f} GB was the limit.",
    ]
    return "\n\n".join(parts) + "\n"


def _machine(known: Mapping[str, Any]) -> str:
    hardware, versions = known["hardware"], known["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("slugbench", "torch", "open_clip_torch"))
    return f"{hardware['processor']}, {hardware['cores']} cores, {hardware['memory_bytes'] / 1e9:.0f} GB; {named}"


SHOWN = {
    **{name: (name, 1.0, 3) for name in ("fa@1", "ra@1", "util@1")},
    **{name: (f"{name} s", 1.0, 1) for name in ("t_prepare", "t_search", "t_apply", "t_total")},
    "n_evals": ("evaluations", 1.0, 0),
    "peak_rss_bytes": ("peak GB", 1e9, 2),
    "wall": ("whole cell s", 1.0, 0),
    "peak": ("all in it GB", 1e9, 2),
}
"""The table's columns: metric, or fact of the cell -> heading, unit, digits."""


def table_of(frame: pd.DataFrame, kept: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """A line a method; `kept` are the cells' records by name."""
    lines = []
    for cell, rows in frame.groupby("cell", sort=False):
        values, record = rows.set_index("metric")["value"], kept[str(cell)]
        outcome = record["status"] if record["error"] is None else f"{record['status']}: {record['error'][:160]}"
        values["wall"], values["peak"] = record["wall_seconds"], record["peak_pss_bytes"]
        line = {"method": record["facts"]["method"], "outcome": outcome}
        for name, (heading, unit, digits) in SHOWN.items():
            value = values.get(name)
            line[heading] = "" if value is None or pd.isna(value) else f"{value / unit:,.{digits}f}"
        lines.append(line)
    return pd.DataFrame(lines)


# ---------------------------------------------------------------- the command


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing and write the document; exit with 1 unless every method came to its end."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32", help="an architecture of open_clip")
    parser.add_argument("--work", type=Path, default=Path("runs/people"), help="folder for data, weights and the run")
    parser.add_argument("--out", type=Path, default=Path("docs/results/people.md"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=6 * 3600, help="seconds a cell may take")
    parser.add_argument("--plugin", action="append", default=[], help="a file that adds an architecture to open_clip")
    arguments = parser.parse_args(argv)
    run = ran(arguments)
    made_by = shlex.join(["python", "docs/people.py", *map(shared_form, argv)])
    arguments.out.write_text(document(run, made_by), encoding="utf-8")
    if unfinished := [name for name, record in records(run).items() if record["status"] != "ok"]:
        sys.exit(f"not finished: {', '.join(unfinished)}")


if __name__ == "__main__":
    main()
