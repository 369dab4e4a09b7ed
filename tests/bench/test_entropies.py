import math

import numpy as np
import torch
from scipy import stats

from slugbench.bench.entropies import entropies


def test_three_classes_by_hand():
    """p = 1/2 1/4 1/4. y = 0: -1/2 log 1/2 - 2 (1/4 log 3/4); y = 1: -3/4 log 1/4 - 1/2 log 1/2 - 1/4 log 3/4."""
    found = entropies(torch.tensor([[0.5, 0.25, 0.25]] * 2).log(), torch.tensor([0, 1]))
    half, quarter, rest = math.log(2), math.log(4), -math.log(0.75)
    expected = [0.5 * half + 0.5 * rest, 0.75 * quarter + 0.5 * half + 0.25 * rest]
    np.testing.assert_allclose(found["m_entropy"], expected, rtol=1e-6)  # the probabilities are float32
    np.testing.assert_allclose(found["m_entropy_legacy"], [0.5 * half + 1.5 * quarter] * 2, rtol=1e-6)


def test_entropy_is_shannons():
    logits = torch.randn(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = entropies(logits, torch.zeros(50, dtype=torch.long))["entropy"]
    np.testing.assert_allclose(found, stats.entropy(logits.softmax(1), axis=1), rtol=1e-9)


def test_the_modified_entropy_tells_sure_and_right_from_sure_and_wrong():
    found = entropies(torch.tensor([[30.0, 0.0, 0.0]] * 2), torch.tensor([0, 1]))
    assert found["entropy"][0] == found["entropy"][1] < 1e-9  # Shannon's does not
    assert found["m_entropy"][0] < 1e-9 and found["m_entropy"][1] > 29


def test_impossible_answers_leave_finite_entropies():
    found = entropies(torch.tensor([[0.0, -math.inf, -1e4], [0.0, -math.inf, -1e4]]), torch.tensor([0, 1]))
    assert all(column.isfinite().all() and (column >= 0).all() for column in found.values())


def test_the_legacy_entropy_is_what_the_published_indices_come_to():
    """Indexed `[:, y]` by the labels of a batch, whole columns are exchanged, not one entry a row."""
    p = np.random.default_rng(0).dirichlet(np.ones(3), size=50)
    label = np.arange(50) % 3
    reverse, log_reverse = 1 - p, np.log(p)
    modified, log_modified = p.copy(), log_reverse.copy()
    modified[:, label] = reverse[:, label]
    log_modified[:, label] = log_reverse[:, label]
    found = entropies(torch.from_numpy(p).log(), torch.from_numpy(label))["m_entropy_legacy"]
    np.testing.assert_allclose(found, -(modified * log_modified).sum(1), rtol=1e-9)
