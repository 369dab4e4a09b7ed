"""The text-to-image model of `canvas`: a Stable Diffusion pipeline of diffusers, part by part at toy size.

    tokenizer     CLIP's, of the words of the prompts
    text_encoder  of a CLIP that is trained first and then left as it is
    unet          denoises under the text, by cross-attention at two sizes
    vae           hands the pixels through
    scheduler     DDIM

It is saved, loaded, edited and sampled as Stable Diffusion is, by the same code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from ._canvas_scenes import OBJECTS, SIDE, STYLES

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPModel, CLIPTokenizer

PROMPT = "A {object} image in {style} style."
"""UnlearnCanvas's wording, which sampling uses."""
CAPTIONS = (PROMPT, "A {style} picture of a {object}", "{object} drawn in the style of {style}")
"""What the CLIP is trained with."""
LENGTH = 12
"""Tokens of a prompt, padded."""
START, END = "<|startoftext|>", "<|endoftext|>"


def prompts(styles: Iterable[int], objects: Iterable[int], template: str = PROMPT) -> list[str]:
    """What is written for pictures of those numbers."""
    return [template.format(style=STYLES[s], object=OBJECTS[o]) for s, o in zip(styles, objects, strict=True)]


def tokens(tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """(N, T) tokens, padded to the length that the tokenizer is for."""
    return tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids


@cache
def tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer for the captions: each of their words is one token, others come in letters.

    Written down rather than learned: a trainer numbers tokens as it comes by them, in another order in each process, and
    models of one process would misread the prompts of another.
    """
    from transformers import CLIPTokenizer

    templates = [template.format(style="", object="").lower().replace(".", " .").split() for template in CAPTIONS]
    words = sorted({*STYLES, *OBJECTS, *(word for words in templates for word in words)})
    letters = sorted({letter for word in words for letter in word})
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = _merged([*word[:-1], word[-1] + "</w>"], merges)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    vocab = [START, END, *letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(vocab)}, merges=merges, model_max_length=LENGTH)


def _merged(pieces: list[str], merges: Sequence[tuple[str, str]]) -> list[str]:
    """The pieces of a word after byte-pair merges, each wherever it applies, in their order."""
    for left, right in merges:
        place = 0
        while place + 1 < len(pieces):
            if (pieces[place], pieces[place + 1]) == (left, right):
                pieces = [*pieces[:place], left + right, *pieces[place + 2 :]]
            place += 1
    return pieces


def new_clip(seed: int) -> CLIPModel:
    """An untrained CLIP: 64 wide, two layers of text, three of pictures in patches of four."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    shared = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "projection_dim": 64}
    text = {**shared, "num_hidden_layers": 2, "vocab_size": len(tokenizer()), "max_position_embeddings": LENGTH}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {**shared, "num_hidden_layers": 3, "image_size": SIDE, "patch_size": 4}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def new_unet(seed: int) -> UNet2DConditionModel:
    """An untrained U-Net of 1.1 million parameters: 16, 32 and 64 channels at 16, 8 and 4 pixels, text at the latter two."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return UNet2DConditionModel(
            sample_size=SIDE,
            in_channels=3,
            out_channels=3,
            layers_per_block=1,
            block_out_channels=(16, 32, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=64,
            attention_head_dim=4,
            norm_num_groups=8,
        )


def new_scheduler() -> DDIMScheduler:
    """DDIM, velocity prediction, cosine schedule: the last step is nearly pure noise, as sampling starts from."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


SMALL = 0.1
"""Latents inside the autoencoder: its decoder begins with 3 tanh(x / 3), which so small a number leaves alone to 4e-4."""


def pixels_through() -> AutoencoderTiny:
    """An autoencoder whose latents are the pixels, from -1 to 1: a picture of 16 x 16 has nothing to compress.

    Without blocks `AutoencoderTiny` is two convolutions either way, with a rectifier between the decoder's. Weights are
    written down so that these pass on each channel: encoded x -> SMALL (x + 1) / 2 - SMALL / 2, decoded the other way.
    """
    import torch
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny(
        encoder_block_out_channels=(3,),
        decoder_block_out_channels=(3,),
        num_encoder_blocks=(0,),
        num_decoder_blocks=(0,),
        latent_channels=3,
        scaling_factor=2 / SMALL,
    )
    through = torch.zeros(3, 3, 3, 3)
    through[range(3), range(3), 1, 1] = 1.0
    encoder, decoder = vae.encoder.layers, vae.decoder.layers
    factors = (
        (encoder[0], 1.0, 0.0),
        (encoder[1], SMALL, -SMALL / 2),
        (decoder[0], 1.0, SMALL / 2),
        (decoder[2], 1 / SMALL, 0),
    )
    with torch.no_grad():
        for layer, factor, bias in factors:
            layer.weight.copy_(factor * through)
            layer.bias.fill_(bias)
    return vae.requires_grad_(False)


def new_pipeline(text_encoder: Any, unet: Any) -> StableDiffusionPipeline:
    """The parts together."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=pixels_through(),
        text_encoder=text_encoder,
        tokenizer=tokenizer(),
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
