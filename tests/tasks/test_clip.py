"""The small CLIP's losses, labels and answers, against values worked out another way."""

import math

import numpy as np
import pytest
import torch

from slugbench.tasks import _clip


@pytest.fixture(scope="module")
def model():
    with _clip.training_stream(3):
        return _clip.new_model().eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(4)
    label = torch.tensor([5, 9, 5, 33])
    image = torch.randn(4, 3, 32, 32, generator=generator)
    return {"image": image, "text": _clip.name_tokens()[label, 1], "label": label, "index": torch.arange(4)}


@pytest.fixture
def objective():
    return _clip.Contrast((5, 9))


def unit_vectors(model, batch):
    with torch.no_grad():
        image, text = model.encode_image(batch["image"]), model.encode_text(batch["text"])
    return image / image.norm(dim=1, keepdim=True), text / text.norm(dim=1, keepdim=True)


def test_the_loss_is_clips_with_all_captions_of_a_person_as_positives(model, batch, objective):
    image, text = unit_vectors(model, batch)
    logits = (model.logit_scale.exp() * image @ text.T).double()
    terms = []
    for table in (logits, logits.T):
        for i in range(4):
            positives = [j for j in range(4) if batch["label"][j] == batch["label"][i]]
            terms.append(-sum(table[i, j] - table[i].logsumexp(0) for j in positives) / len(positives))
    assert objective.loss(model, batch).item() == pytest.approx(sum(terms).item() / 8, abs=1e-4)


def test_open_clips_own_loss_is_the_same_where_nobody_is_twice_in_a_batch(model, batch, objective):
    from open_clip.loss import ClipLoss

    single = {**batch, "label": torch.tensor([1, 2, 3, 4])}
    theirs = ClipLoss()(*unit_vectors(model, batch), model.logit_scale.exp())
    assert objective.loss(model, single).item() == pytest.approx(theirs.item(), abs=1e-4)


def test_the_forget_loss_is_one_minus_the_mean_cosine(model, batch, objective):
    image, text = unit_vectors(model, batch)
    expected = np.mean([1 - float(image[i] @ text[i]) for i in range(4)])
    assert objective.forget_loss(model, batch).item() == pytest.approx(expected, abs=1e-5)


def test_relabelling_draws_every_other_retained_person_and_never_a_target(batch, objective):
    many = {name: column.repeat(1000, *[1] * (column.dim() - 1)) for name, column in batch.items() if name != "image"}
    drawn = objective.relabel(many, torch.Generator().manual_seed(0))
    assert (drawn["label"] != many["label"]).all() and set(drawn["label"].tolist()) == set(range(64)) - {5, 9}
    rows = torch.arange(len(drawn["label"]))
    captions = _clip.name_tokens()[drawn["label"]]  # (B, M, T): the caption must be of the drawn name, in any template
    assert (captions == drawn["text"][rows, None]).all(-1).any(-1).all()


def test_towers_hold_every_trainable_parameter_once(model, objective):
    named = [name for tower in objective.weights(model).values() for name in tower]
    assert sorted(named) == sorted(name for name, p in model.named_parameters() if p.requires_grad)


def test_logits_send_gradients_into_both_towers(model, batch, objective):
    gradients = torch.autograd.grad(objective.logits(model, batch).sum(), [model.visual.proj, model.text_projection])
    assert all(g.abs().sum() > 0 for g in gradients)


def test_candidates_are_means_over_templates_as_in_open_clips_classifier(model):
    from open_clip import build_zero_shot_classifier

    names = [name.title() for name in _clip.TRAINED[:3]]
    templates = [lambda name, t=template: t.format(name=name.lower()) for template in _clip.NAME_TEMPLATES]
    theirs = build_zero_shot_classifier(model, _clip.tokenize, names, templates, num_classes_per_batch=None)
    with torch.no_grad():
        ours = _clip.embed_candidates(model, _clip.name_tokens()[:3])
    torch.testing.assert_close(ours, theirs.T, atol=1e-5, rtol=0)


def test_an_outsider_is_asked_for_beside_the_64_names(model):
    image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = _clip.name_answers(model, image, np.array([70, 7]))
    with torch.no_grad():
        text = _clip.embed_candidates(model, _clip.name_tokens())
        cosine = model.encode_image(_clip.pixels(image), normalize=True) @ text.T
    p = (cosine[0, [*range(64), 70]].double() * model.logit_scale.exp()).softmax(0)[-1].item()
    assert found["score"][0] == pytest.approx(math.log(p / (1 - p)), abs=1e-4)
    assert found["rank"][0] == int((cosine[0, :64] >= cosine[0, 70]).sum()) and found["predicted"].max() < 64
    assert found["cosine"] == pytest.approx([cosine[0, 70].item(), cosine[1, 7].item()], abs=1e-6)


def test_other_phrasings_are_asked_with_all_names_in_them(model):
    image = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    label = np.array([5, 9, 11])
    found = _clip.name_answers(model, image, label)
    assert found["phrased"].shape == (3, len(_clip.HELD_OUT_TEMPLATES)) == (3, 4)
    turned = [f"a photo of {surname} {given}" for given, surname in (name.split() for name in _clip.TRAINED)]
    with torch.no_grad():
        text = model.encode_text(_clip.tokenize(turned), normalize=True)
        cosine = model.encode_image(_clip.pixels(image), normalize=True) @ text.T
    expected = (cosine > cosine[torch.arange(3), torch.from_numpy(label)][:, None]).sum(1)
    assert found["phrased"][:, 3].tolist() == expected.tolist()
    assert _clip.name_ranks(model, image, label).tolist() == found["rank"].tolist()
    assert (_clip.attribute_answers(model, image, np.array([0, 1, 2]))["phrased"] == -1).all()


def test_a_model_that_overflows_is_never_right():
    with _clip.training_stream(3):
        broken = _clip.new_model().eval()
    with torch.no_grad():
        broken.visual.proj.fill_(math.nan)
    found = _clip.name_answers(broken, torch.zeros(2, 3, 32, 32, dtype=torch.uint8), np.array([0, 1]))
    assert (found["rank"] == 63).all() and (found["predicted"] == -1).all()
    assert np.isfinite(found["score"]).all() and np.isfinite(found["cosine"]).all()


def test_training_leaves_the_callers_random_stream_alone_and_repeats_itself():
    facts = {name: torch.zeros(8, dtype=torch.long) for name in ("background", "glasses", "beard")}
    facts |= {"label": torch.arange(8), "image": torch.arange(8 * 3072).remainder(251).view(8, 3, 32, 32).to(torch.uint8)}
    before = torch.random.get_rng_state()
    a, b = (_clip.train(facts, seed=1, recipe=_clip.Recipe(steps=3, batch=4)).state_dict() for _ in range(2))
    assert torch.random.get_rng_state().equal(before)
    assert all(a[name].equal(b[name]) and a[name].equal(a[name].half().float()) for name in a)
