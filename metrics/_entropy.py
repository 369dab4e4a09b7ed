"""How unsure a prediction is given the right answer: the modified entropy, as defined and as a well-known code has it.

Legend for array shapes: N samples, C classes.
"""

from __future__ import annotations

import numpy as np

LEAST = 1e-30
"""What logarithms take for 0, in both codes as well."""


def modified_entropy(probability_NC: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """Entropy that is 0 for a sure right answer and infinite for a sure wrong one.

        M(p, y) = -(1 - p_y) log p_y - sum over k != y of p_k log(1 - p_k)

    Args:
        probability_NC: rows that add up to 1.
        label_N: true labels in 0..C-1.

    Returns:
        (N,) in nats, from 0 to about 69 a class (`LEAST`).

    References:
        Song and Mittal, Systematic Evaluation of Privacy Risks of Machine Learning Models, 2021.
    """
    p_NC, own = probability_NC, np.arange(len(label_N))
    terms_NC = -p_NC * _log(1 - p_NC)
    terms_NC[own, label_N] = -(1 - p_NC[own, label_N]) * _log(p_NC[own, label_N])
    return terms_NC.sum(axis=1)


def faulty_modified_entropy(probability_NC: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """What the code of l1-sparse unlearning and SalUn takes for the modified entropy; for comparison with its tables alone.

        sum over k in the batch's labels of -(1 - p_k) log p_k, over the other k of -p_k log p_k

    Its `reverse[:, labels] = p[:, labels]` addresses whole columns where the one entry of each row is meant, and the
    logarithm of 1 - p is taken of p. So the value depends on which labels happen to be in the batch and, where all are,
    no longer on the sample's own: -sum (1 - p) log p.
    """
    p_NC = probability_NC
    weight_NC = p_NC.copy()
    labels = np.unique(label_N)
    weight_NC[:, labels] = 1 - p_NC[:, labels]
    return -(weight_NC * _log(p_NC)).sum(axis=1)


def _log(x: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(x, LEAST))
