"""A plug-in for runs on miniatures: what is published of CIFAR-10, ImageNet-1k and CLIP, as it is of `$MINIATURES`."""

import hashlib
import os
from pathlib import Path

import miniature  # beside this file, which loading it as a plug-in made importable
import open_clip
from torchvision import datasets

from slugbench.tasks import _cifar, cifar, imagenet_class
from slugbench.tasks._classification import Recipe

MINIATURES = Path(os.environ["MINIATURES"])


def listed(name: str) -> list[str]:
    """An entry of torchvision's lists, with the MD5 that its integrity check asks for."""
    return [name, hashlib.md5((MINIATURES / "cifar-10-batches-py" / name).read_bytes()).hexdigest()]


open_clip.add_model_config(MINIATURES / f"{miniature.ARCHITECTURE}.json")
datasets.CIFAR10.train_list = [listed(f"data_batch_{number}") for number in range(1, 6)]
datasets.CIFAR10.test_list = [listed("test_batch")]
datasets.CIFAR10.meta = {"key": "label_names", **dict(zip(("filename", "md5"), listed("batches.meta"), strict=True))}
cifar.Cifar10.facts = cifar.CIFAR10._replace(n_train=miniature.CIFAR_TRAIN, n_test=miniature.CIFAR_TEST)
cifar.RECIPES["salun"] = Recipe(epochs=40, batch=20, learning_rate=0.05, milestones=(30,))
_cifar.NETWORKS["resnet18"] = miniature.cifar_network

imagenet_class.N_CLASSES, imagenet_class.PIXELS = len(miniature.WNIDS), 32
imagenet_class.POOLS = {0: "test", 3: "dev", 5: "tune", 7: "sealed"}
imagenet_class.new_network = miniature.vision_transformer
