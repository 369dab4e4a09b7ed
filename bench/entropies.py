"""Entropies of a model's answers: what membership attacks look at besides the confidence in the true label.

Legend for array shapes: N answers, C candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def entropies(logits_NC: torch.Tensor, label_N: torch.Tensor) -> dict[str, torch.Tensor]:
    """Three entropies of the softmax over `logits_NC`, in nats.

        entropy           - sum_k p_k log p_k
        m_entropy         - (1 - p_y) log p_y - sum over k != y of p_k log(1 - p_k)
        m_entropy_legacy  - sum_k (1 - p_k) log p_k

    The modified entropy is low only where the true label is confidently said. The last is what the attack code of
    Unlearn-Sparse and SalUn computes in its place wherever all labels occur in a batch: its indices select columns and
    not entries. It is kept for comparison with published columns.

    Args:
        logits_NC: finite scores, or -inf for what cannot be answered.
        label_N: (N,) long, the true candidates.

    Returns:
        Tensors of shape (N,), at least 0.

    References:
        Song and Mittal, Systematic Evaluation of Privacy Risks of Machine Learning Models, 2021.
    """
    import torch

    log_p = logits_NC.double().log_softmax(1).clamp(min=-LARGEST)
    p = log_p.exp()
    log_not_p = torch.log1p(-p.clamp(max=1 - SMALLEST))
    true = torch.nn.functional.one_hot(label_N, logits_NC.shape[1]).bool()
    return {
        "entropy": -(p * log_p).sum(1),
        "m_entropy": -torch.where(true, (1 - p) * log_p, p * log_not_p).sum(1),
        "m_entropy_legacy": -((1 - p) * log_p).sum(1),
    }


LARGEST = 745.0
"""-log of the smallest positive number in double precision: an impossible answer is taken for one so improbable."""
SMALLEST = 1e-16
