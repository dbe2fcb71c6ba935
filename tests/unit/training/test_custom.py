"""Transforms and losses of a user's own: what they are given, and what they must return."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from eagleray.core.errors import InputError, UserError
from eagleray.core.settings import Settings
from eagleray.tasks import Multiclass
from eagleray.training.custom import image_losses, transform_image
from eagleray.training.loop.augment import StepAugmentation
from eagleray.training.plan import make_plan
from tests.support.numerics import SAME_LOSS
from tests.support.training import small_spec, train_in_process, write_stripes

OWN = "tests.support.own_code"
AUGMENT = f"{OWN}:augment"

pytestmark = pytest.mark.numerical


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLERAY_EXTENSIONS", OWN)


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes")


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 1), dtype=np.uint8)


def test_the_random_numbers_of_a_transform_come_from_its_seed_in_any_thread() -> None:
    images = [noise(seed) for seed in range(8)]
    wanted = [transform_image(AUGMENT, image, (0, place)) for place, image in enumerate(images)]
    assert all(image.shape == (32, 32, 1) for image in wanted)
    assert not any(np.array_equal(a, b) for a, b in zip(images, wanted, strict=True))
    other = [transform_image(AUGMENT, image, (1, place)) for place, image in enumerate(images)]
    assert not any(np.array_equal(a, b) for a, b in zip(other, wanted, strict=True))
    is_done = threading.Event()

    def draw() -> None:  # as dropout does in the thread that trains
        while not is_done.is_set():
            torch.manual_seed(0)
            torch.rand(10)

    with_draws = threading.Thread(target=draw)
    with_draws.start()
    try:
        for place in reversed(range(8)):
            again = transform_image(AUGMENT, images[place], (0, place))
            np.testing.assert_array_equal(again, wanted[place])
    finally:
        is_done.set()
        with_draws.join()


def test_the_transform_is_a_part_of_the_augmentation_of_a_step() -> None:
    spec = small_spec("data", transform=AUGMENT)
    step = StepAugmentation(spec, epoch=1, step=2, num_images=4)
    pixels = noise(0)
    first = step.apply(pixels, 3, (32, 32))[0]
    np.testing.assert_array_equal(first, step.apply(pixels, 3, (32, 32))[0])
    assert not np.array_equal(first, step.apply(pixels, 2, (32, 32))[0])
    assert not np.array_equal(first, pixels)


def test_training_with_own_code_repeats_and_differs_from_training_without(
    stripes: Path, tmp_path: Path
) -> None:
    own = {
        "architecture": f"{OWN}:TinyNet",
        "image_size": 32,
        "transform": AUGMENT,
        "loss": f"{OWN}:squared_error",
        "dropout": 0.2,
    }
    first, _ = train_in_process(small_spec(stripes, **own), tmp_path / "a")
    again, _ = train_in_process(small_spec(stripes, **own), tmp_path / "b")
    assert first.losses == pytest.approx(again.losses, rel=SAME_LOSS)
    plain, _ = train_in_process(small_spec(stripes, **{**own, "transform": None}), tmp_path / "c")
    assert plain.losses != pytest.approx(first.losses, rel=0.01)
    assert all(0 <= loss <= 2 for loss in first.losses)  # as a Brier score of two classes
    entropy, _ = train_in_process(small_spec(stripes, **{**own, "loss": "auto"}), tmp_path / "d")
    assert entropy.losses[0] > first.losses[0] + 0.1


def test_a_class_is_constructed_and_moved_to_the_device() -> None:
    spec = small_spec("data", loss=f"{OWN}:WeightedCrossEntropy")
    task = Multiclass(labels=("a", "b"))
    losses = image_losses(spec, task, [], torch.device("meta"))
    assert isinstance(losses, torch.nn.Module)
    assert losses.get_buffer("weight").device.type == "meta"
    losses = image_losses(spec, task, [], torch.device("cpu"))
    # log(2) for equal logits, three times that for the second class
    found = losses(torch.zeros(2, 2), torch.tensor([0, 1]))
    assert found.tolist() == pytest.approx([0.6931, 2.0794], abs=1e-4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"transform": f"{OWN}:shrink"}, r"shape (1, 31, 32); it must return torch.uint8 of the"),
        ({"transform": f"{OWN}:as_float"}, "returns torch.float32"),
        ({"transform": f"{OWN}:fails"}, "fails on a uint8 image tensor (KeyError: 'no torch.uint8"),
        ({"transform": f"{OWN}:NOT_CALLABLE"}, "is a value of type int, which cannot be called"),
        ({"transform": f"{OWN}:augmnet"}, "Nearest: augment"),
        ({"transform": "random:shuffle"}, "in the module 'random', which is not an extension"),
        ({"loss": f"{OWN}:mean_loss"}, "returns the shape () for two images"),
        ({"loss": f"{OWN}:detached"}, "has no gradient"),
        ({"loss": f"{OWN}:TinyNet"}, "missing 2 required positional arguments"),
        ({"loss": f"{OWN}:squared_error", "mixup": 0.2}, "one_hot"),
        ({"architecture": f"{OWN}:OtherArguments"}, "let its constructor take these arguments"),
    ],
    ids=str,
)
def test_mistakes_in_own_code_are_reported_before_any_work(
    stripes: Path, tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        make_plan(small_spec(stripes, **change), Settings(home=tmp_path))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"transform": "augment"}, "must be an import path"),
        ({"loss": f"{OWN}:squared_error", "label_smoothing": 0.1}, "label_smoothing is not for a"),
        ({"loss": f"{OWN}:squared_error", "class_weights": "balanced"}, "class_weights is not for"),
    ],
)
def test_options_that_do_not_go_with_own_code_are_refused(
    change: dict[str, object], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        small_spec("data", **change)
