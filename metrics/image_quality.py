"""What became of the pictures that were to stay as they are: their quality, their prompts, and the same seeds before.

Distances are between sets of features that a frozen network sees in pictures; how they come out depends on the network, so
they compare models of one task and no published numbers. Legend for array shapes: N and M pictures, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from slugbench.bench import Outcome, Value, metric

from .accuracy import average

FID_NEEDS = 10_000
"""Pictures; with fewer the Frechet distance is mostly its own bias, which differs from model to model."""
MISSING = {"original": "the original's pictures are not at hand", "real": "real pictures are not at hand"}


@metric("image_quality")
@dataclass(frozen=True)
class ImageQuality:
    """Of retained prompts: unbiased kernel distances to real and to the original's pictures, and agreement with prompts.

        MMD^2 = mean over i != j of k(x_i, x_j) + mean over i != j of k(y_i, y_j) - 2 mean of k(x_i, y_j)

    KID has k = (x.y / D + 1)^3, CMMD a Gaussian of width 10 over unit features, in thousandths. Unbiased estimates may be
    below 0 where sets are alike.

        FID = |m - n|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2))

    with means m and n and covariances A and B of drawn and of real pictures; null with fewer than 10,000 of either.

    References:
        Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, 2017 (FID).
        Binkowski et al., Demystifying MMD GANs, 2018 (KID).
        Jayasumana et al., Rethinking FID: Towards a Better Evaluation Metric for Image Generation, 2024 (CMMD).
        Chong and Forsyth, Effectively Unbiased FID and Inception Score and Where to Find Them, 2020.
        Hessel et al., CLIPScore: A Reference-free Evaluation Metric for Image Captioning, 2021.
    """

    def __call__(self, outcome: Outcome) -> list[Value]:
        """Values `kid_real kid_original cmmd_real cmmd_original fid`, lower is better; `feature_shift`, the mean cosine
        distance of a picture's features from those of the original's picture of that prompt and seed, in [0, 2]; and
        `clip_score`, the mean cosine of pictures and prompts. Null where there is nothing to compare with; none without
        features."""
        if outcome.trial.request.objective.kind != "diffusion" or "features" not in outcome.answers:
            return []
        q, answers, before = outcome.trial.questions, outcome.answers, outcome.trial.original
        rows = np.flatnonzero(q["split"] == "retain")
        prompt = np.unique(np.stack([q["style"][rows], q["object"][rows]]), axis=1, return_inverse=True)[1].ravel()
        drawn = answers["features"][rows].astype(np.float64)
        original = before["features"][rows].astype(np.float64) if "features" in before else None
        real = None if outcome.trial.real is None else outcome.trial.real.astype(np.float64)
        kernels: dict[str, Kernel] = {"kid": polynomial, "cmmd": gaussian}
        return [
            *(_kernel_distance(f"{name}_original", drawn, original, prompt, k) for name, k in kernels.items()),
            *(_kernel_distance(f"{name}_real", drawn, real, prompt, k) for name, k in kernels.items()),
            _fid(drawn, real),
            _shift(drawn, original, prompt),
            _clip_score(answers["cosine"][rows] if "cosine" in answers else None, prompt),
        ]


Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def polynomial(a_ND: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    """(N, M) (a.b / D + 1)^3"""
    return (a_ND @ b_MD.T / a_ND.shape[1] + 1) ** 3


def gaussian(a_ND: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    """(N, M) 1000 exp(-|a - b|^2 / (2 * 10^2)) of features on the unit sphere, as CMMD's code scales it."""
    return 1000 * np.exp((unit(a_ND) @ unit(b_MD).T - 1) / 10**2)


def unit(x_ND: np.ndarray) -> np.ndarray:
    """Rows of length 1; zero rows stay."""
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)


def _kernel_distance(name: str, x_ND: np.ndarray, y_MD: np.ndarray | None, prompt_N: np.ndarray, kernel: Kernel) -> Value:
    if y_MD is None:
        return Value(name, None, "", "lower", note=MISSING[name.rpartition("_")[2]])
    return distance(name, x_ND, y_MD, prompt_N, kernel)


def _fid(x_ND: np.ndarray, y_MD: np.ndarray | None) -> Value:
    """Without an interval: a resample repeats pictures, which this biased estimate takes for a narrower set."""
    n_real = 0 if y_MD is None else len(y_MD)
    note = f"of {len(x_ND):,} drawn and {n_real:,} real pictures"
    if y_MD is None or min(len(x_ND), n_real) < FID_NEEDS:
        return Value("fid", None, "", "lower", note=f"{note}; {FID_NEEDS:,} of each are needed")
    return Value("fid", frechet(x_ND, y_MD), "", "lower", n_images=len(x_ND), note=note)


def _shift(x_ND: np.ndarray, original_ND: np.ndarray | None, prompt_N: np.ndarray) -> Value:
    if original_ND is None:
        return Value("feature_shift", None, "", "lower", note=MISSING["original"])
    return average("feature_shift", 1 - (unit(x_ND) * unit(original_ND)).sum(1), prompt_N, "lower")


def _clip_score(cosine_N: np.ndarray | None, prompt_N: np.ndarray) -> Value:
    if cosine_N is None:
        return Value("clip_score", None, note="no CLIP was asked how well pictures fit their prompts")
    return average("clip_score", cosine_N, prompt_N, "higher")


def frechet(x_ND: np.ndarray, y_MD: np.ndarray) -> float:
    """The squared Frechet distance of the Gaussians with these sets' means and covariances."""
    (m, a_DD), (n, b_DD) = ((z.mean(0), np.atleast_2d(np.cov(z, rowvar=False))) for z in (x_ND, y_MD))
    root_DD = _root(a_DD)
    # the symmetric form has real eigenvalues, none below 0 but by rounding; a root of A B itself may come out complex
    shared = np.sqrt(np.linalg.eigvalsh(root_DD @ b_DD @ root_DD).clip(0)).sum()
    return float(((m - n) ** 2).sum() + np.trace(a_DD) + np.trace(b_DD) - 2 * shared)


def _root(a_DD: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance."""
    values_D, vectors_DD = np.linalg.eigh(a_DD)
    return (vectors_DD * np.sqrt(values_D.clip(0))) @ vectors_DD.T


def distance(name: str, x_ND: np.ndarray, y_MD: np.ndarray, prompt_N: np.ndarray, kernel: Kernel) -> Value:
    """An unbiased squared distance of two sets, its interval over the prompts of the first.

    A picture drawn twice into a resample is no pair with itself: k(x, x) would pull every resample up.
    """
    own_NN, between_N = kernel(x_ND, x_ND), kernel(x_ND, y_MD).mean(1)
    np.fill_diagonal(own_NN, 0)
    other = kernel(y_MD, y_MD)
    np.fill_diagonal(other, 0)
    m = len(y_MD)
    spread = other.sum() / (m * (m - 1))

    def squared(arrays: Mapping[str, np.ndarray]) -> float:
        w = np.bincount(arrays["x"].astype(int), minlength=len(x_ND)).astype(np.float64)
        pairs = w.sum() ** 2 - (w**2).sum()
        return float(w @ own_NN @ w / pairs + spread - 2 * (w @ between_N) / w.sum()) if pairs else float("nan")

    arrays = {"x": np.arange(len(x_ND), dtype=np.float64), "unit": prompt_N}
    n_units = len(np.unique(prompt_N))
    return replace(
        Value(name, squared(arrays), "", "lower"), n_images=len(x_ND), n_units=n_units, arrays=arrays, statistic=squared
    )
