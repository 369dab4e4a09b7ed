"""Requests of two sizes for the benchmarks: ViT-B/32 with random weights, and the embedded people."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from functools import cache, partial

import torch

from slugbench.bench import Budget, Request, Scores, TensorSplit, Validation

from ..methods.toy_clip import Contrast

NAMES = 8
BATCH = 8
"""Pictures that run at a time."""


class BigContrast(Contrast):
    """The objective, with the candidate names' prompts as large models have them."""

    def logits(self, model, batch):
        text = model.encode_text(prompts(), normalize=True)
        return model.logit_scale.exp() * model.encode_image(batch["image"], normalize=True) @ text.T


@cache
def prompts():
    """(8, 77)"""
    import open_clip

    return open_clip.tokenize([f"a photo of person number {name}." for name in range(NAMES)])


@cache
def vit_b_32():
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return open_clip.create_model("ViT-B-32", pretrained=None).eval()


def _pictures(seed, count):
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(seed))


def _split(image, label):
    return TensorSplit({"image": image, "text": prompts()[label], "label": label}, {})


def _own_answers(model, image):
    """What the unedited model says, so that it is right about everything."""
    with torch.no_grad():
        return torch.cat([BigContrast().logits(model, {"image": part}).argmax(1) for part in image.split(BATCH)])


def validate(kept, model, *, retain=True):
    """Accuracy on the forget and, unless it is off, on the retain pictures, all names' prompts embedded once."""

    def accuracy(split):
        with torch.no_grad():
            text = model.encode_text(prompts(), normalize=True)
            parts = [model.encode_image(b["image"], normalize=True) @ text.T for b in split.batches(BATCH)]
        return (torch.cat(parts).argmax(1) == split.tensors["label"]).float().mean().item()

    p = accuracy(kept.forget)
    return Scores(p, accuracy(kept.retain) if retain else math.nan, math.sqrt(p * (1 - p) / len(kept.forget)))


@cache
def _big_data(forget, retain, kept_forget, kept_retain):
    model = vit_b_32()
    train = _split(_pictures(1, forget), torch.zeros(forget, dtype=torch.long))
    rest = _split(_pictures(2, retain), torch.arange(retain) % (NAMES - 1) + 1)
    images = _pictures(3, kept_forget), _pictures(4, kept_retain)
    return train, rest, Validation(*(_split(image, _own_answers(model, image)) for image in images))


def big_request(*, forget=8, retain=16, kept_forget=4, kept_retain=92):
    """Of ViT-B/32; validation labels are the model's own answers."""
    train, rest, kept = _big_data(forget, retain, kept_forget, kept_retain)
    return Request(
        model=vit_b_32(),
        targets=("0",),
        forget=train,
        retain=rest,
        validation=kept,
        objective=BigContrast(),
        validate=partial(validate, kept),
        budget=Budget(max_steps=100, max_reads=10_000, max_evals=10_000),
        goal=1 / NAMES,
        floor=0.98,
        generator=torch.Generator().manual_seed(0),
    )


def embedded_request():
    """Of the people that ship, a tuning one."""
    from slugbench.tasks.identities import Identities

    request = Identities().build("cora-oak", 0).request
    return dataclasses.replace(
        request,
        floor=request.validate(request.model).retain - 0.02,
        budget=dataclasses.replace(request.budget, max_evals=10_000),
        generator=torch.Generator().manual_seed(0),
    )


def seconds(work):
    """How long a function takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleaved(*works, rounds=5):
    """Median seconds of each function, in turns, so that the machine's moods meet all alike."""
    for work in works:
        work()
    times = [[seconds(work) for work in works] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]
