import pytest
import torch

from slugbench.methods._memory import remembering
from slugbench.methods.slug import Edit, edited

from .toy_clip import Contrast, clip_request, pictures

LAYERS = ["visual.conv1.weight", "visual.transformer.resblocks.1.attn.in_proj_weight", "visual.proj", "text_projection"]


def logits(model, split):
    (batch,) = split.batches(len(split))
    with torch.no_grad():
        return Contrast().logits(model, batch)


def counted(model, block):
    """How often a block of a model computes; a list that grows."""
    calls = []
    model.get_submodule(block).register_forward_hook(lambda *_: calls.append(block))
    return calls


@pytest.mark.parametrize("layer", [*LAYERS, "transformer.resblocks.0.mlp.c_fc.weight", "ln_final.weight"])
def test_an_edited_model_gives_the_same_bits_with_and_without_a_memory(layer):
    model, split = clip_request().model, pictures(5, 3)
    edit = Edit(layer, 0.1, torch.ones_like(model.get_parameter(layer)))
    with edited(model, [edit]):
        plain = logits(model, split)
    with remembering(model) as memory:
        with memory.learn():
            logits(model, split)
        with memory.without(layer), edited(model, [edit]):
            assert torch.equal(logits(model, split), plain)
        assert not torch.equal(logits(model, split), plain)


def test_the_other_tower_and_the_blocks_before_are_not_computed_again():
    model, split = clip_request().model, pictures(5, 3)
    inner = {
        name: counted(model, f"{name}.mlp.c_fc")
        for name in ("visual.transformer.resblocks.0", "visual.transformer.resblocks.1")
    }
    text = counted(model, "transformer.resblocks.0.mlp.c_fc")
    with remembering(model) as memory:
        with memory.learn():
            logits(model, split)
        with memory.without("visual.transformer.resblocks.1.mlp.c_fc.weight"):
            logits(model, split)
    assert [len(calls) for calls in inner.values()] == [1, 2] and len(text) == 1


def test_another_input_is_computed_and_not_kept_outside_of_learning():
    model = clip_request().model
    expected = logits(model, pictures(6, 3))
    with remembering(model) as memory:
        with memory.learn():
            logits(model, pictures(5, 3))
        kept = sum(map(len, memory.kept.values()))
        assert torch.equal(logits(model, pictures(6, 3)), expected)
        assert sum(map(len, memory.kept.values())) == kept


def test_what_was_changed_in_place_is_not_given_again():
    model, image = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(inplace=True)), torch.ones(1, 2)
    with torch.no_grad(), remembering(model) as memory:
        expected = model(image)
        with memory.learn():
            model(image)  # the second module writes into what the first one gave
        torch.testing.assert_close(model(image), expected)


def test_no_more_is_kept_than_allowed_and_gradients_pass():
    model = clip_request().model
    with remembering(model, limit=10_000) as memory, memory.learn():
        logits(model, pictures(5, 3))
        assert memory.limit >= 0 and 0 < sum(map(len, memory.kept.values())) < 6
        (batch,) = pictures(5, 3).batches(24)
        Contrast().loss(model, batch).backward()
    assert model.visual.conv1.weight.grad.abs().sum() > 0
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_weight_that_two_blocks_share_is_edited_in_both():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight
    image, edit = torch.ones(1, 2), Edit("0.weight", 1.0, torch.ones(2, 2))
    with torch.no_grad(), remembering(model) as memory:
        with memory.learn():
            model(image)
        with memory.without("0.weight"), edited(model, [edit]):
            found = model[1](model[0](image))
            expected = torch.nn.functional.linear(image, model[0].weight, model[0].bias) @ model[1].weight.T + model[1].bias
            torch.testing.assert_close(found, expected)
            assert memory.edited >= {"0", "1"}
