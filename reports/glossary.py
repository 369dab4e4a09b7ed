"""What each metric means to a reader, which ones head a leaderboard, and how its numbers are written.

Direction, unit and chance come with the rows. A metric that is not listed here, such as a plug-in's, is still
shown; it only lacks a sentence.
"""

from __future__ import annotations

import math
import re
from typing import Literal, NamedTuple

Kind = Literal["forget", "retain", "privacy", "distance", "attack", "features", "detail", "cost", "other"]


class About(NamedTuple):
    """A metric in words."""

    kind: Kind
    title: str
    text: str


# The first pattern that matches the whole name wins; {} is the part in parentheses.
KNOWN: tuple[tuple[str, Kind, str, str], ...] = (
    (
        r"fa@(\d+)",
        "forget",
        "forget accuracy, top {}",
        "Share of the targets' test images whose own name is among the {} best.",
    ),
    (
        r"fa_worst",
        "forget",
        "forget accuracy, worst phrasing",
        "The highest over ways to put the name that training never used, and the usual one.",
    ),
    (
        r"acc_forget",
        "forget",
        "accuracy on the forgotten",
        "Test accuracy on the forgotten classes; training accuracy on forgotten samples.",
    ),
    (
        r"ua",
        "forget",
        "unlearning accuracy",
        "Share of images prompted with the target that the classifier does not call it.",
    ),
    (
        r"ua_norm",
        "forget",
        "unlearning accuracy, normalised",
        "The way from the original's to the retrained models': 0 is nothing forgotten, 1 as much as by retraining.",
    ),
    (
        r"ua_conf",
        "detail",
        "where the target goes",
        "Share of images prompted with the target that the one class has which most of them are taken for.",
    ),
    (
        r"clf_ok",
        "detail",
        "agreement of the classifiers",
        "Share of images in which a second classifier, of another kind, sees the same class; below 0.95 trust neither.",
    ),
    (r"ra@(\d+)", "retain", "retained accuracy, top {}", "The same on all other concepts; the targets are left out."),
    (
        r"ta@(\d+)",
        "retain",
        "accuracy on frequent concepts, top {}",
        "On the frequent concepts, with the target if it is one of them: forgetting it well costs its share.",
    ),
    (r"ra_near@(\d+)", "retain", "retained accuracy, near", "On the targets' closest relatives, where damage shows first."),
    (r"ra_far@(\d+)", "retain", "retained accuracy, far", "On concepts unrelated to the targets."),
    (
        r"near_gap",
        "retain",
        "extra loss on neighbours",
        "(far - near) after minus before unlearning; at 0 relatives lost no more than others.",
    ),
    (
        r"util@(\d+)",
        "retain",
        "other task, top {}",
        "Accuracy of the same model on a task that has nothing to do with the targets.",
    ),
    (
        r"hold_id",
        "retain",
        "cosine of never-trained concepts",
        "Mean cosine of pictures and names that no model was trained on; below the oracles' is forgetting that spread.",
    ),
    (r"acc_retain", "retain", "accuracy on the retained", "Test accuracy on the classes to be kept."),
    (r"acc_test", "retain", "test accuracy", "Accuracy on test images."),
    (r"ira", "retain", "in-domain retained accuracy", "Accuracy on the other concepts of the target's domain."),
    (r"cra", "retain", "cross-domain retained accuracy", "Accuracy on the concepts of the other domain, on all prompts."),
    (r"cra_on", "retain", "the same, with the target", "On prompts with the target: the half of them that is to stay."),
    (r"cra_off", "retain", "the same, without the target", "On prompts without the target."),
    (r"kid_(\w+)", "retain", "KID to {} pictures", "Unbiased kernel distance of retained prompts' pictures, polynomial."),
    (r"cmmd_(\w+)", "retain", "CMMD to {} pictures", "The same with a Gaussian kernel, in thousandths."),
    (r"fid", "retain", "Frechet distance", "To real pictures, of 10,000 of each and more."),
    (
        r"feature_shift",
        "retain",
        "shift at equal seeds",
        "Cosine distance from the original's picture of that prompt and seed.",
    ),
    (r"clip_score", "retain", "CLIP score", "Mean cosine of retained pictures and their prompts."),
    (
        r"mia_sample",
        "privacy",
        "membership attack, AUC",
        "How well confidence tells the forgotten training images from unseen images of the same concepts.",
    ),
    (
        r"mia_identity",
        "privacy",
        "concept membership, AUC",
        "How well confidence tells the forgotten concepts, on unseen images, from concepts that were never trained on.",
    ),
    (
        r"rmia",
        "privacy",
        "relative membership attack, AUC",
        "The same as by confidence, but of how much likelier an image became than retrained models find it.",
    ),
    (
        r"tpr@([\d.]+)%fpr",
        "privacy",
        "members found at {} % false alarms",
        "Share of the forgotten training images that an attacker finds who is wrong about {} % of unseen images.",
    ),
    (
        r"mia_svc_eff\w*",
        "privacy",
        "MIA-Efficacy by SVC",
        "Share of the forgotten training images that a classifier of confidences calls unseen; SalUn's column.",
    ),
    (
        r"mia_lr_acc",
        "privacy",
        "membership attack, accuracy",
        "How often a logistic regression on the loss tells forgotten training images from unseen ones; SLUG's column.",
    ),
    (
        r"u_lira",
        "privacy",
        "U-LiRA, AUC an example",
        "How well a likelihood ratio tells models that unlearned an image from models that never saw it; mean over images.",
    ),
    (r"u_lira_p95", "privacy", "U-LiRA, 95th percentile", "The same, of the image that stands out more than 95 % do."),
    (
        r"eps_i",
        "privacy",
        "epsilon, median",
        "Privacy loss of each forgotten training image, in nats; N models show ln(N - 1).",
    ),
    (r"eps_i_p95", "privacy", "epsilon, 95th percentile", "The same, of the image that stands out more than 95 % do."),
    (
        r"eps_score",
        "privacy",
        "epsilon score",
        "Mean over images of 2 to the power of minus the whole half nats of epsilon.",
    ),
    (
        r"mia_cc3m",
        "privacy",
        "membership attack against CC3M, accuracy",
        "The same with pictures of another collection as the unseen ones, which tells where a picture is from, too.",
    ),
    (r"mia_\w+", "privacy", "membership attack", "How well an attacker tells members from non-members."),
    (
        r"ks_d",
        "distance",
        "KS distance to oracles",
        "Largest gap between the distributions of confidence on the forgotten; the oracle value is oracle against oracle.",
    ),
    (
        r"fq",
        "distance",
        "forget quality",
        "Share of the KS distance from original to oracles that was gone; 1 is as near as oracles are to each other.",
    ),
    (
        r"disagree",
        "distance",
        "disagreement with oracles",
        "Share of forgotten images that are called something else than by a retrained model; oracles disagree as well.",
    ),
    (
        r"klom",
        "distance",
        "KL divergence of margins",
        "How surprising each forgotten image's margin is among the oracles' margins on it, in nats.",
    ),
    (
        r"avg_gap",
        "distance",
        "average gap to oracles",
        "Mean distance of forget, retain and utility accuracy and of the membership AUC from the oracles'.",
    ),
    (
        r"tow",
        "distance",
        "tug of war",
        "Product of one minus each accuracy's distance from the oracles'; one failure brings it down.",
    ),
    (
        r"relearn@(\d+)",
        "attack",
        "relearning from {}",
        "Mean forget accuracy while the first {} training images of each target are learned again, beside retained ones.",
    ),
    (r"n_oracles", "detail", "oracles", "How many retrained models the oracle's mean and spread are of."),
    (r"relearn@\d+\+(\d+)", "detail", "relearning, after {} steps", "A point of the relearning curve."),
    (r"resurge", "attack", "resurgence", "Forget accuracy after fine-tuning on retained images alone."),
    (r"fa_w(\d)", "attack", "forget accuracy at {} bits", "With weights rounded to {} bits."),
    (r"ra_w(\d)", "attack", "retained accuracy at {} bits", "With weights rounded to {} bits."),
    (r"undo@(\d+)", "attack", "{} % undone", "Forget accuracy of the weights {} % of the way back to the original."),
    (
        r"seq_fa@(\d+)",
        "attack",
        "forget accuracy after {} in turn",
        "Of the first {} targets of a joint request, forgotten one after the other.",
    ),
    (r"seq_ra@(\d+)", "attack", "retained accuracy after {} in turn", "After {} targets forgotten one after the other."),
    (r"seq_rebound", "attack", "rebound", "Forget accuracy on each target after the last request less that after its own."),
    (r"seq_slope", "attack", "retained accuracy a request", "What each of the requests in turn adds to it."),
    (r"prompt_adv", "attack", "adversarial prompt", "Forget accuracy with words found by search in the name's place."),
    (r"prompt_inv", "attack", "inverted prompt", "Forget accuracy with the mean of five images in the name's place."),
    (
        r"context@([\d.]+)",
        "attack",
        "drawn from a picture, noise {}",
        "Share of the target's pictures that still show it, noised {} of the way and drawn anew under their prompts.",
    ),
    (
        r"inversion",
        "attack",
        "textual inversion",
        "Share of the target's prompts that show it with a vector in the name's place, learned from a few of its pictures.",
    ),
    (r"probe", "features", "linear probe", "Share of the targets' images that a classifier trained on the features names."),
    (r"knn", "features", "nearest neighbours", "Share of the targets' images that the nearest training images name."),
    (
        r"cka",
        "features",
        "alignment",
        "Centred kernel alignment with an oracle's features; oracles among themselves beside it.",
    ),
    (r"drift", "features", "drift", "Mean of 1 - cosine of a retained image's features before and after."),
    (r"edit_l2", "features", "size of the change", "Norm of the change of all weights over their norm."),
    (r"edit_tensors", "features", "tensors changed", "How many parameters differ from the original's."),
    (r"t_prepare", "cost", "preparation", "Seconds for gradients, masks or decompositions."),
    (r"t_search", "cost", "search", "Seconds for choosing steps, layers and stops on the validation split."),
    (r"t_apply", "cost", "editing", "Seconds for changing the weights."),
    (r"t_total", "cost", "time", "Seconds in all, search included."),
    (r"n_forget_read", "cost", "forget reads", "Samples read from the forget split, repetitions counted."),
    (r"n_retain_read", "cost", "retain reads", "Samples read from the retain split, repetitions counted."),
    (r"n_evals", "cost", "validations", "Evaluations on the validation split."),
    (r"peak_device_bytes", "cost", "device memory", "Peak bytes allocated on the accelerator."),
    (r"peak_device_reserved_bytes", "cost", "device memory, reserved", "Peak bytes reserved on the accelerator."),
    (r"peak_rss_bytes", "cost", "host memory", "Peak resident memory of the cell's process."),
    (r"bytes_delta", "cost", "size of the edit", "Smallest file that turns the original into the unlearned model."),
    (r"energy_j", "cost", "energy", "Joules by the machine's counters."),
)

FORGET = ("fa@1", "acc_forget", "ua")
RETAIN = ("ra@1", "acc_retain", "ira", "ta@1")
UTILITY = ("util@1",)
"""Another task on the same model: to have lost it is damage that accuracy on what is kept may not show."""
PRIVACY = ("mia_sample",)
ORDER: tuple[Kind, ...] = ("forget", "retain", "privacy", "distance", "attack", "features", "other", "detail", "cost")
BETTER = {"higher": "higher is better", "lower": "lower is better", "oracle": "nearest to the oracle is best"}
ARROW = {"higher": "↑", "lower": "↓", "oracle": "→R"}


def about(metric: str) -> About:
    """The description of a metric; unknown ones come back as kind `other` without a sentence."""
    for pattern, kind, title, text in KNOWN:
        if match := re.fullmatch(pattern, metric):
            part = match.group(1) if match.re.groups else ""
            return About(kind, title.format(part), text.format(part))
    return About("other", metric, "")


def of_quality(metric: str) -> bool:
    """Whether a metric says how good a model is: it is neither a cost nor a detail, such as a point of a curve."""
    return about(metric).kind not in {"cost", "detail"}


def position(metric: str) -> tuple[int, int, str]:
    """Sort key: the order of kinds, within a kind that of `KNOWN`, then the name."""
    listed = [i for i, known in enumerate(KNOWN) if re.fullmatch(known[0], metric)]
    return ORDER.index(about(metric).kind), listed[0] if listed else len(KNOWN), metric


def is_bytes(metric: str, unit: str | None) -> bool:
    """Whether a metric counts bytes."""
    return (unit or "").lower() in {"b", "byte", "bytes"} or "bytes" in metric


def number(value: float | None, metric: str = "", unit: str | None = None) -> str:
    """A value as people read it: three decimals for shares, three digits for costs, counts in full; `—` for null."""
    if value is None or math.isnan(value):
        return "—"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if is_bytes(metric, unit):
        return _bytes(value)
    if metric.startswith("n_"):
        return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"
    if about(metric).kind == "cost" or abs(value) >= 100:
        return _digits(value)
    return f"{value + 0.0:.3f}" if round(value, 3) else "0.000"  # no "-0.000"


def signed(value: float | None) -> str:
    """A difference, with its sign unless it rounds to nothing."""
    return number(value) if value is None or not round(value, 3) else f"{value:+.3f}"


def unit_of(metric: str, unit: str | None) -> str:
    """The unit to print in a header; bytes carry theirs with each number."""
    if is_bytes(metric, unit):
        return ""
    return unit or {"t_": "s"}.get(metric[:2], "")


def _digits(value: float) -> str:
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 4)}f}"


def _bytes(value: float) -> str:
    power = min(3, max(0, math.floor(math.log10(abs(value)) / 3))) if value else 0
    if power == 0:
        return f"{value:.0f} B"
    return f"{_digits(value / 1000**power)} {('kB', 'MB', 'GB')[power - 1]}"
