"""Losses of each image, so that any share of a batch can be summed.

cross_entropy   with label smoothing
bce             binary cross-entropy on logits, the mean over labels
focal           either of them, with less weight on what is easy (Lin et al. 2017, equation 4,
                without alpha)
soft_…          against the outputs of a teacher (Hinton, Vinyals, Dean 2015)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from eagleray.tasks.base import ImageLosses

__all__ = [
    "binary_cross_entropies",
    "cross_entropies",
    "soft_binary_cross_entropies",
    "soft_cross_entropies",
]


def cross_entropies(
    *, weights: Tensor | None = None, gamma: float = 0.0, smoothing: float = 0.0
) -> ImageLosses:
    """Return the cross-entropy of logits (N, num_labels) against indices or probabilities.

    Args:
        weights: Weight of each class (num_labels,).
        gamma: Exponent of the focal loss; 0 for none.
        smoothing: Share of the target that goes to all classes alike.
    """
    from torch.nn import functional

    def losses(logits: Tensor, targets: Tensor) -> Tensor:
        placed = None if weights is None else weights.to(logits.device)
        values = functional.cross_entropy(
            logits, targets, weight=placed, reduction="none", label_smoothing=smoothing
        )
        if gamma == 0:
            return values
        probabilities = logits.softmax(dim=1)
        if targets.is_floating_point():  # mixed images
            true = (probabilities * targets).sum(dim=1)
        else:
            true = probabilities.gather(1, targets.unsqueeze(1)).squeeze(1)
        return (1 - true).clamp_min(0).pow(gamma) * values

    return losses


def binary_cross_entropies(*, weights: Tensor | None = None, gamma: float = 0.0) -> ImageLosses:
    """Return the binary cross-entropy of logits (N, num_outputs), the mean over outputs.

    Args:
        weights: Weight of a positive of each output (num_outputs,).
        gamma: Exponent of the focal loss; 0 for none.
    """
    from torch.nn import functional

    def losses(logits: Tensor, targets: Tensor) -> Tensor:
        wanted = targets.reshape(len(logits), -1)
        placed = None if weights is None else weights.to(logits.device)
        values = functional.binary_cross_entropy_with_logits(
            logits, wanted, pos_weight=placed, reduction="none"
        )
        if gamma:
            positive = logits.sigmoid()
            true = positive * wanted + (1 - positive) * (1 - wanted)
            values = (1 - true).pow(gamma) * values
        return values.mean(dim=1)

    return losses


def soft_cross_entropies(temperature: float) -> ImageLosses:
    """Return the divergence of a student's probabilities from a teacher's, both of logits (N, K).

    It is T² KL(teacher || student) at the temperature T, whose gradient is that of the
    cross-entropy. The factor keeps the size of gradients independent of the temperature
    (Hinton, Vinyals, Dean 2015, section 2).
    """
    from torch.nn import functional

    def losses(logits: Tensor, taught: Tensor) -> Tensor:
        values = functional.kl_div(
            (logits / temperature).log_softmax(dim=1),
            (taught / temperature).log_softmax(dim=1),
            reduction="none",
            log_target=True,
        )
        return temperature**2 * values.sum(dim=1)

    return losses


def soft_binary_cross_entropies(temperature: float) -> ImageLosses:
    """Return the same for outputs that hold or not, each on its own: the mean over outputs."""
    from torch.nn import functional

    def losses(logits: Tensor, taught: Tensor) -> Tensor:
        wanted = (taught / temperature).sigmoid()
        values = functional.binary_cross_entropy_with_logits(
            logits / temperature, wanted, reduction="none"
        ) - functional.binary_cross_entropy_with_logits(
            taught / temperature, wanted, reduction="none"
        )
        return temperature**2 * values.mean(dim=1)

    return losses
