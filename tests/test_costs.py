"""The script behind docs/results/costs-*.md, on models of a few thousand weights."""

import importlib.util
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from slugbench.bench import TensorSplit

from .toys import FAILING, ROOT, restored_registry

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16},
    "text_cfg": {"context_length": 8, "width": 32, "heads": 2, "layers": 1, "vocab_size": 64},
}
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "projection_dim": 16}
SD = {
    "unet": {
        **{"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": [8, 16]},
        **{"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "cross_attention_dim": 16, "attention_head_dim": 2},
        **{"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "norm_num_groups": 4},
    },
    "vae": {
        **{"sample_size": 16, "latent_channels": 4, "layers_per_block": 1, "block_out_channels": [8, 8]},
        **{"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2},
        **{"norm_num_groups": 4, "scaling_factor": 0.18215},
    },
    "text": {**TOWER, "max_position_embeddings": 12, "vocab_size": 512},
    "vision": {**TOWER, "image_size": 8, "patch_size": 4},
}
SMALL = "forget=8,retain=24,names=4,kept_forget=3,kept_retain=9"
SPENT = ["t_total", "n_evals", "peak_rss_bytes", "floor_seconds", "flops", "rate", "weights_bytes"]


@pytest.fixture(scope="module")
def costs():
    """The script as a module; its tasks and metric are unregistered afterwards."""
    spec = importlib.util.spec_from_file_location("costs", ROOT / "docs" / "costs.py")
    module = importlib.util.module_from_spec(spec)
    with restored_registry():
        sys.modules["costs"] = module  # where its dataclasses look their annotations up
        spec.loader.exec_module(module)
        yield module
        del sys.modules["costs"]


@pytest.fixture
def model(tmp_path):
    """The file of a tiny architecture of open_clip."""
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(CLIP))
    return path


def lines(out: Path) -> pd.DataFrame:
    return pd.read_csv(out.with_suffix(".csv")).set_index("method")


# ---------------------------------------------------------------- the floor


class Product:
    """Of a linear map from 8 numbers to 5."""

    def loss(self, model, batch):
        return model(batch["image"]).sum()

    def weights(self, model):
        return {"model": ["weight"]}


def test_operations_are_those_counted_by_hand(costs):
    model = torch.nn.Linear(8, 5, bias=False)
    batch = {"image": torch.randn(6, 8), "index": torch.arange(6)}
    product = 2 * 8 * 5  # of one sample, forwards; backwards as much for the weights, and nothing for what came in
    assert costs.flops(model, Product(), batch) == (product, 2 * product)
    assert model.weight.grad is None and model.weight.requires_grad


def test_the_rate_is_that_of_the_device(costs):
    assert 1e8 < costs.matrix_rate(torch.device("cpu"), torch.float32) < 1e14


READ = {"n_forget_read": 100, "n_retain_read": 300}
COUNTED = {"flops_forward": 10.0, "flops": 30.0, "rate": 60.0}


@pytest.mark.parametrize(
    ("method", "values", "seconds"),
    [("ft", COUNTED, 200.0), ("svd", COUNTED, 400 * 10 / 60), ("slug", COUNTED, 200.0),
     ("slug", {**COUNTED, "flops_text": 6.0}, 40.0), ("ft", {**COUNTED, "flops_text": 6.0}, 200.0), ("ft", {}, None)],
)  # fmt: skip
def test_the_floor_is_one_pass_of_every_sample_read(costs, method, values, seconds):
    assert costs.floor_seconds(method, READ, values) == pytest.approx(seconds)
    assert costs.floor_seconds(method, dict.fromkeys(READ), values) is None


def test_pictures_differ_and_take_the_memory_of_few(costs):
    image = costs.pictures(200, 32, seed=1, device="cpu")
    assert image.shape == (200, 3, 32, 32) and image.abs().max() <= 1
    assert image.untyped_storage().nbytes() < 0.4 * 4 * image.numel()  # 997 new numbers each, of 3072
    (batch,) = TensorSplit({"image": image[::40]}).batches(5)
    cosine = torch.corrcoef(batch["image"].flatten(1))
    assert cosine.fill_diagonal_(0).abs().max() < 0.1  # five standard errors, 1 / sqrt(3072) each
    assert torch.equal(costs.pictures(200, 32, seed=1, device="cpu")[7], image[7])


# ---------------------------------------------------------------- whole tables


@pytest.mark.slow
def test_a_clips_table_is_whole_and_only_what_is_missing_runs_again(costs, model, tmp_path, capsys):
    out = tmp_path / "results" / "clip.md"
    command = ["clip", "--models", str(model), "--out", str(out), "--steps", "2", "--physical", "4", "--set", SMALL]
    command += ["--plugin", str(FAILING)]
    costs.main([*command, "--methods", "slug,ft:batch=8,svd"])
    first = lines(out)
    assert list(first.index) == ["slug:physical=4", "ft:batch=8", "svd"] and set(first["status"]) == {"ok"}
    assert (first[SPENT] > 0).all(axis=None) and set(first["model"]) == {"tiny"}
    assert first.loc["ft:batch=8", "n_retain_read"] == 16 and first.loc["slug:physical=4", "n_forget_read"] == 8
    capsys.readouterr()
    costs.main([*command, "--methods", "slug,raises,svd"])
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["raises"]
    pd.testing.assert_frame_equal(lines(out).drop("raises"), first, check_dtype=False, rtol=1e-12)
    assert lines(out).loc["raises", "status"] == "failed"
    text = out.read_text()
    assert "| tiny | raises |" in text and lines(out).loc["raises", "error"][:200] in text
    assert "torch 2" in text and "ft:batch=8" not in text.split("|", 1)[1]  # which was not asked for


@pytest.mark.slow
def test_a_pipelines_table_stands_beside_what_was_published(costs, tmp_path):
    config, out = tmp_path / "tiny.json", tmp_path / "sd.md"
    config.write_text(json.dumps(SD))
    command = ["sd", "--model", str(config), "--out", str(out), "--steps", "2", "--physical", "4"]
    costs.main([*command, "--set", "forget=16,retain=24,drawn=2,drawing=2"])
    found = lines(out)
    assert [name.split(":")[0] for name in found.index] == [spec.split(":")[0] for spec in costs.SD_METHODS]
    assert set(found["status"]) == {"ok"}, found["error"]
    assert (found[["t_total", "rate", "flops", "flops_text"]] > 0).all(axis=None)
    assert (found["floor_seconds"] > 0).drop("uce").all() and found.loc["uce", "floor_seconds"] == 0  # reads no sample
    assert found["flops_text"].nunique() == found["flops"].nunique() == 1
    row = next(line for line in out.read_text().splitlines() if "| esd |" in line)
    assert "6163 | 17.8" in row


@pytest.mark.gpu
def test_a_gpus_table_has_its_memory(costs, model, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    config, small = tmp_path / "sd.json", ["--device", "cuda", "--steps", "2", "--physical", "4"]
    config.write_text(json.dumps(SD))
    clip, sd = tmp_path / "clip.md", tmp_path / "sd.md"
    costs.main(["clip", "--models", str(model), "--out", str(clip), *small, "--set", SMALL])
    costs.main(["sd", "--model", str(config), "--out", str(sd), *small, "--set", "forget=16,retain=24,drawn=2,drawing=2"])
    for found in (lines(clip), lines(sd)):
        assert set(found["status"]) == {"ok"}, found["error"]
        assert (found["peak_device_bytes"] > found["weights_bytes"]).all()
        assert (found["peak_device_reserved_bytes"] >= found["peak_device_bytes"]).all()
