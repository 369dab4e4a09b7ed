"""Update rules against loops written out by hand, on a network of two layers in double precision.

Splits are read in one batch where the order of samples must not matter; results then differ by rounding alone.
"""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import rel_entr, softmax

from slugbench.bench import Budget, Request, Scores, TensorSplit, Validation
from slugbench.bench.registry import load
from slugbench.methods.ft import FineTuning
from slugbench.methods.ga import GradientAscent
from slugbench.methods.gaft import AscentThenFineTuning
from slugbench.methods.l1_sparse import L1Sparse
from slugbench.methods.neggrad_plus import NegGradPlus
from slugbench.methods.scrub import Scrub, divergence
from slugbench.methods.shuffled import Relabelled, Shuffled
from slugbench.methods.slug import Slug
from slugbench.methods.ssd import SelectiveSynapticDampening, dampening, everything, importances

from .toy_clip import NAMES, Contrast, changed, clip_request, pictures

METHODS = ["ga", "ft", "gaft", "neggrad_plus", "l1_sparse", "scrub", "ssd", "shuffled"]
ALL = 100  # a batch size that holds a whole split
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


class Net(torch.nn.Module):
    """Two layers and a parameter of one element."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = torch.nn.Parameter(torch.randn(5, 4, generator=generator, dtype=torch.float64))
        self.second = torch.nn.Parameter(torch.randn(4, 3, generator=generator, dtype=torch.float64))
        self.scale = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, x):
        return self.scale * torch.tanh(x @ self.first) @ self.second


class CrossEntropy:
    kind = "classifier"

    def loss(self, model, batch):
        return F.cross_entropy(model(batch["image"]), batch["label"])

    forget_loss = loss

    def logits(self, model, batch):
        return model(batch["image"])

    def weights(self, model):
        return {"model": [name for name, _ in model.named_parameters()]}


class Logged:
    """A split that writes down each batch it hands out."""

    def __init__(self, split, log, name):
        self.split, self.log, self.name = split, log, name

    def __len__(self):
        return len(self.split)

    def batches(self, size, generator=None):
        for batch in self.split.batches(size, generator):
            self.log.append(self.name)
            yield batch


def small_request(log=None):
    """Four samples to forget, ten to keep; every look at validation finds a better model than the last."""
    log = [] if log is None else log
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(14, 5, generator=generator, dtype=torch.float64)
    label = torch.tensor([0] * 4 + [1, 2] * 5)
    forget, retain = (TensorSplit({"image": image[rows], "label": label[rows]}) for rows in (slice(4), slice(4, 14)))

    def validate(model, *, retain=True):
        log.append("look")
        return Scores(1 / (1 + log.count("look")), 1.0 if retain else math.nan, 0.0)

    return Request(
        model=Net().eval(),
        targets=("0",),
        forget=Logged(forget, log, "forget"),
        retain=Logged(retain, log, "retain"),
        validation=Validation(forget, retain),
        objective=CrossEntropy(),
        validate=validate,
        budget=Budget(10_000, 10_000, 10_000),
        goal=0.0,
        generator=torch.Generator().manual_seed(0),
    )


def passes(log):
    """The log as `forget x 2, retain x 5`, looks in one word."""
    runs = []
    for entry in log:
        if runs and runs[-1][0] == entry:
            runs[-1][1] += 1
        else:
            runs.append([entry, 1])
    return [(name, 1 if name == "look" else count) for name, count in runs]


def by_hand(losses, learning_rate, momentum=0.9):
    """SGD over functions model, forget, retain -> loss, one a step: v = momentum v + g, theta = theta - rate v."""
    request = small_request()
    (forget,), (retain,) = request.forget.split.batches(ALL), request.retain.split.batches(ALL)
    theta = dict(Net().named_parameters())
    velocity = {name: torch.zeros_like(weight) for name, weight in theta.items()}
    for loss in losses:
        model = copy.deepcopy(request.model)
        model.load_state_dict(theta)
        loss(model, forget, retain).backward()
        for name, weight in model.named_parameters():
            velocity[name] = momentum * velocity[name] + weight.grad
            theta[name] = theta[name].detach() - learning_rate * velocity[name]
    return {name: weight.detach() for name, weight in theta.items()}


def cross_entropy(model, batch):
    """Of the true label, from its definition."""
    return -torch.log(torch.softmax(model(batch["image"]), 1)[torch.arange(len(batch["label"])), batch["label"]]).mean()


def assert_same(model, expected):
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, expected[name], **CLOSE, msg=name)


# ---------------------------------------------------------------- ga, ft, gaft, neggrad_plus


def test_ascent_climbs_the_forget_loss_and_fine_tuning_descends_the_retain_loss():
    settings = {"learning_rate": 0.1, "steps": 3, "batch": ALL, "every": 1, "weight_decay": 0.0}
    ascended = GradientAscent(**settings)(small_request())
    assert_same(ascended, by_hand([lambda m, f, r: -cross_entropy(m, f)] * 3, 0.1))
    tuned = FineTuning(**settings)(small_request())
    assert_same(tuned, by_hand([lambda m, f, r: cross_entropy(m, r)] * 3, 0.1))


def test_gaft_ascends_over_all_there_is_to_forget_then_descends_then_looks():
    log = []
    AscentThenFineTuning(epochs=2, batch=2, retain_batch=4)(small_request(log))
    assert passes(log) == [("forget", 2), ("retain", 3), ("look", 1)] * 2


def test_gaft_has_one_optimizer_for_both_phases():
    """Momentum is carried from the ascent into the descent."""
    method = AscentThenFineTuning(epochs=2, batch=ALL, retain_batch=ALL, learning_rate=0.1, weight_decay=0.0)
    phases = [lambda m, f, r: -cross_entropy(m, f), lambda m, f, r: cross_entropy(m, r)]
    assert_same(method(small_request()), by_hand(phases * 2, 0.1))


def test_neggrad_plus_steps_along_the_weighted_difference_of_the_gradients():
    method = NegGradPlus(a=0.8, epochs=3, batch=ALL, retain_batch=ALL, every=1, learning_rate=0.1, weight_decay=0.0)
    both = [lambda m, f, r: 0.8 * cross_entropy(m, r) - 0.2 * cross_entropy(m, f)] * 3
    assert_same(method(small_request()), by_hand(both, 0.1))


def test_neggrad_plus_cycles_what_is_to_be_forgotten():
    log = []
    NegGradPlus(epochs=1, batch=2, retain_batch=2, every=5)(small_request(log))
    assert log[:10] == ["retain", "forget"] * 5  # an epoch is 5 batches of 2 to keep; 2 batches of 2 are to be forgotten


# ---------------------------------------------------------------- l1_sparse


def test_the_l1_penalty_is_over_all_parameters_and_fades_linearly():
    """alpha_t of three epochs: alpha, 2/3 alpha, 1/3 alpha."""
    method = L1Sparse(alpha=0.03, epochs=3, batch=ALL, learning_rate=0.1, weight_decay=0.0)

    def penalised(alpha):
        return lambda m, f, r: cross_entropy(m, r) + alpha * (m.first.abs().sum() + m.second.abs().sum() + m.scale.abs())

    assert_same(method(small_request()), by_hand([penalised(0.03), penalised(0.02), penalised(0.01)], 0.1))


# ---------------------------------------------------------------- scrub


def test_the_divergence_is_the_originals_relative_entropy_at_the_temperature():
    original, logits = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, q = (softmax(np.asarray(x) / 4, axis=1) for x in (original, logits))
    assert divergence(original, logits, 4.0).item() == pytest.approx(16 * rel_entr(p, q).sum(1).mean(), rel=1e-12)
    assert divergence(original, original, 4.0).item() == pytest.approx(0, abs=1e-12)


def test_scrub_ascends_first_and_only_in_the_first_epochs():
    log = []
    Scrub(epochs=4, max_epochs=2, batch=2, retain_batch=4, every=ALL)(small_request(log))
    assert passes(log) == [("forget", 2), ("retain", 3), ("forget", 2), ("retain", 9), ("look", 1)]


def test_scrub_obeys_the_original_and_not_what_the_model_has_become():
    method = Scrub(
        gamma=0.9, alpha=0.3, temperature=2.0, epochs=3, max_epochs=2, batch=ALL, retain_batch=ALL, every=1,
        learning_rate=0.1, weight_decay=0.0,
    )  # fmt: skip

    def kl(model, batch):
        p, q = (torch.distributions.Categorical(logits=net(batch["image"]) / 2) for net in (Net(), model))
        return 4 * torch.distributions.kl_divergence(p, q).mean()

    descend = lambda m, f, r: 0.9 * cross_entropy(m, r) + 0.3 * kl(m, r)  # noqa: E731
    ascend = lambda m, f, r: -kl(m, f)  # noqa: E731
    assert_same(method(small_request()), by_hand([ascend, descend, ascend, descend, descend], 0.1))


# ---------------------------------------------------------------- ssd


def test_dampening_by_hand():
    """I_f = 8 against I_D = 1, 2, .5, 8 at alpha 3: ratios 8, 4, 16 pass, 1 does not; lambda 2 gives 2/8, 4/8, 1/8."""
    of_forget, of_all = torch.tensor([8.0, 8, 8, 8, 0, 5]), torch.tensor([1.0, 2, 0.5, 8, 0, 0])
    assert dampening(of_forget, of_all, 3, 2).tolist() == [0.25, 0.5, 0.125, 1, 1, 0]
    assert dampening(of_forget, of_all, 3, 6).tolist() == [0.75, 1, 0.375, 1, 1, 0]  # 12/8 is held at 1


def test_importances_are_squared_before_they_are_averaged():
    request, model = small_request(), Net()
    batches = list(request.retain.split.batches(4))
    squares = np.zeros((5, 4))
    for batch in batches:
        squares += torch.autograd.grad(cross_entropy(model, batch), model.first)[0].numpy() ** 2
    found = importances(model, ["first", "scale"], CrossEntropy().loss, batches)
    np.testing.assert_allclose(found["first"], squares / 3, rtol=1e-9)
    assert found.keys() == {"first", "scale"} and found["scale"].shape == ()


def test_every_batch_of_all_data_has_its_share_of_the_forget_split():
    from slugbench.methods._common import Allowance

    request = small_request()
    batches = list(everything(request, Allowance(request), 5, torch.Generator().manual_seed(0)))
    assert [(batch["label"] == 0).sum().item() for batch in batches] == [2, 2, 0]
    images = torch.cat([batch["image"] for batch in batches])
    assert len(images) == 14 == len({tuple(image.tolist()) for image in images})


def test_ssd_dampens_once_from_the_original_weights_and_skips_no_tensor_of_one_element():
    method = SelectiveSynapticDampening(alpha=0.5, strength=0.25, batch=ALL)
    request, model = small_request(), Net()
    (forget,), (retain,) = request.forget.split.batches(ALL), request.retain.split.batches(ALL)
    together = {name: torch.cat([forget[name], retain[name]]) for name in ("image", "label")}
    weights = dict(model.named_parameters())
    of_forget, of_all = (
        [g.numpy() ** 2 for g in torch.autograd.grad(cross_entropy(model, batch), list(weights.values()))]
        for batch in (forget, together)
    )
    expected = {}
    for (name, weight), i_f, i_d in zip(weights.items(), of_forget, of_all, strict=True):
        factor = np.where(i_f > 0.5 * i_d, np.minimum(0.25 * i_d / i_f, 1), 1)
        assert name != "scale" or factor < 1  # the case has something to say about it
        expected[name] = weight.detach() * torch.tensor(factor)
    assert_same(method(request), expected)


def test_ssd_changes_nothing_where_the_budget_ends_before_the_forget_split():
    request = dataclasses.replace(small_request(), budget=Budget(0, 14, 0))
    assert_same(SelectiveSynapticDampening(alpha=1e-6)(request), Net().state_dict())


# ---------------------------------------------------------------- shuffled


def test_shuffled_edits_one_tensor_along_another_gradient_than_slug():
    request = clip_request()
    (layer,) = changed(Shuffled()(request))
    assert request.validate.meter.counts["forget"] == 24  # read once and counted through the relabelling
    plain = Slug()(clip_request())
    assert changed(plain) != [layer] or not torch.equal(plain.state_dict()[layer], request.model.state_dict()[layer])


def test_the_shuffled_split_has_the_same_pictures_under_other_names():
    split = pictures(1, 6, [3, 5])
    shuffled = Relabelled(split, Contrast(), seed=7)
    (before,), (after,), (again,) = split.batches(12), shuffled.batches(12), shuffled.batches(12)
    assert len(shuffled) == 12 and len(shuffled.of("5")) == 6
    assert torch.equal(before["image"], after["image"])
    assert (after["label"] != before["label"]).all() and (after["text"] != before["text"]).any(1).all()
    assert torch.equal(after["label"], again["label"])
    (other,) = Relabelled(split, Contrast(), seed=8).batches(12)
    assert not torch.equal(after["label"], other["label"])
    (part,) = shuffled.of("5").batches(6)
    assert (part["label"] != 5).all() and part["label"].max() < NAMES


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    "method", [AscentThenFineTuning(), NegGradPlus(learning_rate=1e-3), Scrub()], ids=lambda m: type(m).__name__
)
def test_methods_that_ascend_forget(method):
    request = clip_request()
    model = method(request)
    assert request.reached(request.validate(model))


@pytest.mark.parametrize("name", METHODS)
def test_spaces_name_parameters_and_hold_values_these_take(name):
    entry = load().get("method", name)
    for parameter, values in getattr(entry.cls, "space", {}).items():
        assert len(set(values)) == len(values) > 1
        for value in values:
            assert getattr(load().create("method", name, {parameter: value}), parameter) == value
    assert entry.control or entry.cls.space


@pytest.mark.parametrize("a", [0.0, 1.0, -1.0])
def test_neggrad_plus_refuses_weights_that_leave_one_side_out(a):
    with pytest.raises(ValueError, match="above 0 and below 1"):
        NegGradPlus(a=a)
