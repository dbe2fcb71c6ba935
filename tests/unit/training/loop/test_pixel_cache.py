"""The cache of decoded images, and the margin for random crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eagleray.core.errors import JobFailedError
from eagleray.data.labelled import read_labelled
from eagleray.imaging import decode, named_contract
from eagleray.training.loop.pixel_cache import centre, open_pixels, with_margin

CONTRACT = named_contract("whole-image", size=16)


def write_image(path: Path, seed: int, size: tuple[int, int] = (20, 24)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")


def test_decoded_pixels_follow_the_contract_and_faults_have_reasons(tmp_path: Path) -> None:
    for index in range(5):
        write_image(tmp_path / f"{'ab'[index % 2]}/{index}.png", index)
    (tmp_path / "a/bad.png").write_bytes(b"no image")
    images = read_labelled(str(tmp_path))
    decoded = open_pixels(images, CONTRACT, tmp_path / ".cache", run="one")
    assert decoded.good.tolist() == [0, 1, 2, 4, 5]
    assert [(uri, reason) for uri, reason, _ in decoded.bad] == [(images.uris[3], "not_an_image")]
    expected = np.stack(
        [decode(Path(images.uris[row]).read_bytes(), CONTRACT).pixels for row in decoded.good]
    )
    np.testing.assert_array_equal(decoded.read(decoded.good, (16, 16)), expected)
    np.testing.assert_array_equal(decoded.read_one(4), expected[3])


def test_a_second_run_reads_the_cache_until_an_image_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(4):
        write_image(tmp_path / f"a/{index}.png", index)
    cache, everything = tmp_path / ".cache", np.arange(4)
    first = open_pixels(read_labelled(str(tmp_path)), CONTRACT, cache, run="one")
    before = first.read(everything, (16, 16))

    def must_not_decode(*_: object) -> None:
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr("eagleray.training.loop.pixel_cache.decode", must_not_decode)
        again = open_pixels(read_labelled(str(tmp_path)), CONTRACT, cache, run="two")
    np.testing.assert_array_equal(again.read(everything, (16, 16)), before)
    write_image(tmp_path / "a/2.png", 99)
    changed = open_pixels(read_labelled(str(tmp_path)), CONTRACT, cache, run="three")
    assert not np.array_equal(changed.read(everything, (16, 16)), before)


def test_an_image_that_vanishes_between_epochs_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "a/1.png", 1)
    images = read_labelled(str(tmp_path))
    decoded = open_pixels(images, CONTRACT, tmp_path / ".cache", run="one", max_disk_fraction=0.0)
    assert decoded.read_one(0).shape == CONTRACT.shape
    (tmp_path / "a/1.png").unlink()
    with pytest.raises(JobFailedError, match=r"a/1\.png could be decoded when training began"):
        decoded.read_one(0)


@given(height=st.integers(20, 90), width=st.integers(20, 90), size=st.integers(8, 24))
def test_the_middle_of_the_margin_is_what_the_contract_crops(
    height: int, width: int, size: int
) -> None:
    contract = named_contract("torchvision-reference", size=size)
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
    encoded = _encoded(image)
    wide = decode(encoded, with_margin(contract)).pixels
    assert min(wide.shape[:2]) > size
    exact = decode(encoded, contract).pixels
    cut = centre(wide, contract.size)
    # The margin is even or odd by chance of the numbers, so the middle may lie half a pixel off.
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    assert any(_overlap_equal(cut, exact, shift) for shift in shifts)


def _encoded(image: Image.Image) -> bytes:
    import io

    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _overlap_equal(one: np.ndarray, other: np.ndarray, shift: tuple[int, int]) -> bool:
    height, width = one.shape[:2]
    down, right = shift
    first = one[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
    second = other[max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
    return np.array_equal(first, second)


def test_contracts_without_a_crop_have_no_margin() -> None:
    assert with_margin(CONTRACT) == CONTRACT
    usual = named_contract("torchvision-reference")
    assert with_margin(usual).size == (256, 256)
    assert with_margin(usual).digest != usual.digest
