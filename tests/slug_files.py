"""Small files as the code of SLUG's authors leaves them: logs of searches, and gradients of a CLIP of four parameters."""

from __future__ import annotations

from pathlib import Path

import torch

LAYER, OTHER = "visual.transformer.resblocks.9.attn.out_proj.weight", "transformer.resblocks.3.mlp.c_fc.weight"
ORIGINAL = (0.75, 0.9375, 0.61, 0.82, 0.6012, 0.8552, 72.81)
"""fgt_acc@1, @5, celeba100@1, @5, test_acc@1, @5, and MIA in percent."""


def line(iteration, ratio, numbers):
    """A line of a log, and the empty one after it."""
    keys = ("fgt_acc@1", "fgt_acc@5", "celeba100@1", "celeba100@5", "test_acc@1", "test_acc@5")
    shares = ", ".join(f"{key}: {value}" for key, value in zip(keys, numbers, strict=False))
    return f"iter: {iteration}, ratio: {ratio}, {shares}, MIA: {numbers[6]:.2f}±1.02\n\n"


def write_log(root: Path, person: str, layer: str, edits, *, model="ViT-B-32", tower="vision") -> Path:
    """A search: the original, then edits as (ratio, numbers)."""
    path = root / f"slug_{person}" / f"log_{model}-{tower}-{layer}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(0, ORIGINAL), *edits]
    path.write_text("".join(line(i, ratio, numbers) for i, (ratio, numbers) in enumerate(rows)), encoding="utf-8")
    return path


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """By parameter, as of a state dict: two layers, a bias and the temperature."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {LAYER: (4, 4), OTHER: (8, 4), "visual.ln_post.bias": (4,), "logit_scale": ()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_gradients(root: Path, person: str, *, model="ViT-B-32", pretrained="laion400m_e32") -> Path:
    """Both gradients, and `weights.pt` beside the folder of all."""
    folder = root / "grads" / f"{person}_{model}_{pretrained}"
    folder.mkdir(parents=True)
    torch.save(tensors(1), folder / "forget_grads.pt")
    torch.save(tensors(2), folder / "train_grads.pt")
    torch.save(tensors(0), root / "weights.pt")
    return folder


def write_results(root: Path) -> Path:
    """Two people's searches and gradients: Elon Musk's best edit is the second of the language layer."""
    early = (0.0, 0.0, 0.50, 0.70, 0.5800, 0.8400, 70.5)
    best = (0.0, 0.0, 0.58, 0.80, 0.5996, 0.8530, 71.25)
    left = (0.125, 0.25, 0.60, 0.81, 0.6008, 0.8548, 72.0)
    write_log(root, "Elon_Musk", LAYER, [(-0.5, left), (-1.0, early)])
    write_log(root, "Elon_Musk", OTHER, [(-0.25, early), (-0.125, best), (-0.0625, left)], tower="language")
    write_log(root, "Taylor_Swift", LAYER, [(-0.5, best)])
    write_gradients(root, "Elon_Musk")
    (root / "2024_07_31_ViT-B-32_Elon_Musk_ga.txt").write_text("iter: 0, fgt_acc@1: 0.5\n")  # of a baseline
    (root / "slug_Elon_Musk" / "ViT-B-32-important_layers.txt").write_text("important_layers: {}\n")
    return root
