import dataclasses
from collections import Counter

import pytest
import torch

from slugbench.bench import TensorSplit
from slugbench.methods._common import Allowance
from slugbench.methods.random_label import RandomLabel, joint_loss, random_label_loss, relabelling

from ..toys import toy_trial
from .toy_clip import NAMES, Contrast, accuracy, changed, clip_request, pictures, tokens

SCHEDULES = ["mixed", "two_phase", "joint"]


class Recorded:
    """An objective that answers with a weight of the model and notes what it was asked, in place of computing it."""

    kind = "classifier"

    def __init__(self, classes=10):
        self.classes, self.seen = classes, []

    def loss(self, model, batch):
        self.seen.append(batch)
        return model.weight.sum()

    def relabel(self, batch, generator):
        shift = torch.randint(1, self.classes, batch["label"].shape, generator=generator)
        return {**batch, "label": (batch["label"] + shift) % self.classes}

    def logits(self, model, batch):
        return torch.zeros(len(batch["label"]), self.classes)


def recorded(n_forget, n_retain, *, seed=0, reads=10**9, classes=10):
    """A request of splits of that length whose samples say which split they are from; they hold no pictures."""
    columns = [{"label": torch.zeros(n, dtype=torch.long), "index": torch.arange(n)} for n in (n_forget, n_retain)]
    splits = [TensorSplit({**c, "forget": torch.full((len(c["label"]),), i == 0)}) for i, c in enumerate(columns)]
    request = toy_trial().request
    return dataclasses.replace(
        request,
        model=torch.nn.Linear(1, 1),
        forget=splits[0],
        retain=splits[1],
        objective=Recorded(classes),
        budget=dataclasses.replace(request.budget, max_reads=reads),
        generator=torch.Generator().manual_seed(seed),
    )


def stream(request, schedule, *, labels="strict", steps=None, **fields):
    """The batches of the first `steps` losses of a schedule."""
    method, allowance = RandomLabel(labels=labels, **fields), Allowance(request)
    losses = getattr(method, schedule)(request, allowance, relabelling(request, allowance, labels))
    for _, _ in zip(range(steps or 10**9), losses, strict=False):
        pass
    return request.objective.seen


def test_an_epoch_in_two_phases_is_all_forget_batches_and_then_all_retain_batches():
    request = recorded(4_500, 40_500)  # the paper's 10 % of CIFAR-10: ceil(4500/256) + ceil(40500/256) = 18 + 159
    batches = stream(request, "two_phase", batch=256, steps=2 * 177)
    for epoch in (batches[:177], batches[177:]):
        assert [bool(b["forget"].all()) for b in epoch] == [True] * 18 + [False] * 159
        assert not any(b["forget"].any() for b in epoch[18:])
        assert sum(len(b["index"]) for b in epoch) == 45_000
    assert RandomLabel(batch=256).pace("two_phase", request)[0] == 1_770


def test_a_joint_epoch_is_one_shuffled_pass_over_both_splits():
    batches = stream(recorded(450, 4_050), "joint", batch=256, steps=18)  # ceil(4500 / 256)
    assert [len(b["index"]) for b in batches] == [256] * 17 + [148]
    seen = Counter((bool(f), int(i)) for b in batches for f, i in zip(b["forget"], b["index"], strict=True))
    assert len(seen) == 4_500 and set(seen.values()) == {1}
    # a tenth of each batch, binomially: 25.6 +- 4.7 of 256 (less, without replacement); 5 sigma
    assert (
        all(abs(b["forget"].sum() - 25.6) < 24 for b in batches[:-1]) and len({int(b["forget"].sum()) for b in batches}) > 3
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_stops_where_no_more_may_be_read(schedule):
    request = recorded(40, 100, reads=333)
    read = sum(len(b["index"]) for b in stream(request, schedule, batch=16, retain_batch=48))
    assert 333 - 48 <= read <= 333


def test_strict_labels_are_never_true_and_uniform_ones_once_in_c():
    n, classes = 30_000, 10
    for labels, share in (("strict", 0.0), ("uniform", 1 / classes)):
        (batch,) = stream(recorded(n, 10), "two_phase", labels=labels, batch=n, steps=1)
        drawn = torch.bincount(batch["label"], minlength=classes) / n  # all true labels are 0
        three_sigma = 3 * (share * (1 - share) / n) ** 0.5
        assert abs(drawn[0] - share) <= three_sigma
        # each other label alike: p (1 - p) / n is at most that of p = 1/9
        assert (drawn[1:] - (1 - share) / (classes - 1)).abs().max() < 4 * (1 / 9 * 8 / 9 / n) ** 0.5


@pytest.mark.parametrize("labels", ["strict", "uniform"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_labels_are_drawn_anew_each_epoch_and_alike_from_one_seed(schedule, labels):
    def epochs(seed):
        drawn = {}
        for batch in stream(recorded(64, 64, seed=seed), schedule, labels=labels, batch=64, retain_batch=64, steps=4):
            for index, label in zip(batch["index"][batch["forget"]], batch["label"][batch["forget"]], strict=True):
                drawn.setdefault(int(index), []).append(int(label))
        return drawn

    assert epochs(0) == epochs(0) != epochs(1)
    twice = [labels[:2] for labels in epochs(0).values()]
    # 64 samples, 9 or 10 labels each: all alike by chance once in 9^64
    assert len(twice) == 64 and any(first != second for first, second in twice)


def test_a_sample_that_keeps_its_name_keeps_its_caption():
    request = clip_request()
    relabel = relabelling(request, Allowance(request), "uniform")
    (batch,) = pictures(1, 100).batches(800)
    drawn = relabel(batch)
    assert torch.equal(drawn["text"], tokens(drawn["label"])) and torch.equal(drawn["image"], batch["image"])
    kept = (drawn["label"] == batch["label"]).float().mean().item()
    assert abs(kept - 1 / NAMES) < 3 * (1 / 8 * 7 / 8 / 800) ** 0.5


def test_a_request_without_a_generator_draws_from_one_stream():
    """Two generators of one seed would shuffle and relabel with the same numbers."""
    one, other = (
        RandomLabel(steps=6, every=2)(r) for r in (clip_request(), dataclasses.replace(clip_request(), generator=None))
    )
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))  # its seed is 0


def test_on_clip_random_labels_are_learned_by_the_zero_shot_classifier():
    request = clip_request()
    (batch,) = request.forget.batches(24)
    wrong = request.objective.relabel(batch, torch.Generator().manual_seed(0))
    log_p = request.objective.logits(request.model, batch).log_softmax(1)
    by_hand = -log_p[torch.arange(24), wrong["label"]].mean()
    torch.testing.assert_close(random_label_loss(request, wrong), by_hand)


def test_a_joint_batch_has_one_forward_pass_in_classifiers_and_two_losses_in_clip():
    request = toy_trial().request
    (forget,), (retain,) = request.forget.batches(24), request.retain.batches(168)
    both = torch.cat([forget["image"], retain["image"]]), torch.cat([forget["label"], retain["label"]])
    by_hand = torch.nn.functional.cross_entropy(request.model(both[0]), both[1])
    torch.testing.assert_close(joint_loss(request, [forget], [retain]), by_hand)

    request = clip_request()
    some = [{name: column[i : i + 1] for name, column in b.items()} for b in request.retain.batches(8) for i in range(2)]
    (wrong,) = (request.objective.relabel(b, torch.Generator()) for b in request.forget.batches(24))
    one = {name: column[:1] for name, column in wrong.items()}
    kept = Contrast().loss(request.model, {name: torch.cat([s[name] for s in some[:3]]) for name in some[0]})
    by_hand = (random_label_loss(request, one) + 3 * kept) / 4
    torch.testing.assert_close(joint_loss(request, [one], some[:3]), by_hand)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_random_labels_forget_the_target_and_keep_the_rest(schedule):
    model = RandomLabel(schedule=schedule, batch=32 if schedule == "mixed" else 64)(clip_request())
    assert accuracy(model, pictures(9, 48, [3])) < 0.5
    assert accuracy(model, pictures(9, 48, [0, 1, 2, 4, 5, 6, 7])) > 0.7
    assert "logit_scale" not in changed(model)


@pytest.mark.parametrize("schedule", ["two_phase", "joint"])
@pytest.mark.parametrize("limit", [{"max_steps": 5}, {"max_reads": 120}, {}], ids=str)
def test_what_ends_before_an_epoch_does_still_gives_a_changed_model(limit, schedule):
    """An epoch is 3 + 21 steps in two phases, 24 joint; looking only at its end would give the original."""
    method = RandomLabel(schedule=schedule, batch=8, steps=None if limit else 5)
    assert changed(method(clip_request(**limit)))
