"""`TensorSplit` hands out every sample once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slugbench.bench import TensorSplit, UsageError


@pytest.fixture
def split() -> TensorSplit:
    """Ten samples; samples 0, 2, 4 belong to `even`, 1 and 3 to `odd`."""
    members = {"even": torch.tensor([0, 2, 4]), "odd": torch.tensor([1, 3])}
    return TensorSplit({"image": torch.arange(10.0).view(10, 1), "label": torch.arange(10) * 10}, members)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(n=st.integers(1, 40), size=st.integers(1, 50), seed=st.none() | st.integers(0, 9))
def test_every_sample_comes_once_and_only_the_last_batch_is_smaller(n, size, seed):
    split = TensorSplit({"label": torch.arange(n) * 3})
    batches = list(split.batches(size, None if seed is None else seeded(seed)))
    assert sorted(torch.cat([b["index"] for b in batches]).tolist()) == list(range(n))
    assert [len(b["index"]) for b in batches[:-1]] == [size] * (len(batches) - 1)
    assert all((b["label"] == 3 * b["index"]).all() for b in batches)


def test_without_a_generator_the_order_is_the_stored_one(split):
    assert [b["index"].tolist() for b in split.batches(4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_generator_draws_the_order_and_the_same_seed_the_same(split):
    def order(generator):
        return torch.cat([b["index"] for b in split.batches(3, generator)]).tolist()

    assert order(seeded(0)) == order(seeded(0)) != order(seeded(1))
    one = seeded(0)
    assert order(one) != order(one)  # the next pass is another order


def test_batches_are_copies(split):
    for generator in (None, seeded(0)):
        next(split.batches(10, generator))["image"].zero_()
    assert split.tensors["image"].sum() == 45


def test_the_samples_of_one_target_keep_their_index(split):
    assert len(split) == 10 and len(split.of("even")) == 3
    (batch,) = split.of("odd").batches(10)
    assert batch["index"].tolist() == [1, 3] and batch["label"].tolist() == [10, 30]


def test_an_index_that_is_given_is_kept():
    (batch,) = TensorSplit({"label": torch.zeros(2).long(), "index": torch.tensor([7, 5])}).batches(2)
    assert batch["index"].tolist() == [7, 5]


def test_an_unknown_target_is_refused_with_those_there_are(split):
    with pytest.raises(UsageError, match="target 'both' is not in this split; it has even, odd"):
        split.of("both")
    with pytest.raises(UsageError, match="it has no targets"):
        split.of("even").of("even")


@pytest.mark.parametrize("columns", [{}, {"label": []}, {"label": [1, 2], "image": [1]}])
def test_a_split_without_samples_or_of_uneven_columns_is_refused(columns):
    with pytest.raises(UsageError, match="a split needs columns of one length, at least one sample long; it got"):
        TensorSplit({name: torch.tensor(values) for name, values in columns.items()})
