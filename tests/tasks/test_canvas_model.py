"""The parts of `canvas` that need no training: pictures, prompts, the pipeline, and what methods are told of it."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from slugbench.bench import TextToImage, TwoTowers
from slugbench.tasks import _canvas_answers, _canvas_model, _canvas_recipe, _canvas_scenes
from slugbench.tasks._canvas_answers import Target
from slugbench.tasks._canvas_scenes import OBJECTS, STYLES
from slugbench.tasks._diffusion import Names, editable, generate, redraw, to_latents, with_model

from ..canvas_toys import batch, objective, pipeline

CELLS = len(STYLES) * len(OBJECTS)


# ---------------------------------------------------------------- pictures and prompts


def test_pictures_come_from_their_seed_alone_and_fill_the_grid():
    known = _canvas_recipe.pictures("test", 2)
    again = _canvas_recipe.pictures.__wrapped__("test", 2)
    assert torch.equal(known.image, again.image) and known.image.shape == (2 * CELLS, 3, 16, 16)
    assert known.image.min() >= -1 and known.image.max() <= 1
    assert len(set(zip(known.style.tolist(), known.object.tolist(), strict=True))) == CELLS
    assert not torch.equal(known.image, _canvas_recipe.pictures("validation", 2).image)


@pytest.mark.parametrize("name", OBJECTS)
def test_every_object_differs_from_every_other_in_every_style(name):
    """Drawn in one place and size: a fifth of the pixels of an object's ground is another object's ground or none."""
    n = len(OBJECTS)
    still = _canvas_scenes.Scene(
        *(np.zeros(n) for _ in "xy"), np.full(n, 0.65), np.zeros(n), np.zeros((n, 3)), np.zeros((n, 2))
    )
    inside, _ = _canvas_scenes._shapes(still, np.arange(n))
    own = inside[OBJECTS.index(name)]
    for other, shape in zip(OBJECTS, inside, strict=True):
        if other != name:
            assert (own ^ shape).sum() > 0.2 * (own | shape).sum(), other
    assert 0.08 < own.mean() < 0.5


def test_every_word_of_a_prompt_is_one_token_and_every_prompt_fits():
    tokenizer = _canvas_model.tokenizer()
    words = {w for text in _canvas_model.CAPTIONS for w in text.replace(".", " .").split() if "{" not in w}
    assert all(len(tokenizer(word).input_ids) == 3 for word in (*words, *STYLES, *OBJECTS))
    for template in _canvas_model.CAPTIONS:
        tokens = _canvas_recipe.tokens_of_cells(template)
        assert tokens.shape == (CELLS, _canvas_model.LENGTH) and len({tuple(row) for row in tokens.tolist()}) == CELLS
        assert (tokens[:, -1] == 1).all()  # padded, so nothing was cut off


# ---------------------------------------------------------------- pipeline


def test_the_autoencoder_hands_pixels_through():
    image, vae = batch()["image"], _canvas_model.pixels_through()
    latents = to_latents(vae, image)
    torch.testing.assert_close(latents, image, atol=1e-5, rtol=0)
    # 3 tanh(x / 3) = x - x^3 / 27 with |x| <= 0.05 inside: 5e-6, times 20 on the way out
    torch.testing.assert_close(vae.decode(latents / vae.config.scaling_factor).sample, image, atol=2e-4, rtol=0)


def test_a_saved_pipeline_draws_the_same_when_loaded(tmp_path):
    from diffusers import StableDiffusionPipeline

    made = pipeline()
    made.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    drawn = [
        torch.cat(list(generate(p, ["A ball image in ink style."], [4], steps=3, guidance=2, batch=1)))
        for p in (made, loaded)
    ]
    assert torch.equal(*drawn) and drawn[0].shape == (1, 3, 16, 16)


@pytest.mark.parametrize("size", [1, 7, 32])
def test_a_picture_depends_on_its_prompt_and_seed_and_not_on_the_batch(size):
    """To 1e-5 of a picture: convolutions of other batch sizes add up in another order."""
    made, n = pipeline(), 10
    texts, seeds = _canvas_model.prompts(range(n), [i % len(OBJECTS) for i in range(n)]), list(range(100, 100 + n))
    whole, parts = (torch.cat(list(generate(made, texts, seeds, steps=4, guidance=2, batch=b))) for b in (n, size))
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)
    backwards = torch.cat(list(generate(made, texts[::-1], seeds[::-1], steps=4, guidance=2, batch=size)))
    torch.testing.assert_close(backwards.flip(0), whole, atol=1e-5, rtol=0)


def test_an_edited_model_is_what_draws():
    made = pipeline()
    model = editable(pipeline(1))
    one, other = (torch.cat(list(generate(p, ["A box image in ink style."], [4], steps=3, guidance=2, batch=1)))
                  for p in (with_model(made, model), pipeline(1)))  # fmt: skip
    assert torch.equal(one, other)


# ---------------------------------------------------------------- objective


def test_the_loss_is_the_squared_error_of_the_velocity():
    made = pipeline()
    told, given, model = objective(made), batch(), editable(made)
    draws = torch.Generator().manual_seed(0)
    noise = torch.randn(given["image"].shape, generator=draws)
    time = torch.randint(1000, (6,), generator=draws)
    a = made.scheduler.alphas_cumprod[time].view(-1, 1, 1, 1)
    noisy = a.sqrt() * given["image"] + (1 - a).sqrt() * noise
    velocity = a.sqrt() * noise - (1 - a).sqrt() * given["image"]
    with torch.no_grad():
        expected = (made.unet(noisy, time, made.text_encoder(given["text"])[0]).sample - velocity).square().mean()
        assert float(told.loss(model, given)) == pytest.approx(float(expected), rel=1e-4)


def test_losses_draw_the_same_noise_for_every_method_and_new_noise_each_time():
    made, given = pipeline(), batch()
    model = editable(made)
    with torch.no_grad():
        first, second = (objective(made) for _ in range(2))
        losses = [float(told.loss(model, given)) for told in (first, first, second)]
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize("domain", ["style", "object"])
def test_relabelling_changes_the_domain_of_the_target_alone(domain):
    told, given = objective(pipeline(), domain), batch(8, domain)
    other = told.relabel(given, torch.Generator().manual_seed(0))
    words = [_canvas_model.tokenizer().convert_ids_to_tokens(row) for row in other["text"]]
    assert (other["label"] != given["label"]).all() and 3 not in other["label"]
    for said, label, cell in zip(words, other["label"].tolist(), given["cell"].tolist(), strict=True):
        style, thing = divmod(cell, len(OBJECTS))
        names = (STYLES[label], OBJECTS[thing]) if domain == "style" else (STYLES[style], OBJECTS[label])
        assert {f"{name}</w>" for name in names} <= set(said)


def test_a_diffusion_classifier_prefers_the_prompt_that_predicts_best():
    """A U-Net that answers a prompt with the truth: here the text encoder tells it which prompt is the picture's."""
    made = pipeline()
    told, given, model = objective(made), batch(), editable(made)
    asked = []
    told.error = lambda model, batch, text, draws=None: asked.append(text) or (text != batch["text"]).float().sum(1)
    logits = told.logits(model, given)
    assert logits.shape == (6, len(STYLES)) and torch.equal(logits.argmax(1), given["label"])
    assert len(asked) == 4 * len(STYLES)


def read_by(model, texts, **options):
    tokens = _canvas_model.tokens(_canvas_model.tokenizer(), texts)
    with torch.no_grad():
        encoder = model.get_submodule("text")
        return (encoder(input_ids=tokens) if options else encoder(tokens))[0]


def test_the_control_reads_no_prompt_that_names_the_target():
    made = pipeline()
    told, model = objective(made), editable(made)
    masked, texts = told.masked(model, ["neon"]), _canvas_model.prompts([3, 4], [0, 0])
    said, plain = read_by(masked, texts), read_by(model, texts)
    torch.testing.assert_close(said[:1], read_by(model, _canvas_model.prompts([0], [0])))  # of the first style, no target
    assert torch.equal(said[1], plain[1]) and torch.equal(said, read_by(masked, texts, by_name=True))
    assert all(torch.equal(a, b) for a, b in zip(masked.state_dict().values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize(("domain", "target"), [("style", 3), ("object", 5)])
def test_what_the_control_reads_instead_keeps_the_other_domains_concept(domain, target):
    """Here of all the grid's prompts with the target: another style of the same object, or another object in that style."""
    made, style = pipeline(), domain == "style"
    told, model = objective(made, domain, target), editable(made)
    others = range(len(OBJECTS if style else STYLES))
    asked, kept = ([number] * len(others) for number in (target, 0))
    texts, expected = (_canvas_model.prompts(*((mine, others) if style else (others, mine))) for mine in (asked, kept))
    masked = told.masked(model, list(told.labels))
    torch.testing.assert_close(read_by(masked, texts), read_by(model, expected))
    name = (STYLES if style else OBJECTS)[target]
    first = read_by(model, _canvas_model.prompts([0], [0]))
    torch.testing.assert_close(read_by(masked, [f"a picture of {name}"]), first)  # no prompt of the grid's


def test_the_control_reads_prompts_with_a_longer_name_that_holds_the_targets():
    """As `Artist Sketch` does `Sketch`, both of UnlearnCanvas; the longer one may be a target itself."""
    made = pipeline()
    told, model = objective(made), editable(made)
    longer = _canvas_model.tokens(_canvas_model.tokenizer(), ["image in neon"])[0]
    told = replace(told, named={**told.named, "image in neon": longer}, labels={**told.labels, "image in neon": 3})
    texts = ["A ball image in neon style.", "A neon picture of a ball", "A neon image in neon style."]
    plain, first = read_by(model, texts), read_by(model, _canvas_model.prompts([0], [0]))[0]
    said = read_by(told.masked(model, ["neon"]), texts)
    assert torch.equal(said[0], plain[0])
    torch.testing.assert_close(said[1:], first.expand(2, -1, -1))
    both = read_by(told.masked(model, ["neon", "image in neon"]), texts)
    assert not torch.equal(both[0], plain[0])


def test_the_text_encoder_is_edited_by_the_loss_of_its_clip():
    made = pipeline()
    told, given, model = objective(made), batch(), editable(made)
    assert isinstance(told, TextToImage) and isinstance(told.contrast, TwoTowers)
    with torch.no_grad():
        by_transformers = _canvas_model.new_clip(0).eval()(input_ids=given["text"], pixel_values=given["image"])
        cosines = cosine_similarity(by_transformers.image_embeds, by_transformers.text_embeds)
        # the pipeline's text encoder is of a CLIP of the same seed
        assert float(told.contrast.forget_loss(model, given)) == pytest.approx(float((1 - cosines).mean()), rel=1e-5)
        own = told.contrast.logits(model, given).gather(1, given["label"][:, None])[:, 0]
    torch.testing.assert_close(own, by_transformers.logits_per_image.diagonal(), rtol=1e-4, atol=1e-4)
    towers = told.contrast.weights(model)
    assert list(towers) == ["text"] and set(towers["text"]) == {
        n for n, _ in model.named_parameters() if n.startswith("text.")
    }
    assert list(told.weights(model)) == ["unet"] and not any(
        p.requires_grad for p in model.get_submodule("text").parameters()
    )


# ---------------------------------------------------------------- what attacks can do


@pytest.mark.parametrize("words", [1, 2])
def test_vectors_stand_where_the_name_is_and_nowhere_else(words):
    """As if the embedding of each of the name's tokens had been overwritten, but for prompts that do not name it."""
    made, tokenizer = pipeline(), _canvas_model.tokenizer()
    texts = _canvas_model.tokens(tokenizer, ["A ball image in neon style.", "A neon picture", "A ball image in ink style."])
    name = _canvas_model.tokens(tokenizer, ["neon" if words == 1 else "in neon"])[0]
    model, attack = editable(made), Names({"it": name})
    vectors = torch.randn(words, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with attack.instead(model, "it", vectors):
        read = model.get_submodule("text")(texts)[0]
    read.square().sum().backward()
    assert vectors.grad.abs().sum() > 0
    plain = model.get_submodule("text")(texts)[0]
    table = model.get_submodule("text").get_input_embeddings().weight
    table.data[name[1 : 1 + words]] = vectors.detach()
    overwritten = model.get_submodule("text")(texts)[0]
    named = [0, 1] if words == 1 else [0]
    torch.testing.assert_close(read[named], overwritten[named])
    assert all(torch.equal(read[i], plain[i]) for i in range(3) if i not in named)
    torch.testing.assert_close(attack.vectors(model, "it"), vectors.detach())


@pytest.mark.parametrize("strength", [0.3, 0.5, 0.7])
def test_pictures_are_drawn_anew_from_as_much_noise_as_was_asked_for(strength):
    """Step by step: noise the picture to the level at which that share of the steps is left, then DDIM, guided."""
    made, given, scheduler = pipeline(), batch(2), _canvas_model.new_scheduler()
    found = redraw(made, given["image"], given["text"], [4, 5], steps=20, guidance=2.0, strength=strength)
    scheduler.set_timesteps(20)
    left = scheduler.timesteps[20 - round(20 * strength) :]
    noise = torch.cat([torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (4, 5)])
    with torch.no_grad():
        said = [made.text_encoder(text)[0] for text in (objective(made).nothing.expand(2, -1), given["text"])]
        latents = scheduler.add_noise(given["image"], noise, left[:1])
        for time in left:
            without, under = (made.unet(latents, time, text).sample for text in said)
            latents = scheduler.step(without + 2.0 * (under - without), time, latents).prev_sample
    torch.testing.assert_close(found, (latents / 2 + 0.5).clamp(0, 1), atol=1e-3, rtol=0)  # latents pass to 4e-4


# ---------------------------------------------------------------- questions


def test_questions_ask_three_times_as_often_for_the_target():
    asked = _canvas_answers.grid(Target("object", (2,)), 2)
    q = asked.questions
    forget, retain = (q["split"] == split for split in ("forget", "retain"))
    assert (q["object"][forget] == 2).all() and (q["object"][retain] != 2).all()
    assert forget.sum() == 10 * 6 and retain.sum() == 70 * 2 and (q["label"] == q["object"]).all()
    noise = _canvas_answers.noise(asked.cell, q["seed"])[forget | retain]
    assert len(set(noise.tolist())) == len(noise)


@pytest.mark.parametrize("target", [Target("style", (3,)), Target("object", (2,)), Target("style", (1, 5))])
def test_questions_end_with_all_pictures_of_the_target_that_were_trained_on_and_as_many_others(target):
    asked = _canvas_answers.grid(target, 1)
    for part, split in (("train", "forget_train"), ("test", "forget_unseen")):
        rows = asked.questions["split"] == split
        assert (asked.part[rows] == part).all() and (asked.part[~rows] != part).all()
        known = _canvas_recipe.pictures(part)
        own = torch.nonzero(torch.isin(getattr(known, target.domain), torch.tensor(target.numbers)))[:, 0]
        assert torch.equal(torch.from_numpy(asked.picture[rows]), own)
        cell = (known.style * len(OBJECTS) + known.object)[own]
        assert torch.equal(torch.from_numpy(asked.cell[rows]), cell)
        assert set(asked.questions["label"][rows]) == set(target.numbers)


def test_the_error_on_a_picture_is_the_mean_over_times_under_noise_of_its_own():
    """By the same U-Net, with the noise written out; and a picture's error does not depend on which others are asked for."""
    made = pipeline()
    found = _canvas_answers.error(made, editable(pipeline()), "train", np.array([5, 200]))
    again = _canvas_answers.error(made, editable(pipeline()), "train", np.array([200]))
    known, generator = _canvas_recipe.pictures("train"), torch.Generator().manual_seed(1)
    noise = torch.randn((3, *known.image.shape), generator=generator)
    errors = []
    for k, time in enumerate((100, 250, 400)):
        a, x, e = made.scheduler.alphas_cumprod[time], known.image[200], noise[k, 200]
        text = made.text_encoder(_canvas_recipe.tokens_of_cells()[[200 % CELLS]])[0]
        with torch.no_grad():
            v = made.unet((a.sqrt() * x + (1 - a).sqrt() * e)[None], time, text).sample[0]
        errors.append(float((v - (a.sqrt() * e - (1 - a).sqrt() * x)).square().mean()))
    assert found[1] == pytest.approx(np.mean(errors), rel=1e-4) and again[0] == pytest.approx(found[1], rel=1e-5)


def test_what_follows_from_log_probabilities():
    asked = _canvas_answers.grid(Target("style", (0,)), 1)
    asked = asked.rows(np.flatnonzero(asked.part == ""))
    n, rng = len(asked.cell), np.random.default_rng(0)
    found = {}
    for domain, names in _canvas_answers.DOMAINS.items():
        z = torch.from_numpy(rng.normal(size=(n, len(names))))
        found |= {f"{domain}_log_p": torch.log_softmax(z, 1).numpy(), domain: z.argmax(1).numpy()}
    seen = _canvas_answers.seen(found, asked)
    p = np.exp(found["style_log_p"][np.arange(n), asked.questions["label"]])
    np.testing.assert_allclose(seen["score"], np.log(p / (1 - p)), rtol=1e-9)
    assert ((seen["rank"] == 0) == (seen["predicted"] == asked.questions["label"])).all()
