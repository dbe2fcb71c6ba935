"""Decoded pixels, augmentation, the specification and metrics, without Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from eagleray.datasets.labelled import read_labelled
from eagleray.evaluation.metrics import compute_metrics
from eagleray.imaging import decode, named_contract
from eagleray.models.tasks import Binary, Multiclass, Multilabel, Regression
from eagleray.training.augment import augment_batch
from eagleray.training.pixels import open_pixels
from eagleray.training.spec import TrainSpec


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")


# --- pixels -----------------------------------------------------------------------------------

CONTRACT = named_contract("whole-image", size=16)


def test_decoded_pixels_are_the_contracts_and_faults_have_reasons(tmp_path: Path) -> None:
    for index in range(5):
        write_image(tmp_path / f"{'ab'[index % 2]}/{index}.png", index)
    (tmp_path / "a/bad.png").write_bytes(b"no image")
    images = read_labelled(str(tmp_path))
    decoded = open_pixels(images, CONTRACT, tmp_path / ".cache", run="one")
    assert decoded.pixels.shape == (6, 16, 16, 3)
    assert decoded.good.tolist() == [0, 1, 2, 4, 5]
    assert [(uri, reason) for uri, reason, _ in decoded.bad] == [(images.uris[3], "not_an_image")]
    for row in decoded.good:
        expected = decode(Path(images.uris[row]).read_bytes(), CONTRACT).pixels
        np.testing.assert_array_equal(decoded.pixels[row], expected)


def test_a_second_run_reads_the_cache_until_an_image_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(4):
        write_image(tmp_path / f"a/{index}.png", index)
    first = open_pixels(read_labelled(str(tmp_path)), CONTRACT, tmp_path / ".cache", run="one")

    def must_not_decode(*_: object) -> None:
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr("eagleray.training.pixels.decode", must_not_decode)
        again = open_pixels(read_labelled(str(tmp_path)), CONTRACT, tmp_path / ".cache", run="two")
    np.testing.assert_array_equal(first.pixels, again.pixels)
    write_image(tmp_path / "a/2.png", 99)
    changed = open_pixels(read_labelled(str(tmp_path)), CONTRACT, tmp_path / ".cache", run="three")
    assert not np.array_equal(first.pixels, changed.pixels)


# --- augmentation -----------------------------------------------------------------------------


def test_no_augmentation_changes_nothing() -> None:
    images = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    assert augment_batch(images, shift=0.0, flip=False) is images


def test_a_shift_moves_each_image_by_at_most_its_share() -> None:
    torch.manual_seed(0)
    images = torch.zeros(200, 32, 32, 1, dtype=torch.uint8)
    images[:, 16, 16] = 255
    moved = augment_batch(images, shift=0.125, flip=False)
    assert moved.shape == images.shape
    places = moved.flatten(1).argmax(1)
    rows, columns = places // 32 - 16, places % 32 - 16
    assert set(rows.tolist()) == set(columns.tolist()) == set(range(-4, 5))


def test_a_flip_mirrors_about_half_of_the_images() -> None:
    torch.manual_seed(0)
    images = torch.zeros(400, 32, 32, 1, dtype=torch.uint8)
    images[:, :, :8] = 255
    flipped = augment_batch(images, shift=0.0, flip=True)
    on_the_right = (flipped[:, :, 20:].sum((1, 2, 3)) > flipped[:, :, :12].sum((1, 2, 3))).sum()
    assert 150 < int(on_the_right) < 250


# --- specification ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"learning_rate": -1.0}, "greater than 0"),
        ({"name": "a b"}, "pattern"),
        ({"batch_size": 1, "workers": 2}, "over all 2 workers together"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"validation_fraction": 0.0}, "best epoch is chosen by it"),
        ({"label_smoothing": 0.1, "task": "binary"}, "is for multiclass"),
        ({"task": "detection"}, "multiclass"),
        ({"epoch": 3}, "Extra inputs"),
    ],
)
def test_a_specification_that_cannot_be_names_its_field(
    change: dict[str, object], sentence: str
) -> None:
    fine: dict[str, object] = {"data": "d", "name": "n", "architecture": "lenet5"}
    with pytest.raises(ValidationError, match=sentence):
        TrainSpec.model_validate({**fine, **change})


# --- metrics ----------------------------------------------------------------------------------


def test_metrics_equal_hand_computed_values() -> None:
    multiclass = Multiclass(labels=("a", "b"))
    outputs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    values = compute_metrics(multiclass, outputs, torch.tensor([0, 1, 1, 0]))
    assert values["accuracy"] == pytest.approx(3 / 4)
    assert values["f1_macro"] == pytest.approx((4 / 5 + 2 / 3) / 2)

    binary = Binary(labels=("no", "yes"), threshold=0.3)
    outputs = torch.tensor([[0.6, 0.4], [0.8, 0.2]])
    values = compute_metrics(binary, outputs, torch.tensor([1.0, 1.0]))
    assert values == pytest.approx({"accuracy": 0.5, "f1": 2 / 3})

    multilabel = Multilabel(labels=("a", "b"), thresholds=(0.2, 0.8))
    outputs = torch.tensor([[0.3, 0.7], [0.1, 0.9]])
    values = compute_metrics(multilabel, outputs, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert values == pytest.approx({"accuracy": 0.5, "f1_macro": 0.5})

    regression = Regression(mean=10.0, std=2.0)
    outputs, targets = torch.tensor([[10.0], [14.0]]), torch.tensor([0.0, 1.0])
    values = compute_metrics(regression, outputs, targets)  # true values are 10 and 12
    assert values == pytest.approx({"r2": -1.0, "mean_absolute_error": 1.0})
