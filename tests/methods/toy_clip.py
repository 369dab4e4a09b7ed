"""A CLIP that trains in a second or two: eight names, each with pictures that are a prototype and noise.

It is a real `open_clip` model, so that parameter names, packed attention and bare projections are those of big ones.
"""

from __future__ import annotations

import copy
import math
from functools import cache

import torch
import torch.nn.functional as F

from slugbench.bench import Budget, Request, Scores, TensorSplit, Validation
from slugbench.bench.meter import CountedSplit, CountedValidate, CpuDevice, Meter, SearchedSplit

NAMES, WORDS, CONTEXT = 8, 5, 5
START, END = 9, 10
BUDGET = Budget(max_steps=120, max_reads=20_000, max_evals=400)


def tokens(label):
    """(B, T): start, "photo" (or not), the name, end, padding."""
    text = torch.zeros(len(label), CONTEXT, dtype=torch.long)
    text[:, 0], text[:, 1], text[:, 2] = START, label + 1, END
    return text


def pictures(seed, size, names=range(NAMES)):
    """A split of `size` pictures of each name."""
    prototypes = torch.randn(NAMES, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    label = torch.tensor(list(names)).repeat_interleave(size)
    noise = torch.randn(len(label), 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    image = prototypes[label] + 1.8 * noise
    members = {str(name): torch.nonzero(label == name)[:, 0] for name in names}
    return TensorSplit({"image": image, "text": tokens(label), "label": label}, members)


class Contrast:
    """The objective."""

    kind = "clip"

    def encode(self, model, batch, tower):
        if tower == "vision":
            return model.encode_image(batch["image"], normalize=True)
        return model.encode_text(batch["text"], normalize=True)

    def embed(self, model, batch):
        return {tower: self.encode(model, batch, tower) for tower in ("vision", "text")}

    def loss(self, model, batch):
        return self.loss_of(model, self.embed(model, batch), batch)

    def forget_loss(self, model, batch):
        return self.forget_loss_of(model, self.embed(model, batch), batch)

    def loss_of(self, model, embedded, batch):
        logits = model.logit_scale.exp() * embedded["vision"] @ embedded["text"].T
        same = (batch["label"][:, None] == batch["label"]).float()
        truth = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2

    def forget_loss_of(self, model, embedded, batch):
        return (1 - (embedded["vision"] * embedded["text"]).sum(-1)).mean()

    def relabel(self, batch, generator):
        label = (batch["label"] + torch.randint(1, NAMES, batch["label"].shape, generator=generator)) % NAMES
        return {**batch, "label": label, "text": tokens(label)}

    def logits(self, model, batch):
        text = model.encode_text(tokens(torch.arange(NAMES)), normalize=True)
        logits = model.logit_scale.exp() * model.encode_image(batch["image"], normalize=True) @ text.T
        return logits.index_fill(1, torch.tensor(getattr(model, "blocked", []), dtype=torch.long), -1e4)

    def weights(self, model):
        towers = {"vision": [], "text": [], "temperature": []}
        for name, _ in model.named_parameters():
            tower = "temperature" if name == "logit_scale" else "vision" if name.startswith("visual.") else "text"
            towers[tower].append(name)
        return towers

    def masked(self, model, targets):
        model = copy.deepcopy(model)
        model.blocked = [int(target) for target in targets]
        return model


def untrained(seed=0, *, layers=2):
    import open_clip

    vision = {"layers": layers, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}
    text = {"context_length": CONTEXT, "width": 32, "heads": 2, "layers": 1, "vocab_size": END + 1}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return open_clip.model.CLIP(16, vision, text).eval()


@cache
def trained():
    model, split = untrained(), pictures(1, 24)
    optimizer, generator = torch.optim.AdamW(model.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    for _ in range(12):
        for batch in split.batches(32, generator):
            optimizer.zero_grad()
            Contrast().loss(model, batch).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval()


def accuracy(model, split):
    (batch,) = split.batches(len(split))
    with torch.no_grad():
        return (Contrast().logits(model, batch).argmax(1) == batch["label"]).float().mean().item()


def clip_request(targets=(3,), *, seed=0, **budget):
    """A request for the trained model, with a budget enforced as by the runner. Its meter is `request.validate.meter`."""
    rest = [name for name in range(NAMES) if name not in targets]
    kept = Validation(pictures(2, 16, targets), pictures(2, 16, rest))
    meter = Meter(CpuDevice(), Budget(**{**vars(BUDGET), **budget}))

    def validate(model, *, retain=True):
        p = accuracy(model, kept.forget)
        se = math.sqrt(p * (1 - p) / len(kept.forget))
        return Scores(p, accuracy(model, kept.retain) if retain else math.nan, se)

    return Request(
        model=copy.deepcopy(trained()),
        targets=tuple(map(str, targets)),
        forget=CountedSplit(pictures(1, 24, targets), meter, "forget", "cpu"),
        retain=CountedSplit(pictures(1, 24, rest), meter, "retain", "cpu"),
        validation=Validation(*(SearchedSplit(split, meter, "validation", "cpu") for split in kept)),
        objective=Contrast(),
        validate=CountedValidate(validate, meter),
        budget=meter.budget,
        goal=1 / NAMES,
        floor=accuracy(trained(), kept.retain) - 0.02,
        generator=torch.Generator().manual_seed(seed),
        progress=meter.progress,
    )


def changed(model):
    """Names of the tensors that differ from the trained model's."""
    original = trained().state_dict()
    return [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, original[name])]
