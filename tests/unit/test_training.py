"""Training tables, splits, decoded pixels, augmentation and the specification, without Ray."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from eagleray.datasets.labelled import LabelledImages, read_labelled, require_enough
from eagleray.datasets.split import split_images
from eagleray.errors import InputError, UserError
from eagleray.imaging import decode, named_contract
from eagleray.training.augment import augment_batch
from eagleray.training.pixels import open_pixels
from eagleray.training.spec import TrainSpec


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")


def labelled(**counts: int) -> LabelledImages:
    texts = tuple(label for label, count in counts.items() for _ in range(count))
    uris = tuple(f"/images/{index}.png" for index in range(len(texts)))
    return LabelledImages(uris, texts, ("1",) * len(texts))


# --- tables -----------------------------------------------------------------------------------


def test_a_tree_labels_images_by_their_folder(tmp_path: Path) -> None:
    for index, name in enumerate(["cat/1.png", "cat/deep/2.png", "dog/3.png", "dog/.hidden.png"]):
        write_image(tmp_path / name, index)
    images = read_labelled(str(tmp_path))
    assert images.texts == ("cat", "cat", "dog")
    assert images.uris[1] == str(tmp_path / "cat/deep/2.png")


def test_a_csv_labels_images_by_a_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,class,other\na.png,007,x\n/b.png,8,y\n")
    images = read_labelled(str(tmp_path / "t.csv"))
    assert images.texts == ("007", "8")
    assert images.uris == (f"{tmp_path}/a.png", "/b.png")


def test_the_digest_changes_with_content_and_with_labels(tmp_path: Path) -> None:
    write_image(tmp_path / "cat/1.png", 1)
    write_image(tmp_path / "dog/2.png", 2)
    before = read_labelled(str(tmp_path))
    assert read_labelled(str(tmp_path)).digest == before.digest
    write_image(tmp_path / "cat/1.png", 3)
    assert read_labelled(str(tmp_path)).digest != before.digest
    relabelled = LabelledImages(before.uris, ("dog", "dog"), before.versions)
    assert relabelled.digest != before.digest


@pytest.mark.parametrize(
    ("files", "location", "options", "sentence"),
    [
        ({}, "nowhere", {}, "There is no folder or CSV"),
        ({"empty/.keep": ""}, "empty", {}, "holds no images in class folders"),
        ({"tree/loose.png": ""}, "tree", {}, "'loose.png' beside its class folders"),
        ({"t.csv": "path,kind\na,b\n"}, "t.csv", {}, "has no column named label"),
        ({"t.csv": "path,label\na,b\n"}, "t.csv", {"label_column": "lable"}, "Nearest: label"),
        ({"t.csv": "x,label\na,b\n"}, "t.csv", {}, "has no column named uri or path"),
    ],
)
def test_tables_that_cannot_be_are_one_sentence(
    tmp_path: Path,
    files: dict[str, str],
    location: str,
    options: dict[str, str],
    sentence: str,
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        read_labelled(str(tmp_path / location), **options)
    assert sentence in str(caught.value)


def test_a_class_with_too_few_images_is_named() -> None:
    with pytest.raises(InputError, match="Class 'rare' of data has 2 images; at least 3"):
        require_enough(labelled(common=10, rare=2), "multiclass", "data")
    require_enough(labelled(common=10, fine=3), "multiclass", "data")
    require_enough(labelled(a=2, b=1), "regression", "data")


# --- split ------------------------------------------------------------------------------------


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(3, 60), min_size=2),
    st.integers(0, 2**31),
)
def test_a_split_uses_every_row_once_and_every_class_everywhere(
    counts: dict[str, int], seed: int
) -> None:
    images = labelled(**counts)
    split = split_images(
        images, stratify=True, validation_fraction=0.1, test_fraction=0.2, seed=seed
    )
    parts = (split.train, split.validation, split.test)
    assert sorted(uri for part in parts for uri in part.uris) == sorted(images.uris)
    for part in parts:
        assert set(part.texts) == set(counts)
    for label, count in counts.items():
        assert abs(Counter(split.test.texts)[label] - 0.2 * count) <= 1


def test_a_split_depends_on_the_seed_alone() -> None:
    images = labelled(a=30, b=30)

    def test_part(seed: int) -> tuple[str, ...]:
        return split_images(
            images, stratify=True, validation_fraction=0.1, test_fraction=0.2, seed=seed
        ).test.uris

    assert test_part(1) == test_part(1)
    assert test_part(1) != test_part(2)


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
