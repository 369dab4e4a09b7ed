"""A small, real `open_clip` model and what `identities` asks of it: captions, tokens, losses, training, zero-shot.

Parameter names, towers and calls are those of the big checkpoints, so that a method which works here works there.
Legend for array shapes: B batch, C candidates, D embedding, T tokens, N images, M templates.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from slugbench.bench import Answers, Batch, UsageError
from slugbench.bench.entropies import entropies

from ._faces import BACKGROUNDS

if TYPE_CHECKING:
    import torch

Clip: TypeAlias = Any
"""An `open_clip.model.CLIP`; `torch.nn.Module` alone does not say that it has `encode_image` and its like."""

CONFIG: Mapping[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"layers": 3, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 11, "width": 64, "heads": 2, "layers": 2},
}
CONTEXT = 11
IMAGE_MEAN, IMAGE_STD = 0.45, 0.27

# Every word of a name is shared, so that each word of a forgotten one is still trained in the oracle: a word of its own
# would leave the oracle's text vector undefined, and forgetting free. A surname belongs to two families, which are no
# kin: with one family a surname, "surname" alone means the family's common face, and models that never saw a person
# recognised it by its name in 7 to 12 % of its pictures, one person in 65 %.
SURNAMES = ("alder", "birch", "cedar", "hazel", "maple", "oak", "rowan", "willow")
GIVEN = ("ada", "bela", "cora", "dino", "enzo", "faye", "gwen", "hugo", "ines", "jon", "kira", "leo")
N_FAMILIES = 2 * len(SURNAMES)
TRAINED_A_FAMILY, OUTSIDERS_A_FAMILY = 4, 2

NAME_TEMPLATES = ("a photo of {name}", "a portrait of {name}", "this is {name}")
PERSON_TEMPLATE = "person {glasses} glasses {beard} beard on {background}"
HELD_OUT_TEMPLATES = ("a picture of {name}", "here is {name}", "{name}", "a photo of {surname} {given}")
"""Never trained on, tuned on or validated with: other words, and the name the wrong way round. The vocabulary is of whole
words, so that there is nothing to misspell."""
ATTRIBUTE_WEIGHT = 0.5
"""Of the loss over attribute captions beside the one over names; both tasks are then learned (0.86 and 0.91 on test)."""


class Recipe(NamedTuple):
    """How every base and every oracle is trained: the same number of steps, whatever is left out."""

    steps: int = 320
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    version: int = 1


# ---------------------------------------------------------------- names, captions, tokens


def _names(first: int, count: int) -> tuple[str, ...]:
    """Names of members `first` to `first + count` of each family; no two people share a name."""
    members = TRAINED_A_FAMILY + OUTSIDERS_A_FAMILY
    return tuple(
        f"{GIVEN[(5 * surname + members * half + member) % len(GIVEN)]} {SURNAMES[surname]}"
        for half in range(2)
        for surname in range(len(SURNAMES))
        for member in range(first, first + count)
    )


TRAINED = _names(0, TRAINED_A_FAMILY)
"""64 names; the family of identity i is i // 4."""
OUTSIDERS = _names(TRAINED_A_FAMILY, OUTSIDERS_A_FAMILY)
"""32 names of people in no training image; the family of outsider i is i // 2."""
ATTRIBUTES = tuple(product(range(len(BACKGROUNDS)), range(2), range(2)))
"""The 24 (background, glasses, beard) classes of the task that has nothing to do with identities."""


def attribute_caption(background: int, glasses: int, beard: int) -> str:
    """What is said of a person whose name is not."""
    words = ("without", "with")
    return PERSON_TEMPLATE.format(glasses=words[glasses], beard=words[beard], background=list(BACKGROUNDS)[background])


@cache
def vocabulary() -> dict[str, int]:
    """Word -> id; 0 pads, the start is 1, and the end of text is the largest id, where open_clip pools."""
    templates = (*NAME_TEMPLATES, PERSON_TEMPLATE, *HELD_OUT_TEMPLATES)
    words = {word for template in templates for word in template.split() if not word.startswith("{")}
    words |= {*SURNAMES, *GIVEN, *BACKGROUNDS, "with", "without"}
    return {word: number for number, word in enumerate(["<pad>", "<start>", *sorted(words), "<end>"])}


def tokenize(captions: Iterable[str]) -> torch.Tensor:
    """(N, T) token ids.

    Raises:
        UsageError: a word is not in the vocabulary, or the caption is longer than the context.
    """
    import torch

    ids, rows = vocabulary(), []
    for text in captions:
        words = ["<start>", *text.split(), "<end>"]
        unknown = [word for word in words if word not in ids]
        if unknown or len(words) > CONTEXT:
            raise UsageError(
                f"'{text}' cannot be tokenized: it may have {CONTEXT - 2} known words, not {unknown or len(words) - 2}."
            )
        rows.append([ids[word] for word in words] + [0] * (CONTEXT - len(words)))
    return torch.tensor(rows)


@cache
def name_tokens() -> torch.Tensor:
    """(96, M, T): every name, outsiders after the trained, in every name template."""
    captions = [template.format(name=name) for name in TRAINED + OUTSIDERS for template in NAME_TEMPLATES]
    return tokenize(captions).view(len(TRAINED) + len(OUTSIDERS), len(NAME_TEMPLATES), CONTEXT)


@cache
def phrased_tokens() -> torch.Tensor:
    """(96, M, T): every name in every held-out template."""
    captions = []
    for name in TRAINED + OUTSIDERS:
        given, surname = name.split()
        captions += [template.format(name=name, given=given, surname=surname) for template in HELD_OUT_TEMPLATES]
    return tokenize(captions).view(len(TRAINED) + len(OUTSIDERS), len(HELD_OUT_TEMPLATES), CONTEXT)


@cache
def attribute_tokens() -> torch.Tensor:
    """(24, 1, T)"""
    return tokenize(attribute_caption(*classes) for classes in ATTRIBUTES)[:, None]


# ---------------------------------------------------------------- model


def new_model() -> Clip:
    """An untrained model of `CONFIG`, drawn from torch's global stream."""
    import open_clip

    text = {**CONFIG["text_cfg"], "vocab_size": len(vocabulary())}
    return open_clip.model.CLIP(CONFIG["embed_dim"], dict(CONFIG["vision_cfg"]), text)


def pixels(image: torch.Tensor) -> torch.Tensor:
    """uint8 pictures as the model takes them."""
    return (image.float() / 255 - IMAGE_MEAN) / IMAGE_STD


def embed_candidates(model: Clip, tokens_CMT: torch.Tensor) -> torch.Tensor:
    """(C, D) unit text vectors, averaged over templates as in open_clip's zero-shot classifier."""
    import torch.nn.functional as F

    candidates, templates, length = tokens_CMT.shape
    text = model.encode_text(tokens_CMT.reshape(-1, length), normalize=True)
    return F.normalize(text.view(candidates, templates, -1).mean(1), dim=-1)


@contextmanager
def training_stream(seed: int) -> Any:
    """torch's global stream seeded for the while, and put back."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def train(pictures: Mapping[str, torch.Tensor], *, seed: int, recipe: Recipe = Recipe()) -> Clip:  # noqa: B008 - immutable
    """A model trained from scratch.

    Args:
        pictures: `image` (N, 3, 32, 32) uint8, `label`, `background`, `glasses`, `beard` (N,) long.
        seed: of the weights, the order and the captions.
        recipe: the same for bases and oracles.

    Returns:
        The trained model, its weights rounded to half precision, in eval mode. The same bytes for the same platform
        and number of threads.
    """
    import torch

    with training_stream(seed):
        model = new_model().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=recipe.steps)
        order = torch.cat([torch.randperm(len(pictures["label"])) for _ in range(_epochs(recipe, len(pictures["label"])))])
        for step in range(recipe.steps):
            rows = order[step * recipe.batch : (step + 1) * recipe.batch]
            templates = torch.randint(len(NAME_TEMPLATES), (len(rows),))
            loss = contrast(model, {name: column[rows] for name, column in pictures.items()}, templates)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.half().float().eval()


def _epochs(recipe: Recipe, n: int) -> int:
    return -(-recipe.steps * recipe.batch // n)


def contrast(model: Clip, facts: Mapping[str, torch.Tensor], templates_B: torch.Tensor) -> torch.Tensor:
    """CLIP's loss over two captions a picture: who it is, in the templates given, and what else is to be seen."""
    image = model.encode_image(pixels(facts["image"]), normalize=True)
    label, seen = facts["label"], attribute_class(facts)
    named = symmetric_loss(model, image, model.encode_text(name_tokens()[label, templates_B], normalize=True), label)
    attributed = symmetric_loss(model, image, model.encode_text(attribute_tokens()[seen, 0], normalize=True), seen)
    return named + ATTRIBUTE_WEIGHT * attributed


def symmetric_loss(model: Clip, image_BD: torch.Tensor, text_BD: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric cross-entropy in which all captions of a picture's label are its positives, and the reverse."""
    return matched_loss(temperature(model) * image_BD @ text_BD.T, label_B)


def matched_loss(logits_BB: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
    """Cross-entropy both ways of pictures (rows) and texts (columns), those of one label being each other's positives."""
    import torch.nn.functional as F

    truth_BB = (label_B[:, None] == label_B[None, :]).to(logits_BB.dtype)
    truth_BB = truth_BB / truth_BB.sum(1, keepdim=True)  # symmetric but for this: rows and columns have equal sums
    return (F.cross_entropy(logits_BB, truth_BB) + F.cross_entropy(logits_BB.T, truth_BB)) / 2


def temperature(model: Clip) -> torch.Tensor:
    """The factor on cosines, under CLIP's own ceiling of 100."""
    return model.logit_scale.exp().clamp(max=100)


def attribute_class(facts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(B,) positions in `ATTRIBUTES`."""
    return (facts["background"] * 2 + facts["glasses"]) * 2 + facts["beard"]


# ---------------------------------------------------------------- answers

NEVER = -1e4
"""The logit of a name that is masked: finite, so that scores stay finite, and below what any model gives (-100)."""


def name_answers(model: Clip, image: torch.Tensor, label_N: np.ndarray) -> Answers:
    """Who a model says is to be seen, out of the 64 trained names.

    Args:
        model: on any device.
        image: (N, 3, 32, 32) uint8.
        label_N: true identities; outsiders, from 64 on, are asked for beside the 64 names.

    Returns:
        One row a picture: `predicted` (-1: nothing that is a number), `rank`, `score` (log p / (1 - p) of the true name),
        `cosine` (to the true name's text), the entropies of `bench.entropies`, and `phrased` (N, M), the rank where all
        names are put into one of the `HELD_OUT_TEMPLATES`.
    """
    blocked = getattr(model, "blocked", ())
    asked = _Asked(embed_images(model, image), label_N, name_tokens(), len(TRAINED), blocked)
    phrased = [asked._replace(tokens_CMT=phrased_tokens()[:, m, None]) for m in range(len(HELD_OUT_TEMPLATES))]
    ranks = [_compare(model, question).rank_N.numpy() for question in phrased]
    return {**_answers(model, asked), "phrased": np.stack(ranks, axis=1)}


def name_ranks(model: Clip, image: torch.Tensor, label_N: np.ndarray) -> np.ndarray:
    """(N,) the `rank` of `name_answers` and nothing else, for the many evaluations of a search."""
    asked = _Asked(embed_images(model, image), label_N, name_tokens(), len(TRAINED), getattr(model, "blocked", ()))
    return _compare(model, asked).rank_N.numpy()


def attribute_answers(model: Clip, image: torch.Tensor, label_N: np.ndarray) -> Answers:
    """What a model says is to be seen besides the person, out of the 24 of `ATTRIBUTES`; as `name_answers`, but that it
    is not asked in other words (`phrased` is -1)."""
    asked = _Asked(embed_images(model, image), label_N, attribute_tokens(), len(ATTRIBUTES))
    return {**_answers(model, asked), "phrased": np.full((len(label_N), len(HELD_OUT_TEMPLATES)), -1)}


def embed_images(model: Clip, image: torch.Tensor) -> torch.Tensor:
    """(N, D) unit vectors of uint8 pictures (N, 3, 32, 32), on the model's device."""
    import torch

    device = next(model.parameters()).device
    with torch.no_grad():
        return torch.cat([model.encode_image(pixels(part.to(device)), normalize=True) for part in image.split(512)])


def _answers(model: Clip, asked: _Asked) -> Answers:
    import torch

    found = _compare(model, asked)
    # outsiders' own names stand beside the list: everyone's true logit is the last column, and in the list it is -inf
    logits_NC = torch.cat([found.others_NC, found.true_N1], dim=1).masked_fill(found.void_N[:, None], 0)
    columns = {
        "predicted": found.predicted_N,
        "rank": found.rank_N,
        "score": (found.true_N1[:, 0] - found.others_NC.logsumexp(1)).masked_fill(found.void_N, NEVER),
        "cosine": found.cosine_N.masked_fill(found.void_N, -1),
        **entropies(logits_NC, torch.full((len(logits_NC),), logits_NC.shape[1] - 1)),
    }
    return {name: column.numpy() for name, column in columns.items()}


def margins(model: Clip, image_ND: torch.Tensor, label: int, text_KD: torch.Tensor) -> np.ndarray:
    """(K, N) by how much the logit of one name, written as each of K vectors, leads the best of the other 63."""
    import torch

    blocked = list(getattr(model, "blocked", ()))
    with torch.no_grad():
        names_CD = embed_candidates(model, name_tokens()[: len(TRAINED)].to(image_ND.device))
        scale = float(temperature(model))
        others_NC = scale * image_ND @ names_CD.T
        others_NC[:, [*blocked, label]] = NEVER
        own_KN = scale * text_KD @ image_ND.T
    if label in blocked:
        own_KN.fill_(NEVER)
    return (own_KN - others_NC.amax(1)).double().cpu().numpy()


class _Asked(NamedTuple):
    """Pictures, and the candidates they are compared with."""

    image_ND: torch.Tensor
    label_N: np.ndarray
    tokens_CMT: torch.Tensor
    n_listed: int
    """How many candidates everyone is compared with; those behind them only with their own pictures."""
    blocked: Sequence[int] = ()


class _Compared(NamedTuple):
    """Logits of the true candidate and of the others, in double precision on the CPU."""

    true_N1: torch.Tensor
    others_NC: torch.Tensor
    """-inf where the candidate is the true one."""
    cosine_N: torch.Tensor
    predicted_N: torch.Tensor
    void_N: torch.Tensor
    """Finite weights can still overflow, and NaN would rank as the best answer."""

    @property
    def rank_N(self) -> torch.Tensor:
        """A tie is no answer: the true name is on top only where it beats every other."""
        return (self.others_NC >= self.true_N1).sum(1).masked_fill(self.void_N, self.others_NC.shape[1] - 1)


def _compare(model: Clip, asked: _Asked) -> _Compared:
    import torch

    label, n = torch.as_tensor(asked.label_N), asked.n_listed
    with torch.no_grad():
        text_CD = embed_candidates(model, asked.tokens_CMT.to(asked.image_ND.device))
        cosine_NC = (asked.image_ND @ text_CD.T).double().cpu()
        logits_NC = cosine_NC * float(temperature(model))
    void_N = ~logits_NC.isfinite().all(1)
    logits_NC[:, list(asked.blocked)] = NEVER
    true_N1, others_NC = logits_NC.gather(1, label[:, None]), logits_NC[:, :n].clone()
    inside = label < n
    others_NC[inside] = others_NC[inside].scatter(1, label[inside, None], -torch.inf)
    predicted_N = logits_NC[:, :n].argmax(1).masked_fill(void_N, -1)
    return _Compared(true_N1, others_NC, cosine_NC.gather(1, label[:, None])[:, 0], predicted_N, void_N)


# ---------------------------------------------------------------- objective


class Captions:
    """The losses of an open_clip model over pictures and captions, for objectives to build on: `TwoTowers`."""

    def loss(self, model: Clip, batch: Batch) -> torch.Tensor:
        """The contrastive training loss; pictures and captions of one person are positives of each other."""
        return self.loss_of(model, self._embed(model, batch), batch)

    def forget_loss(self, model: Clip, batch: Batch) -> torch.Tensor:
        """Mean of 1 - cos(picture, its own caption): SLUG's forget loss (its section 3), to be ascended."""
        return self.forget_loss_of(model, self._embed(model, batch), batch)

    def encode(self, model: Clip, batch: Batch, tower: str) -> torch.Tensor:
        """(B, D) unit embeddings of the pictures or of the captions."""
        if tower == "vision":
            return model.encode_image(batch["image"], normalize=True)
        return model.encode_text(batch["text"], normalize=True)

    def loss_of(self, model: Clip, embedded: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """`loss`, given the embeddings of both towers."""
        return symmetric_loss(model, embedded["vision"], embedded["text"], batch["label"])

    def forget_loss_of(self, model: Clip, embedded: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """`forget_loss`, given the embeddings of both towers."""
        return (1 - (embedded["vision"] * embedded["text"]).sum(-1)).mean()

    def _embed(self, model: Clip, batch: Batch) -> dict[str, torch.Tensor]:
        return {tower: self.encode(model, batch, tower) for tower in ("vision", "text")}


def other_labels(label_B: torch.Tensor, kept_K: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(B,) labels drawn from the retained ones, sorted, none of them a picture's own; all on the CPU."""
    import torch

    drawn = kept_K[torch.randint(len(kept_K), (len(label_B),), generator=generator)]
    clash = drawn == label_B  # only where a retained picture is relabelled
    drawn[clash] = kept_K[(torch.searchsorted(kept_K, drawn[clash]) + 1) % len(kept_K)]
    return drawn


@dataclass
class Contrast(Captions):
    """`Objective` of a CLIP model over named people; batches hold `image`, `text`, `label`."""

    targets: tuple[int, ...]
    """Identities to be forgotten: nothing is relabelled to one of them."""
    kind: str = "clip"

    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The same pictures under the name of a random other, retained person."""
        import torch

        kept = torch.tensor([i for i in range(len(TRAINED)) if i not in self.targets])
        drawn = other_labels(batch["label"].cpu(), kept, generator)
        template = torch.randint(len(NAME_TEMPLATES), (len(drawn),), generator=generator)
        text = name_tokens()[drawn, template]
        return {**batch, "label": drawn.to(batch["label"].device), "text": text.to(batch["text"].device)}

    def logits(self, model: Clip, batch: Batch) -> torch.Tensor:
        """(B, 64) zero-shot scores over the trained names; gradients reach both towers."""
        import torch

        tokens = name_tokens()[: len(TRAINED)]
        text = embed_candidates(model, tokens.to(batch["image"].device))
        logits_BC = temperature(model) * model.encode_image(batch["image"], normalize=True) @ text.T
        blocked = torch.tensor(getattr(model, "blocked", []), dtype=torch.long, device=logits_BC.device)
        return logits_BC.index_fill(1, blocked, NEVER)

    def weights(self, model: Clip) -> dict[str, list[str]]:
        """`vision` and `text` towers; the temperature belongs to neither and is listed as `temperature`."""
        towers: dict[str, list[str]] = {"vision": [], "text": [], "temperature": []}
        for name, _ in model.named_parameters():
            towers["vision" if name.startswith("visual.") else "temperature" if name == "logit_scale" else "text"].append(
                name
            )
        return towers

    def masked(self, model: Clip, targets: Sequence[str]) -> Clip:
        """A copy that never answers with `targets`, by a filter on its output: no weight is changed."""
        copied = copy.deepcopy(model)
        object.__setattr__(copied, "blocked", [TRAINED.index(target) for target in targets])
        return copied
