"""Tiny data sets and models in the very format of the real ones: CelebA, ImageNet, CIFAR-10, LAION's tars, checkpoints.

A picture is a colour, its person's or class's own, with noise; tiny models learn to name them in seconds.
"""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

ARCHITECTURE = "tiny-test"
CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
PAPER = ("Elon_Musk", "Taylor_Swift", "Jeff_Bezos")
FREQUENT = (*PAPER[:2], *(f"{given}_Birch" for given in ("Ada", "Bela", "Cora", "Dino", "Enzo", "Faye", "Gwen", "Hugo")))
PEOPLE = (*FREQUENT, PAPER[2], "Some_Stranger")
A_PERSON = 9
WNIDS = (
    *("n02802426", "n04146614", "n04355933", "n04356056"),  # basketball, school bus, and both of sunglasses
    *("n01440764", "n01443537", "n01484850", "n01491361", "n01494475", "n01496331", "n01498041", "n01514668"),
)
A_CLASS = 6
CIFAR_TRAIN, CIFAR_TEST = 500, 200
MISLABELLED = 0.12
"""Share of CIFAR's training images: only a model that was trained on them names those as they are labelled."""
TRAINED_ON, VALIDATED_ON = 20, 8
"""Pictures of each of ImageNet-1k's classes, of which there are as many as `WNIDS`."""


def jpeg(colour: int, noise: int, *, size: tuple[int, int] = (44, 54)) -> bytes:
    """An encoded picture of one of many colours."""
    from PIL import Image

    stream = np.random.default_rng([colour, noise])
    base = np.random.default_rng(colour).integers(30, 226, (2, 2, 3))  # its quarters, each of a colour
    whole = np.kron(base, np.ones((size[1] // 2, size[0] // 2, 1))) + stream.normal(0, 12, (size[1], size[0], 3))
    file = io.BytesIO()
    Image.fromarray(whole.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def celeba(root: Path) -> Path:
    """The three things that CelebA with names consists of; pictures of one person do not follow each other."""
    (root / "img_align_celeba").mkdir(parents=True)
    rows = []
    for number in range(len(PEOPLE) * A_PERSON):
        person, file = number % len(PEOPLE), f"{number + 1:06d}.jpg"
        (root / "img_align_celeba" / file).write_bytes(jpeg(person, number))
        rows.append(f"{file} {PEOPLE[person]}")
    (root / "list_identity_celeba.txt").write_text("\n".join([str(len(rows)), "image_id identity_name", *rows]) + "\n")
    (root / "frequent_celebs.txt").write_text("\n".join(FREQUENT) + "\n")
    return root


def imagenet(root: Path) -> Path:
    """Validation pictures of 12 classes, sorted into folders."""
    for label, wnid in enumerate(WNIDS):
        (root / "val" / wnid).mkdir(parents=True)
        for number in range(A_CLASS):
            name = f"ILSVRC2012_val_{label + len(WNIDS) * number + 1:08d}.JPEG"
            (root / "val" / wnid / name).write_bytes(jpeg(100 + label, number))
    return root


def tar(path: Path, pairs: Iterable[tuple[bytes | None, str | None]]) -> Path:
    """A WebDataset tar as img2dataset writes it; what is None is left out of its sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for number, (picture, caption) in enumerate(pairs):
            halves = {"jpg": picture, "txt": None if caption is None else caption.encode(), "json": b"{}"}
            for ending, content in halves.items():
                if content is not None:
                    member = tarfile.TarInfo(f"{number:09d}.{ending}")
                    member.size = len(content)
                    file.addfile(member, io.BytesIO(content))
    return path


def register(folder: Path) -> None:
    """Make open_clip know the tiny architecture, and one twice as wide."""
    import open_clip

    wide = json.loads(json.dumps(CONFIG)) | {"embed_dim": 64}
    wide["vision_cfg"]["width"] = 64
    for name, config in ((ARCHITECTURE, CONFIG), (f"{ARCHITECTURE}-wide", wide)):
        file = folder / f"{name}.json"
        file.write_text(json.dumps(config))
        open_clip.add_model_config(file)


def model(name: str = ARCHITECTURE, seed: int = 0) -> Any:
    """A fresh model of random weights."""
    import open_clip
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_clip.create_model(name).eval()


def train(clip: Any, files: list[Path], captions: list[str], *, steps: int = 60) -> Any:
    """Teach a model which caption goes with which picture."""
    import open_clip
    import torch
    from PIL import Image

    transform = open_clip.image_transform(32, is_train=False)  # with the mean and std of all that names no other
    image = torch.stack([transform(Image.open(file)) for file in files])
    unique = sorted(set(captions))
    label = torch.tensor([unique.index(caption) for caption in captions])
    tokens = open_clip.get_tokenizer(ARCHITECTURE)(unique)
    optimizer = torch.optim.AdamW(clip.train().parameters(), lr=3e-3)
    for _ in range(steps):
        text = clip.encode_text(tokens, normalize=True)
        logits = 20 * clip.encode_image(image, normalize=True) @ text.T
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, label).backward()
        optimizer.step()
    return clip.eval()


def checkpoints(clip: Any, folder: Path) -> dict[str, Path]:
    """The model in all the ways that real ones are saved in."""
    import torch
    from safetensors.torch import save_file

    state = {name: tensor.clone().contiguous() for name, tensor in clip.state_dict().items()}
    files = {"pt": folder / "state.pt", "training": folder / "epoch_1.pt", "safetensors": folder / "model.safetensors"}
    torch.save(state, files["pt"])
    torch.save({"epoch": 1, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, files["training"])
    save_file(state, files["safetensors"])
    files["open_clip folder"] = folder / "hub"
    files["open_clip folder"].mkdir()
    save_file(state, files["open_clip folder"] / "open_clip_model.safetensors")
    settings = {"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
    (files["open_clip folder"] / "open_clip_config.json").write_text(json.dumps(settings))
    return files


def hugging_face(folder: Path) -> Path:
    """A folder of transformers' CLIP, random weights, as `save_pretrained` writes it."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 49408, "max_position_embeddings": 20, "eos_token_id": 49407, "bos_token_id": 49406}
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32))
    clip.save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**size).save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- classifiers and what they learn


def cifar10(root: Path) -> Path:
    """The batches as torchvision reads them: pickles with images as rows of 3,072 bytes."""
    folder, stream = root / "cifar-10-batches-py", np.random.default_rng(5)
    folder.mkdir(parents=True)
    colour_K3 = np.random.default_rng(0).uniform(50, 200, (10, 3))

    def write(name: str, count: int, mislabelled: float) -> None:
        label = stream.permutation(count) % 10
        own = np.kron(stream.normal(0, 25, (count, 3, 4, 4)), np.ones((8, 8)))  # by which an image can be remembered
        image = colour_K3[label][:, :, None, None] + own + 10 * stream.standard_normal(own.shape)
        data = image.clip(0, 255).astype(np.uint8).reshape(count, 3072)
        labels = np.where(stream.random(count) < mislabelled, (label + 1) % 10, label).tolist()
        (folder / name).write_bytes(pickle.dumps({"labels": labels, "data": data}, protocol=2))

    for number in range(1, 6):
        write(f"data_batch_{number}", CIFAR_TRAIN // 5, MISLABELLED)
    write("test_batch", CIFAR_TEST, 0)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {k}" for k in range(10)]}, protocol=2))
    return root


def cifar_network(n_classes: int) -> Any:
    """In the place of a ResNet-18: large enough to remember its training images."""
    from torch import nn

    layers = {
        **{"pool": nn.AvgPool2d(8), "flatten": nn.Flatten(), "hidden": nn.Linear(48, 256), "relu": nn.ReLU()},
        "fc": nn.Linear(256, n_classes),
    }
    return nn.Sequential(OrderedDict(layers))


def imagenet_1k(root: Path) -> Path:
    """Training and validation pictures in folders of their classes; one of either part and class is grey, one CMYK."""
    from PIL import Image

    for part, count in (("train", TRAINED_ON), ("val", VALIDATED_ON)):
        for label, wnid in enumerate(sorted(WNIDS)):
            (root / part / wnid).mkdir(parents=True)
            for number in range(count):
                file = root / part / wnid / f"{wnid}_{number}.JPEG"
                file.write_bytes(jpeg(100 + label, 1000 * (part == "val") + number))
                if number < 2:
                    with Image.open(file) as image:
                        other = image.convert(("L", "CMYK")[number])
                    other.save(file, "JPEG")
    return root


def vision_transformer() -> Any:
    """In the place of torchvision's ViT-B/16: one layer of 16 dimensions."""
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 16, 1, 2, 16, 32, num_classes=len(WNIDS))


def trained_transformer(root: Path, *, steps: int = 150) -> Any:
    """One that learned the training pictures of `imagenet_1k`."""
    import torch
    from PIL import Image
    from torchvision import transforms

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    shown = [transforms.Resize(36), transforms.CenterCrop(32), transforms.ToTensor(), transforms.Normalize(mean, std)]
    files = [(label, file) for label, wnid in enumerate(sorted(WNIDS)) for file in sorted((root / "train" / wnid).iterdir())]
    image = torch.stack([transforms.Compose(shown)(Image.open(file).convert("RGB")) for _, file in files])
    label = torch.tensor([label for label, _ in files])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = vision_transformer()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(image), label).backward()
        optimizer.step()
    return network.eval()
