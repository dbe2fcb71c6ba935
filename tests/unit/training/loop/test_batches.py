"""The samplers: which images the steps of an epoch have."""

from __future__ import annotations

from collections import Counter

import numpy as np

from eagleray.training.loop.batches import BatchSampler
from tests.support.training import small_spec

COMMON, RARE, MIDDLE = 70, 5, 25
LABELS = ["common"] * COMMON + ["rare"] * RARE + ["middle"] * MIDDLE


def sampler(labels: list[str] = LABELS, **changes: object) -> BatchSampler:
    spec = small_spec("d", batch_size=10, epochs=4, **changes)
    return BatchSampler(np.arange(len(labels)), spec, labels)


def epoch_rows(one: BatchSampler, epoch: int) -> list[int]:
    return [int(row) for step in range(one.steps_per_epoch) for row in one.rows(epoch, step)]


def test_a_shuffled_epoch_has_every_image_once() -> None:
    assert sorted(epoch_rows(sampler(), 0)) == list(range(100))


def test_a_balanced_epoch_has_as_many_images_of_each_class() -> None:
    one = sampler(sampler="balanced")
    assert one.steps_per_epoch == sampler().steps_per_epoch == 10
    for epoch in range(4):
        rows = epoch_rows(one, epoch)
        by_class = Counter(LABELS[row] for row in rows)
        assert sorted(by_class.values()) == [33, 33, 34]
        assert all(rows.count(row) >= 5 for row in range(COMMON, COMMON + RARE))  # rare ones, often


def test_over_the_epochs_the_images_of_a_class_are_used_equally_often() -> None:
    one = sampler(sampler="balanced")
    uses = Counter(row for epoch in range(4) for row in epoch_rows(one, epoch))
    for label in ("common", "rare", "middle"):
        counts = [uses[row] for row in range(100) if LABELS[row] == label]
        assert max(counts) - min(counts) <= 1
        assert min(counts) >= 1


def test_a_step_depends_on_nothing_but_the_seed_and_its_place() -> None:
    first, again = sampler(sampler="balanced"), sampler(sampler="balanced")
    epoch_rows(first, 0)
    assert first.rows(2, 7).tolist() == again.rows(2, 7).tolist()  # as after a resume
    other = sampler(sampler="balanced", seed=1)
    assert other.rows(2, 7).tolist() != again.rows(2, 7).tolist()


def test_images_that_were_skipped_are_not_sampled() -> None:
    rows = np.arange(2, 100)  # the first two cannot be decoded
    one = BatchSampler(rows, small_spec("d", batch_size=10, sampler="balanced"), LABELS)
    assert not {0, 1} & set(epoch_rows(one, 0))
