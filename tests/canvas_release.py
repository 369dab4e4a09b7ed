"""The release of UnlearnCanvas in small, in its real formats: folders of pictures, a Stable Diffusion, its two classifiers.

Weights are random; the classifiers are fitted to the pictures and to what the untrained model draws, so that gates pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slugbench.tasks._unlearncanvas import OBJECTS, STYLES, file_name, prompt

from .canvas_files import SEED, as_shown, colour, texture, write_classifier

N_STYLES, N_OBJECTS, IMAGES, SIDE, LENGTH = 4, 3, 4, 16, 16
PARAMS = {"styles": N_STYLES, "objects": N_OBJECTS, "images": IMAGES, "seeds": 1, "steps": 2, "side": SIDE}
PARAMS |= {"architecture": "test_vit"}
CHECKPOINT = Path("checkpoints/diffusion/diffuser/style50")


def write_release(root: Path) -> Path:
    """All that a run needs, laid out as released."""
    from slugbench.tasks._diffusion import generate
    from slugbench.tasks._unlearncanvas_model import read_checkpoint

    cells = [(style, object_) for style in STYLES[:N_STYLES] for object_ in OBJECTS[:N_OBJECTS]]
    files, labels = [], []
    for number, (style, object_) in enumerate(cells):
        for n in range(1, IMAGES + 1):
            files.append(write_picture(root / "data" / style / object_ / f"{n}.jpg", style, object_, 100 * number + n))
            labels.append((style, object_))
    pipeline().save_pretrained(root / CHECKPOINT)
    read = read_checkpoint(root / CHECKPOINT)
    texts = [*(prompt(*cell) for cell in cells), ""]
    images = generate(read, texts, [SEED] * len(texts), steps=2, guidance=9.0, batch=len(texts), side=SIDE)
    drawn = root / "drawn"
    drawn.mkdir()
    for (style, object_), pixels in zip([*cells, ("Winter", "Waterfalls")], next(images), strict=True):
        files.append(drawn / file_name(style, object_, SEED))
        save(pixels.permute(1, 2, 0).numpy() * 255, files[-1])
        labels.append((style, object_))  # what is drawn of no prompt is taken for what nobody asked for
    seen, folder = np.stack([as_shown(file) for file in files]), root / "checkpoints" / "cls_model"
    folder.mkdir()
    for file, classes, part in (("style50.pth", STYLES, 0), ("style50_cls.pth", OBJECTS, 1)):
        write_classifier(folder / file, seen, np.array([classes.index(label[part]) for label in labels]), len(classes))
    return root


def write_picture(file: Path, style: str, object_: str, seed: int) -> Path:
    """A picture of a colour a style and a texture an object."""
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 4, (SIDE, SIDE, 3))
    save(colour(style) + texture(object_) + noise, file)
    return file


def save(pixels: np.ndarray, file: Path) -> None:
    from PIL import Image

    Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8)).save(file)


def pipeline() -> Any:
    """An untrained Stable Diffusion of 8 x 8 latents; what it draws depends on the prompt more than a fresh one's would."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    words = tokenizer()
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"vocab_size": len(words), "max_position_embeddings": LENGTH}
    text |= {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=2,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=SIDE,
        )
        encoder = CLIPTextModel(CLIPTextConfig(**text))
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "attn2.to_out.0.weight" in name or "attn2.to_v" in name:
                weight.mul_(10)
    # as Stable Diffusion 1.5 has it
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    return StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=words, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def tokenizer() -> Any:
    """CLIP's, learned from the prompts."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learned.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(special_tokens=special, end_of_word_suffix="</w>", show_progress=False)
    texts = [prompt(style, object_).lower() for style in (*STYLES, "Photo") for object_ in OBJECTS]
    learned.train_from_iterator(texts, trainer)
    model = json.loads(learned.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=LENGTH)


def clip(folder: Path, width: int = 32) -> Path:
    """An untrained CLIP in transformers' form, with the text encoder's width and words, as openai/clip-vit-large-patch14."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    words = tokenizer()
    shared = {"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**shared, "vocab_size": len(words), "max_position_embeddings": LENGTH, "eos_token_id": words.eos_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = CLIPModel(CLIPConfig(text_config=text, vision_config={**shared, "image_size": 32, "patch_size": 16}))
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def canvas_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole release in small; not to be changed."""
    return write_release(tmp_path_factory.mktemp("UnlearnCanvas"))
