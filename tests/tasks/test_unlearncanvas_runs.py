"""Methods run on the release of UnlearnCanvas, in small: folders in, drawings kept one by one, rows out."""

import copy
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest

from slugbench.bench import MissingDependency, TextToImage, UsageError, cell
from slugbench.bench.artifacts import artifacts, collect_garbage
from slugbench.bench.pictures import choose, columns, read
from slugbench.tasks import _unlearncanvas as canvas
from slugbench.tasks import _unlearncanvas_model as drawn
from slugbench.tasks import _unlearncanvas_pictures as pictures
from slugbench.tasks._diffusion import editable, generate
from slugbench.tasks._unlearncanvas_model import Drawing
from slugbench.tasks.unlearncanvas import SEARCH_SEEDS, UnlearnCanvas, _drawn_gate

from ..canvas_files import SEED
from ..canvas_release import CHECKPOINT, N_OBJECTS, N_STYLES, PARAMS, clip
from ..toys import restored_registry
from . import laws

pytestmark = pytest.mark.usefixtures("small_canvas")
STYLES, OBJECTS = canvas.STYLES[:N_STYLES], canvas.OBJECTS[:N_OBJECTS]
CELLS = N_STYLES * N_OBJECTS


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """One for all tests of this file, unless a test asks for its own."""
    folder = tmp_path_factory.getbasetemp() / "canvas-cache"
    monkeypatch.setenv("SLUGBENCH_CACHE", str(folder))


@pytest.fixture
def task(canvas_release):
    return UnlearnCanvas(data=str(canvas_release), **PARAMS)


@pytest.fixture
def copied(canvas_release, tmp_path):
    """A release to be spoilt."""
    return shutil.copytree(canvas_release, tmp_path / "UnlearnCanvas")


def of(folder, **params):
    return UnlearnCanvas(data=str(folder), **{**PARAMS, **params})


# ---------------------------------------------------------------- laws

VALIDATED = laws.conformance.test_validate_scores_what_the_objective_answers


@pytest.mark.parametrize("request_id", ["Bricks", "Birds"])
@pytest.mark.parametrize("law", [law for law in laws.OF_CLASSES if law is not VALIDATED], ids=lambda law: law.__name__)
def test_what_holds_for_all_tasks_holds(task, law, request_id, monkeypatch):
    laws.holds(law, task, "concepts", monkeypatch, request_id)


def test_gates_pass_and_name_every_target(task):
    found = task.gates([request.id for request in task.requests()], (0,))
    assert all(gate.ok for gate in found) and len(found) == 4 + N_STYLES + N_OBJECTS
    assert {gate.name for gate in found} >= {f"the original draws {name}: share" for name in (*STYLES, *OBJECTS)}


def test_the_defaults_are_the_published_protocol():
    task = UnlearnCanvas()
    assert len(task.requests()) == 70 and task._grid == canvas.PROTOCOL
    assert (task.steps, task.guidance, task.side, task.images) == (100, 9.0, 512, 20)
    assert task.sizes("Dogs") == {"forget": (5 * 51, 1), "retain": (5 * 51 * 19, 19)}
    assert pictures.parts(20) == (range(1, 6), range(6, 8), range(8, 21))  # the release's FID reads 1 to 5


def test_sizes_are_those_of_the_questions(task):
    asked = task.build("Birds", 0).questions["split"]
    assert {split: size.images for split, size in task.sizes("Birds").items()} == {
        split: (asked == split).sum() for split in ("forget", "retain")
    }


# ---------------------------------------------------------------- pictures


def test_train_pictures_come_with_the_prompts_of_the_release(task, canvas_release):
    request, words = task.build("Bricks", 0).request, drawn.read_checkpoint(canvas_release / CHECKPOINT).tokenizer
    (batch,) = request.forget.batches(100)
    texts = [f"A {name} image in Bricks style." for name in OBJECTS]
    expected = words(texts, padding="max_length", return_tensors="pt").input_ids
    assert {*map(tuple, batch["text"].tolist())} == {*map(tuple, expected.tolist())}
    assert batch["image"].shape == (2 * N_OBJECTS, 3, 16, 16) and batch["image"].abs().max() <= 1
    assert drawn.training_prompt("Seed_Images", "Dogs") == "A Dogs image in Photo style."
    assert drawn.training_prompt("Red_Blue_Ink", "Sea") == "A Sea image in Red Blue Ink style."


def test_a_photograph_goes_to_one_part_in_all_styles(task):
    known, parts = task._known, pictures.parts(PARAMS["images"])
    numbers = [set(numbers) for numbers in parts]
    assert set.union(*numbers) == {1, 2, 3, 4} and sum(map(len, numbers)) == 4
    for part in parts:
        shown = pictures.chosen(known, part, "style", 3, forget=True)
        assert {known.names[row] for row in shown.rows} == {f"Bricks/{o}/{n}.jpg" for o in OBJECTS for n in part}


@pytest.mark.parametrize(
    ("domain", "own"), [("style", "A {} image in Monet style."), ("object", "A Dogs image in {} style.")]
)
def test_candidates_are_a_cells_prompt_with_each_class_in_its_place(canvas_release, domain, own):
    pipeline = drawn.read_checkpoint(canvas_release / CHECKPOINT)
    names = (*STYLES, *OBJECTS)
    objective = drawn.objective(pipeline, names[0 if domain == "style" else -1], names, None)
    cell_ = pictures.cell_of("Van_Gogh", "Trees")
    number = canvas.DOMAINS[domain].index("Monet" if domain == "style" else "Dogs")
    text = own.format("Trees" if domain == "style" else "Van Gogh")
    expected = pipeline.tokenizer(text, padding="max_length", return_tensors="pt").input_ids[0]
    assert objective.candidates[cell_, number].equal(expected)


def test_the_clip_sees_pictures_as_its_own_processor_prepares_them():
    """From 48 pixels to 32. Pillow rounds and clips between its two passes: a few pixels differ by 0.1 of -1.8 to 2.1."""
    import torch
    from PIL import Image
    from transformers import CLIPImageProcessor

    image = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = processor(Image.fromarray(image), return_tensors="pt").pixel_values
    found = drawn.as_clip_takes(torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1, 32)
    assert (found - expected).abs().max() < 0.15 and (found - expected).abs().mean() < 0.01


# ---------------------------------------------------------------- drawings


def studio(task):
    return task._setting("Bricks").studio


def drawings(n):
    return [Drawing(STYLES[i % N_STYLES], OBJECTS[i % N_OBJECTS], SEED + i) for i in range(n)]


def test_images_do_not_depend_on_the_batch_size(canvas_release):
    """32 prompts in batches of 1, 7 and 32: floats are added up in another order, 1e-5 of a pixel from 0 to 1."""
    import torch

    pipeline = drawn.read_checkpoint(canvas_release / CHECKPOINT)
    texts = [canvas.prompt(style, object_) for style, object_, _ in drawings(32)]
    one, seven, all_ = (
        torch.cat(list(generate(pipeline, texts, range(32), steps=3, guidance=9.0, batch=size, side=16)))
        for size in (1, 7, 32)
    )
    assert one.shape == (32, 3, 16, 16) and len(torch.unique(one.flatten(1), dim=0)) == 32
    torch.testing.assert_close(seven, one, atol=1e-5, rtol=0)
    torch.testing.assert_close(all_, one, atol=1e-5, rtol=0)


def test_images_are_those_that_diffusers_own_pipeline_draws(canvas_release, tmp_path, task):
    """One by one, as a script of the release would: with DDIM, a generator a prompt, and Pillow's JPEG."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from PIL import Image

    theirs = StableDiffusionPipeline.from_pretrained(canvas_release / CHECKPOINT, safety_checker=None)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config, clip_sample=False, set_alpha_to_one=False)
    own = studio(task)
    own.draw(editable(own.pipeline), drawings(3), tmp_path)
    for each in drawings(3):
        options = {"num_inference_steps": 2, "guidance_scale": 9.0, "height": 16, "width": 16}
        generator = torch.Generator().manual_seed(each.seed)
        image = theirs(canvas.prompt(each.style, each.object_), generator=generator, **options).images[0]
        image.save(tmp_path / "theirs.jpg")
        found, expected = (np.asarray(Image.open(tmp_path / name)) for name in (canvas.file_name(*each), "theirs.jpg"))
        assert np.abs(found.astype(int) - expected).mean() < 1  # of 255: rounding before JPEG may tip a coefficient


def test_a_stopped_drawing_goes_on_where_it_was_and_ends_the_same(task, tmp_path, monkeypatch):
    own, wanted, saved = studio(task), drawings(11), []
    model, whole, stopped = editable(own.pipeline), tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    own.draw(model, wanted, whole)

    def dies(write, path):
        if len(saved) == 5:
            path.with_name(f"{path.name}.part").write_bytes(b"half")
            raise KeyboardInterrupt
        saved.append(path)
        write_whole(write, path)

    write_whole = drawn.write_whole
    monkeypatch.setattr(drawn, "write_whole", dies)
    with pytest.raises(KeyboardInterrupt):
        own.draw(model, wanted, stopped)
    monkeypatch.undo()
    before = {path.name: path.stat().st_mtime_ns for path in stopped.glob("*.jpg")}
    assert len(before) == 5
    own.draw(model, wanted, stopped)
    assert {path.name for path in stopped.iterdir()} == {canvas.file_name(*each) for each in wanted}
    assert all((stopped / name).stat().st_mtime_ns == time for name, time in before.items())
    assert all((stopped / path.name).read_bytes() == path.read_bytes() for path in whole.iterdir())


def test_the_originals_images_are_drawn_once_for_all_requests(task, cache, monkeypatch):
    first = task.build("Bricks", 0)
    monkeypatch.setattr(drawn, "generate", None)  # whoever draws fails
    again, other = task.build("Bricks", 0), task.build("Birds", 0)
    assert all(np.array_equal(first.original[name], again.original[name]) for name in first.original)
    assert np.array_equal(other.original["style"], first.original["style"])
    assert np.array_equal(other.answer(other.request.model)["score"], other.original["score"])  # the control `original`
    (folder,) = [artifact for artifact in artifacts() if "drawings" in artifact.path.name]
    assert len(list(folder.path.glob("*.jpg"))) == CELLS and folder.bytes > 0
    assert folder in collect_garbage(0) and not folder.path.exists()


def test_an_edited_models_images_are_its_own_and_a_hooked_models_are_nobodys(task, cache):
    import torch

    trial = task.build("Bricks", 0)

    def folders():
        return {path.name for path in cache.glob("*drawings*.files")}

    originals = folders()
    hooked = copy.deepcopy(trial.request.model)
    hooked.get_submodule("text").register_forward_hook(lambda module, inputs, found: found)
    trial.answer(hooked)
    assert len(folders() - originals) == 1
    del hooked
    assert folders() == originals
    with torch.no_grad():
        trial.request.model.get_parameter("unet.conv_in.weight").mul_(0.5)
    edited = trial.answer(trial.request.model)
    assert len(folders() - originals) == 1 and not np.array_equal(edited["features"], trial.original["features"])


def test_digests_of_weights_tell_names_shapes_and_values_apart():
    import torch

    plain = torch.nn.Linear(2, 2, bias=False)
    same, other = torch.nn.Linear(2, 2, bias=False), torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
    same.weight.data, other[0].weight.data = plain.weight.data.clone(), plain.weight.data.clone()
    wide = torch.nn.Linear(4, 1, bias=False)
    wide.weight.data = plain.weight.data.reshape(1, 4)
    digests = [drawn.weights_digest(model) for model in (plain, same, other, wide)]
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_validation_asks_with_other_seeds_for_the_target_and_for_the_rest(task, monkeypatch):
    """Of a model that is right with the style of all it draws and the object of none."""
    setting, asked = task._setting("Birds"), []

    def seen(self, model, wanted, steps):
        asked.extend(wanted)
        style = np.array([canvas.STYLES.index(each.style) for each in wanted])
        return {"style": np.eye(51)[style], "object": np.eye(20)[np.full(len(wanted), 19)]}

    monkeypatch.setattr(drawn.Studio, "glimpsed", seen)
    scores = setting.validate(None)
    assert (scores.forget, scores.retain, scores.forget_se) == (0.0, 0.5, 0.0) and len(asked) == 40
    assert {each.object_ for each in asked[:20]} == {"Birds"} and {each.style for each in asked[:20]} == set(STYLES)
    assert "Birds" not in {each.object_ for each in asked[20:]} and min(each.seed for each in asked) >= SEARCH_SEEDS
    assert math.isnan(setting.validate(None, retain=False).retain)


# ---------------------------------------------------------------- drawings to be looked at, and attacks


def test_pictures_of_rows_are_the_kept_drawings(task, cache):
    from PIL import Image

    trial, rows = task.build("Bricks", 0), np.array([7, 0, 11])
    for row, found in zip(rows, trial.pictures(trial.original, rows), strict=True):
        (kept,) = cache.glob(f"*drawings*.files/{canvas.file_names(task._grid)[row]}")
        assert np.array_equal(found, np.asarray(Image.open(kept)))
    some = trial.answer(trial.request.model, rows)
    assert np.array_equal(trial.pictures(some, np.array([1])), trial.pictures(trial.original, rows[1:2]))


def test_of_drawings_that_the_cache_lost_no_pictures_are_kept_until_they_are_drawn_again(task, cache):
    trial = task.build("Bricks", 0)
    before = columns(trial, trial.original)
    assert len(before["picture.image"]) == len(choose(trial)) == 6
    collect_garbage(0)
    assert trial.pictures(trial.original, np.array([0])) is None and columns(trial, trial.original) == {}
    again = columns(trial, trial.answer(trial.request.model))
    assert np.array_equal(again["picture.image"], before["picture.image"])


def test_a_filtered_models_drawings_are_kept_and_drawn_once(task, cache, monkeypatch):
    """As a control stopped on its way finds them; and each target's are its own."""
    trial = task.build("Bricks", 0)
    objective, model = trial.request.objective, trial.request.model
    answers, originals = trial.answer(objective.masked(model, ("Bricks",))), columns(trial, trial.original)
    shown, target = columns(trial, answers), originals["picture.kind"] == "target"
    same = (shown["picture.image"] == originals["picture.image"]).all((1, 2, 3))
    assert not same[target].any() and same[~target].all()  # another prompt, or the same prompt and noise
    other = task.build(STYLES[0], 0)
    other.answer(other.request.objective.masked(other.request.model, other.request.targets))
    assert len(list(cache.glob("*drawings*.files"))) == 3
    monkeypatch.setattr(drawn, "generate", None)  # whoever draws fails
    again = task.build("Bricks", 0)
    repeated = again.answer(again.request.objective.masked(again.request.model, ("Bricks",)))
    assert np.array_equal(repeated["drawing"], answers["drawing"])


def test_drawings_of_a_hooked_model_are_there_as_long_as_it_is(task, cache):
    trial = task.build("Bricks", 0)
    hooked = trial.request.objective.masked(trial.request.model, ("Bricks",))
    hooked.get_submodule("unet").register_forward_hook(lambda module, inputs, found: found)
    answers = trial.answer(hooked)
    assert columns(trial, answers)
    del hooked
    assert columns(trial, answers) == {} and len(list(cache.glob("*drawings*.files"))) == 1


def test_pictures_are_drawn_anew_alike_in_batches_of_any_size_and_seen_as_if_they_were_saved(task, tmp_path):
    """Floats are added up in another order, 1e-5 of a pixel from 0 to 1."""
    import torch
    from torchvision.utils import save_image

    trial, found = task.build("Birds", 0), []
    (batch,) = trial.request.validation.retain.batches(100)
    said = trial.drawing.redraw(trial.request.model, batch, strength=0.5, seed=0)

    def seen(images):
        found.append(images)
        return np.zeros(len(images))

    for size in (1, 3, 8):
        replace(trial.drawing, seen=seen, at_a_time=size).redraw(trial.request.model, batch, strength=0.5, seed=0)
    by_size = torch.cat(found).view(3, *batch["image"].shape)
    assert len(torch.unique(by_size[0].flatten(1), dim=0)) == len(batch["image"]) == N_STYLES * (N_OBJECTS - 1)
    torch.testing.assert_close(by_size[1:], by_size[:1].expand(2, -1, -1, -1, -1), atol=1e-5, rtol=0)
    for row, image in enumerate(by_size[2]):
        save_image(image, tmp_path / f"{row}.png")
    saved = torch.stack([canvas.pixels(tmp_path / f"{row}.png") for row in range(len(said))])
    assert np.array_equal(task._classifiers(None, "cpu")(saved)["object"].argmax(1), said)


def test_a_vector_a_word_stands_in_the_place_of_a_name_of_two(task):
    """As if the embeddings of both words had been overwritten, and in no other prompt."""
    import torch

    trial = task.build("Artist_Sketch", 0)
    drawing, model = trial.drawing, trial.request.model
    words, encoder = drawing.pipeline.tokenizer, model.get_submodule("text")
    texts = words([canvas.prompt(style, "Dogs") for style in STYLES], padding="max_length", return_tensors="pt").input_ids
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = encoder(texts)[0]
        with drawing.instead(model, "Artist_Sketch", vectors):
            read = encoder(texts)[0]
        encoder.get_input_embeddings().weight[words("Artist Sketch").input_ids[1:-1]] = vectors
        torch.testing.assert_close(read[1], encoder(texts)[0][1])
    assert not torch.equal(read[1], plain[1]) and torch.equal(read[[0, 2, 3]], plain[[0, 2, 3]])
    assert {name: len(drawing.vectors(model, name)) for name in ("Van_Gogh", "Sea")} == {"Van_Gogh": 2, "Sea": 1}


# ---------------------------------------------------------------- wrong cases


def miss_a_style(root):
    shutil.rmtree(root / "data" / "Bricks")


def misname_a_style(root):
    (root / "data" / "Artist_Sketch").rename(root / "data" / "Artist_Sketches")


def miss_a_picture(root):
    (root / "data" / "Bricks" / "Bears" / "4.jpg").unlink()


def go_too_deep(root):
    return {"data": str(root / "data")}


def nest(root):
    (root / "data").rename(root / "inner")
    (root / "data").mkdir()
    (root / "inner").rename(root / "data" / "UnlearnCanvas")


def give_compvis(root):
    import torch

    file = root / "style50.ckpt"
    torch.save({"state_dict": {"model.diffusion_model.out.2.bias": torch.zeros(4)}}, file)
    return {"checkpoint": str(file)}


def give_a_folder_of_compvis(root):
    import safetensors.torch
    import torch

    folder = root / "compvis" / "style50"
    folder.mkdir(parents=True)
    safetensors.torch.save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, folder / "model.safetensors")
    return {"checkpoint": str(folder)}


def give_too_high_a_checkpoint(root):
    return {"checkpoint": str((root / CHECKPOINT).parent)}


def give_no_checkpoint(root):
    return {"checkpoint": str(root / "nowhere")}


def give_a_page_for_weights(root):
    folder = root / "page"
    folder.mkdir()
    (folder / "style50.safetensors").write_text("<!DOCTYPE html><html>Quota exceeded</html>")
    return {"checkpoint": str(folder)}


def miss_a_classifier(root):
    (root / "checkpoints" / "cls_model" / "style50.pth").unlink()


def give_no_clip(root):
    return {"clip": str(root / "data")}


WRONG = {
    miss_a_style: r"data has no folder for 1 of 4 styles: Bricks; it needs \{Style\}/\{Object\}/\{n\}\.jpg",
    misname_a_style: r"has no folder for 1 of 4 styles: Artist_Sketch \(did you mean 'Artist_Sketches'\?\)",
    miss_a_picture: r"misses 1 of its 48 pictures: Bricks/Bears/4\.jpg; unpack all",
    go_too_deep: r"data=.*data is a folder too deep: it holds the styles; give the one above it",
    nest: r"the styles lie a folder too deep, in .*UnlearnCanvas; move them up",
    give_compvis: r"style50\.ckpt is in CompVis form, .*from_single_file\(FILE\)\.save_pretrained\(FOLDER\)",
    give_a_folder_of_compvis: r"model\.safetensors is in CompVis form",
    give_too_high_a_checkpoint: r"has no model_index\.json; it is in .*style50, give that",
    give_no_checkpoint: r"nowhere is no pipeline in diffusers' form, it has no model_index\.json; `slugbench doctor",
    give_a_page_for_weights: r"page is no pipeline in diffusers' form, it has no model_index\.json; `slugbench doctor",
    miss_a_classifier: r"the style classifier .*style50\.pth is missing",
    give_no_clip: r"clip=.* is no CLIP in transformers' form",
}


@pytest.mark.parametrize(("spoil", "sentence"), WRONG.items(), ids=lambda each: getattr(each, "__name__", ""))
def test_wrong_files_are_named_before_anything_runs(copied, spoil, sentence):
    task = UnlearnCanvas(**{"data": str(copied), **PARAMS, **(spoil(copied) or {})})
    for ask in (task.fingerprint, task.build):
        with pytest.raises(UsageError, match=sentence) as refused:
            ask("Birds", 0)
        assert "\n" not in str(refused.value) and refused.value.exit_code == 2


def test_a_truncated_picture_is_named_by_the_gates_and_when_it_is_read(copied):
    file = copied / "data" / "Bricks" / "Bears" / "3.jpg"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UsageError, match=r"1 pictures in .*data are not whole: Bricks/Bears/3\.jpg; fetch these anew"):
        of(copied).gates(["Birds"], (0,))
    with pytest.raises(UsageError, match=r"cannot be decoded: Bricks/Bears/3\.jpg"):
        list(of(copied).build("Birds", 0).request.retain.batches(64))


def test_a_classifier_with_another_head_is_refused_by_the_gates(copied):
    folder = copied / "checkpoints" / "cls_model"
    shutil.copy(folder / "style50_cls.pth", folder / "style50.pth")
    with pytest.raises(UsageError, match=r"style50\.pth has a head of 20 classes; here it needs one of 51"):
        of(copied).gates(["Birds"], (0,))


def test_a_checkpoint_that_is_half_there_is_refused(copied):
    shutil.rmtree(copied / CHECKPOINT / "unet")
    with pytest.raises(UsageError, match=r"style50 cannot be read as a pipeline \(.*\); fetch it anew") as refused:
        of(copied).build("Birds", 0)
    assert "\n" not in str(refused.value)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-20])


def test_a_checkpoint_of_which_a_file_was_cut_off_is_refused(copied):
    truncate(copied / CHECKPOINT / "text_encoder" / "model.safetensors")
    with pytest.raises(UsageError, match=r"style50 cannot be read as a pipeline \(.*\); fetch it anew") as refused:
        of(copied).build("Birds", 0)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_without_the_words_of_its_tokenizer_is_refused(copied):
    (copied / CHECKPOINT / "tokenizer" / "tokenizer.json").unlink()
    sentence = r"its tokenizer has 2 entries and the text encoder \d+; fetch tokenizer/ anew, which holds tokenizer\.json,"
    with pytest.raises(UsageError, match=sentence):
        drawn.read_checkpoint(copied / CHECKPOINT)


def test_a_tokenizer_that_reads_different_prompts_as_the_same_is_refused(copied):
    file = copied / CHECKPOINT / "tokenizer" / "tokenizer.json"
    stored = json.loads(file.read_text())
    special = drawn.read_checkpoint(copied / CHECKPOINT).tokenizer.all_special_tokens
    words = sorted(stored["model"]["vocab"], key=stored["model"]["vocab"].get)
    vocab = {word if word in special else f"other{number}": number for number, word in enumerate(words)}
    stored["model"] |= {"vocab": vocab, "merges": []}
    file.write_text(json.dumps(stored))
    with pytest.raises(UsageError, match="its tokenizer reads different prompts as the same; fetch tokenizer/ anew"):
        drawn.read_checkpoint(copied / CHECKPOINT)


def test_a_tokenizer_in_stable_diffusions_own_files_reads_prompts_the_same(copied):
    folder = copied / CHECKPOINT / "tokenizer"
    texts = [canvas.prompt(*cell) for cell in task_cells()]
    before = drawn.read_checkpoint(copied / CHECKPOINT).tokenizer(texts).input_ids
    stored = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(stored["vocab"]))
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in stored["merges"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (folder / "tokenizer.json").unlink()
    assert drawn.read_checkpoint(copied / CHECKPOINT).tokenizer(texts).input_ids == before


def task_cells():
    return [(style, object_) for style in STYLES for object_ in OBJECTS]


def reshape(folder):
    import safetensors.torch
    import torch

    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["text_projection.weight"] = torch.zeros(3, 3)
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("spoil", [lambda folder: truncate(folder / "model.safetensors"), reshape], ids=["cut", "shape"])
def test_a_clip_that_is_not_whole_is_refused_when_the_task_is_built(canvas_release, tmp_path, spoil):
    spoil(clip(tmp_path / "clip"))
    with pytest.raises(UsageError, match=r"clip=.*clip cannot be read as a CLIP .*; fetch it anew\.") as refused:
        of(canvas_release, clip=str(tmp_path / "clip")).build("Birds", 0)
    assert "\n" not in str(refused.value)


def test_a_clip_of_another_width_is_refused_when_the_task_is_built(canvas_release, tmp_path):
    with pytest.raises(UsageError, match=r"reads text 16 wide and the checkpoint's text encoder 32, .* for Stable "):
        of(canvas_release, clip=str(clip(tmp_path / "clip", width=16))).build("Birds", 0)


def test_an_original_that_does_not_draw_a_target_fails_a_gate():
    found = {"style": np.array([0, 1, 1, 1]), "object": np.array([0, 0, 1, 1])}
    asked = {"style": np.array([0, 0, 1, 1]), "object": np.array([0, 1, 0, 1])}
    gate = _drawn_gate(asked, found, STYLES[0])
    assert gate.value == 0.5 and not gate.ok and _drawn_gate(asked, found, STYLES[1]).ok


def test_doctor_lists_data_checkpoint_and_classifiers_with_licence_and_place(task, canvas_release, tmp_path):
    notes = {wanted.path.name: wanted for wanted in of(canvas_release, clip=str(tmp_path)).wanted()}
    assert [name for name, wanted in notes.items() if not wanted.found] == ["config.json"]
    assert set(notes) == {"data", "model_index.json", "style50.pth", "style50_cls.pth", "config.json"}
    assert all("licence" in wanted.note for wanted in notes.values())
    assert all("github.com/OPTML-Group/UnlearnCanvas" in notes[name].note for name in ("data", "style50.pth"))


@pytest.mark.parametrize("params", [{"styles": 1}, {"objects": 21}, {"images": 2}, {"seeds": 0}, {"steps": 0}, {"side": 20}])
def test_parameters_out_of_range_are_refused(params):
    ((name, value),) = params.items()
    with pytest.raises(ValueError, match=f"{name}={value}; "):
        UnlearnCanvas(**params)


def test_fingerprints_follow_every_file(copied):
    before = of(copied).fingerprint("Birds", 0)
    (copied / "data" / "Bricks" / "Bears" / "1.jpg").write_bytes(b"another")
    pictures.gallery.cache_clear()
    after = of(copied).fingerprint("Birds", 0)
    scheduler = copied / CHECKPOINT / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text() + "\n")
    assert len({before, after, of(copied).fingerprint("Birds", 0), of(copied).fingerprint("Bricks", 0)}) == 4


# ---------------------------------------------------------------- the whole path


@pytest.fixture
def registry():
    from slugbench.bench.registry import load

    with restored_registry():
        yield load(kinds=("method", "task", "metric"))


MEASURED = {"canvas_accuracy": {}, "image_quality": {}}


def run(task_params, method, scratch, monkeypatch, request_id="Bricks", judged=MEASURED, **params):
    """A cell, in this process: its classifiers are small ones."""
    monkeypatch.setattr(cell, "_prepare_process", lambda job: None)
    metrics = [{"spec": name, "name": name, "params": given, "key": "k"} for name, given in judged.items()]
    scratch.mkdir()
    cell.measure(
        {
            **{"task": "unlearncanvas", "task_params": task_params, "request": request_id, "base_seed": 0},
            **{"method": method, "method_params": params, "method_seed": 0, "metrics": metrics, "trial_key": "t"},
            **{"device": "cpu", "threads": 1, "concurrent": False, "scratch": str(scratch), "plugins": []},
        }
    )
    return json.loads((scratch / "result.json").read_text())


METHODS = {"uce": {"tries": 2}, "ga": {"steps": 2, "batch": 4}, "esd": {"steps": 2, "batch": 2, "every": 1}, "original": {}}


@pytest.mark.parametrize(("method", "params"), METHODS.items(), ids=list(METHODS))
def test_a_method_runs_and_metrics_give_rows(registry, canvas_release, tmp_path, monkeypatch, method, params):
    result = run({"data": str(canvas_release), **PARAMS}, method, tmp_path / "cell", monkeypatch, **params)
    assert (result["status"], result["error"]) == ("ok", None)
    rows = {row["metric"]: row for rows in result["values"].values() for row in rows}
    assert rows.keys() >= {"ua", "ira", "cra", "kid_real", "kid_original", "cmmd_real", "feature_shift"}
    assert all(0 <= rows[name]["value"] <= 1 for name in ("ua", "ira", "cra_on", "cra_off", "cra"))
    assert rows["ua"]["n_images"] == N_OBJECTS and rows["ira"]["n_images"] == CELLS - N_OBJECTS
    assert rows["ua_norm"]["value"] is None and "oracle" in rows["ua_norm"]["note"]
    shown = read(tmp_path / "cell" / "arrays.npz")
    assert shown.image.shape == (6, 16, 16, 3) and shown.prompt[0] == "Bricks Architectures" and set(shown.seed) == {SEED}
    if method == "original":
        assert rows["ua"]["value"] == result["cost"]["bytes_delta"] == 0 and abs(rows["feature_shift"]["value"]) < 1e-12


def test_attacks_give_rows(registry, canvas_release, tmp_path, monkeypatch):
    attacks = {"context": {"pictures": 2}, "inversion": {"steps": 2, "draws": 1}}
    result = run({"data": str(canvas_release), **PARAMS}, "uce", tmp_path / "cell", monkeypatch, judged=attacks, tries=2)
    assert (result["status"], result["error"]) == ("ok", None)
    rows = {row["metric"]: row for rows in result["values"].values() for row in rows}
    images = {"context@0.3": 2, "context@0.5": 2, "context@0.7": 2, "inversion": N_OBJECTS}
    assert {name: row["n_images"] for name, row in rows.items()} == images
    assert all(0 <= row["value"] <= 1 and row["chance"] == 1 / len(canvas.STYLES) for row in rows.values())


def test_the_oracle_control_is_skipped_with_a_sentence(registry, canvas_release, tmp_path, monkeypatch):
    result = run({"data": str(canvas_release), **PARAMS}, "oracle", tmp_path / "cell", monkeypatch)
    assert result["status"] == "skipped" and "not among the 0" in result["error"]


def test_slug_is_skipped_without_the_clip_that_it_needs_and_runs_with_it(registry, canvas_release, tmp_path, monkeypatch):
    without = run({"data": str(canvas_release), **PARAMS}, "slug", tmp_path / "without", monkeypatch)
    assert without["status"] == "skipped" and "give clip=FOLDER of openai/clip-vit-large-patch14" in without["error"]
    params = {"data": str(canvas_release), "clip": str(clip(tmp_path / "clip")), **PARAMS}
    within = run(params, "slug", tmp_path / "with", monkeypatch, batch=8, steps=2)
    assert (within["status"], within["error"]) == ("ok", None)


def test_what_is_absent_says_so_but_does_not_stop_others(task):
    request = task.build("Bricks", 0).request
    assert isinstance(request.objective, TextToImage)
    with pytest.raises(MissingDependency, match="need the CLIP"):
        request.objective.contrast.weights(request.model)
