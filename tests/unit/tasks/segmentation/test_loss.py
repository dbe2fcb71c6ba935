"""The loss of semantic segmentation, against values by hand."""

from __future__ import annotations

import math

import pytest
import torch

from eagleray.tasks.segmentation.class_maps import IGNORED
from eagleray.tasks.segmentation.loss import cross_entropy_dice_losses, pixel_cross_entropies

pytestmark = pytest.mark.numerical


def test_an_image_by_hand() -> None:
    # Two pixels with P(1) = 0.8 and 0.25, whose classes are 1 and 0; a third one is ignored.
    p = torch.tensor([0.8, 0.25, 0.5])
    logits = torch.stack([(1 - p).log(), p.log()]).view(1, 2, 1, 3)
    targets = torch.tensor([1, 0, IGNORED], dtype=torch.uint8).view(1, 1, 3)
    cross_entropy = -(math.log(0.8) + math.log(0.75)) / 2
    assert pixel_cross_entropies(logits, targets).tolist() == pytest.approx([cross_entropy])
    dice = [(2 * 0.75 + 1) / (1 + 0.95 + 1), (2 * 0.8 + 1) / (1 + 1.05 + 1)]
    expected = cross_entropy + (2 - sum(dice)) / 2
    assert cross_entropy_dice_losses(logits, targets).tolist() == pytest.approx([expected])


def test_labels_that_an_image_lacks_have_no_dice() -> None:
    logits = torch.zeros(1, 3, 2, 2)
    targets = torch.zeros(1, 2, 2, dtype=torch.uint8)
    dice = (2 * 4 / 3 + 1) / (4 + 4 / 3 + 1)
    expected = math.log(3) + 1 - dice
    assert cross_entropy_dice_losses(logits, targets).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("losses_of", [cross_entropy_dice_losses, pixel_cross_entropies])
def test_each_image_has_a_loss_of_its_own(losses_of: object) -> None:
    assert callable(losses_of)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 8, 8, generator=generator)
    targets = torch.randint(0, 3, (4, 8, 8), dtype=torch.uint8, generator=generator)
    targets[1, :3] = IGNORED
    targets[3] = IGNORED
    together = losses_of(logits, targets)
    alone = [losses_of(logits[at : at + 1], targets[at : at + 1]).item() for at in range(4)]
    assert together.tolist() == pytest.approx(alone)
    assert together[3] == 0
    changed = logits.clone()
    changed[:, :, :3] += torch.randn(3, 1, 1, generator=generator)
    assert losses_of(changed, targets)[1] == pytest.approx(float(together[1]))  # ignored pixels


def test_right_predictions_have_no_loss() -> None:
    targets = torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    logits = torch.nn.functional.one_hot(targets.long(), 3).permute(0, 3, 1, 2) * 50.0
    assert cross_entropy_dice_losses(logits, targets).tolist() == pytest.approx([0, 0], abs=1e-5)
