import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slugbench.methods.svd import DeepUnlearning, Inputs, patches, project_weight, projection

from ..toys import toy_trial
from .toy_clip import accuracy, changed, clip_request, pictures, trained


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_svd(x, alpha):
    """The paper's form: singular values of the stored activations (n, d)."""
    u, s, _ = np.linalg.svd(x.numpy().T, full_matrices=False)
    r = s**2 / (s**2).sum()
    return torch.from_numpy(u * (alpha * r / ((alpha - 1) * r + 1)) @ u.T)


@given(alpha=st.floats(0.25, 1000), n=st.integers(1, 12), seed=st.integers(0, 99))
def test_projections_are_those_of_the_singular_value_decomposition(alpha, n, seed):
    x = draw(n, 6, seed=seed)  # n < 6: of lower rank
    m = projection(x.T @ x, alpha)
    torch.testing.assert_close(m, by_svd(x, alpha), atol=1e-10, rtol=1e-8)
    values = torch.linalg.eigvalsh(m)
    assert torch.equal(m, m.T) and values.min() > -1e-9 and values.max() < 1 + 1e-9
    assert (values > 1e-9).sum() <= min(n, 6)


def test_alpha_decides_how_much_a_direction_has_to_be_used():
    shares = torch.tensor([0.6, 0.3, 0.1, 0.0], dtype=torch.float64)
    gram = 7 * torch.diag(shares)
    torch.testing.assert_close(projection(gram, 1.0).diagonal(), shares)
    assert projection(gram, 9.0)[2, 2].item() == pytest.approx(0.5)  # r = 0.1 = 1 / (9 + 1)
    torch.testing.assert_close(projection(gram, 1e9).diagonal(), (shares > 0).double())
    assert not projection(torch.zeros(3, 3), 10.0).any()


def test_weights_see_inputs_without_what_only_forgetting_uses():
    w, x = draw(3, 5, seed=1), draw(5, seed=2)
    mf, mr = (projection(a.T @ a, 10.0) for a in (draw(4, 5, seed=3), draw(4, 5, seed=4)))
    projected = project_weight(w, mf, mr)
    # W <- W (I - Mf + Mr Mf), so the layer answers W (x - Mf x + Mr Mf x)
    torch.testing.assert_close(projected @ x, w @ (x - mf @ x + mr @ (mf @ x)))
    transposed = w @ (torch.eye(5) - mf + mf @ mr)
    assert (transposed - projected).norm() > 0.05 * (w - projected).norm()


def test_limits_of_the_update():
    w, m, zero, one = draw(3, 4), projection(draw(4, 4, seed=1), 3.0), torch.zeros(4, 4).double(), torch.eye(4).double()
    assert torch.equal(project_weight(w, zero, m), w)
    torch.testing.assert_close(project_weight(w, m, one), w)
    assert not project_weight(w, one, zero).any()
    # disjoint spaces, alpha without bounds: forgotten inputs give nothing, kept ones what they gave
    forget, keep = torch.eye(4).double()[:2], torch.eye(4).double()[2:]
    w_new = project_weight(w, projection(forget.T @ forget, 1e12), projection(keep.T @ keep, 1e12))
    torch.testing.assert_close(w_new, torch.cat([torch.zeros(3, 2).double(), w[:, 2:]], 1), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1, "stride": 2},
        {"dilation": 2, "padding": (2, 1)},
        {"groups": 2, "padding": 1},
        {"padding": "same", "kernel_size": (3, 5)},
        {"padding": "same", "dilation": 2},
        {"padding": "valid", "stride": (2, 1)},
    ],
)
def test_a_convolution_is_linear_in_its_patches(options):
    conv = torch.nn.Conv2d(4, 6, **{"kernel_size": (3, 2), **options}, bias=False).double()
    x = draw(2, 4, 7, 8)
    rows, groups = patches(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups), conv.groups
    w = conv.weight.detach().flatten(1).unflatten(0, (groups, -1))  # (groups, out / groups, d)
    y = (rows if groups > 1 else rows[None]) @ w.mT  # (groups, B * places, out / groups)
    expected = conv(x).detach()
    torch.testing.assert_close(y.permute(1, 0, 2).flatten(1), expected.permute(0, 2, 3, 1).flatten(0, 2))


class Runs:
    """An objective that just runs the model."""

    def loss(self, model, batch):
        return model(batch["image"]).sum()


def grams(model, batch, **more):
    request = type("Request", (), {"objective": Runs()})
    spaces = Inputs(model, [name for name, _ in model.named_parameters()], **more)
    return spaces, spaces.grams(request, iter([batch]))


def test_inputs_of_modules_are_seen_and_summed():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, groups=2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 3)
    )
    x = draw(5, 2, 4, 4).float()
    _, found = grams(model, {"image": x})
    assert set(found) == {"0.weight", "3.weight"} and found["0.weight"].shape == (2, 9, 9)
    hidden = model[:3](x).detach()
    torch.testing.assert_close(found["3.weight"], (hidden.T @ hidden).double())


class Tower(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = trained().visual

    def forward(self, image):
        return self.tower(image)


def test_inputs_of_packed_attention_and_of_bare_projections_are_seen():
    """Against an attention written out, and the embedding undone through the projection's pseudo-inverse."""
    model, x = Tower(), next(pictures(1, 2).batches(16))["image"]
    block, kept = model.tower.transformer.resblocks[0], {}
    handles = [
        block.ln_1.register_forward_hook(lambda _, __, out: kept.update(normed=out.detach())),
        block.attn.register_forward_hook(lambda _, __, out: kept.update(attended=out[0].detach())),
        model.tower.ln_post.register_forward_hook(lambda _, __, out: kept.update(post=out.detach())),
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    _, found = grams(model, {"image": x})

    def gram(rows):
        rows = rows.reshape(-1, rows.shape[-1]).double()
        return rows.T @ rows

    prefix, attn = "tower.transformer.resblocks.0.attn.", block.attn
    torch.testing.assert_close(found[prefix + "in_proj_weight"], gram(kept["normed"]), rtol=1e-4, atol=1e-3)
    n, t, d = kept["normed"].shape
    q, k, v = (kept["normed"] @ attn.in_proj_weight.T + attn.in_proj_bias).detach().chunk(3, -1)
    q, k, v = (part.view(n, t, attn.num_heads, -1).transpose(1, 2) for part in (q, k, v))
    maps = (q @ k.mT / (d / attn.num_heads) ** 0.5).softmax(-1)
    heads = (maps @ v).transpose(1, 2).reshape(n, t, d)
    torch.testing.assert_close(attn.out_proj(heads).detach(), kept["attended"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[prefix + "out_proj.weight"], gram(heads), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found["tower.proj"], gram(kept["post"][:, 0]), rtol=1e-4, atol=1e-3)
    assert not any("bias" in name or "ln_" in name or "embedding" in name for name in found)


def test_watching_changes_no_answer():
    model, x = Tower(), next(pictures(1, 2).batches(16))["image"]
    spaces = Inputs(model, [name for name, _ in model.named_parameters()])
    with torch.no_grad():
        plain = model(x)
        with spaces._watching({}, {"image": x}):
            watched = model(x)
    torch.testing.assert_close(watched, plain, rtol=1e-4, atol=1e-5)


def test_padding_after_the_end_of_a_text_does_not_count():
    request = clip_request()
    (batch,) = request.retain.batches(168)
    name = "transformer.resblocks.0.mlp.c_fc.weight"
    kept = {}
    handle = trained().transformer.resblocks[0].ln_2.register_forward_hook(lambda _, __, out: kept.update(rows=out.detach()))
    with torch.no_grad():
        trained().encode_text(batch["text"])
    handle.remove()
    found = Inputs(request.model, [name], text=[name]).grams(request, iter([batch]))[name]
    rows = kept["rows"][:, :3].flatten(0, 1).double()  # start, name, end
    torch.testing.assert_close(found, rows.T @ rows, rtol=1e-4, atol=1e-3)


def test_a_bare_projection_is_projected_from_its_own_side():
    spaces = Inputs(trained(), ["visual.proj"])
    spaces.right.add("visual.proj")
    w, x = draw(5, 3), draw(5, seed=1)
    mf, mr = (projection(a.T @ a, 10.0) for a in (draw(4, 5, seed=3), draw(4, 5, seed=4)))
    projected = spaces.projected("visual.proj", w, m_forget=mf, m_retain=mr)
    torch.testing.assert_close(x @ projected, (x - mf @ x + mr @ (mf @ x)) @ w)


def test_only_matrices_of_the_image_tower_change_or_of_both():
    request = clip_request()
    one = changed(DeepUnlearning(alpha_retain=100.0, alpha_forget=30.0)(request))
    both = changed(DeepUnlearning(alpha_retain=100.0, alpha_forget=30.0, both=True)(clip_request()))
    # conv1, proj, and of each of the two blocks the four matrices
    assert len(one) == 2 + 2 * 4 and all(name.startswith("visual.") for name in one)
    assert set(both) > set(one) and "text_projection" in both and "token_embedding.weight" not in both
    assert not any("bias" in name or "ln_" in name or "embedding" in name for name in both)


def test_the_unmodified_model_is_a_candidate():
    """Wiping out everything reaches no better than forgetting nothing does where forgetting is impossible."""
    request = clip_request()
    object.__setattr__(request, "goal", -1.0)
    validate = request.validate.validate
    object.__setattr__(request.validate, "validate", lambda m, retain=True: validate(trained(), retain=retain))
    assert changed(DeepUnlearning()(request)) == []


def test_a_class_is_forgotten_and_the_others_are_kept():
    trial = toy_trial()
    answers = trial.answer(DeepUnlearning()(trial.request))
    right = answers["rank"] == 0
    forget, retain = (right[trial.questions["split"] == split].mean() for split in ("forget", "retain"))
    assert forget < 0.35 and retain > 0.8


def test_on_clip_the_target_is_forgotten():
    model = DeepUnlearning()(clip_request())
    assert accuracy(model, pictures(9, 48, [3])) < 0.5
