"""A predictor with tiles: as without them for small images, and one prediction of all tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eagleray.core.errors import InputError
from eagleray.imaging import named_contract
from eagleray.imaging.geometry import frame_of
from eagleray.imaging.tiles import TiledImage, Tiling, decode_tiles, tile_windows
from eagleray.inference.predictor import Predictor
from eagleray.inference.tiled import predict_tiled
from eagleray.tasks import Detection, Semantic
from eagleray.tasks.detection.object_task import ObjectsPrediction
from eagleray.tasks.segmentation.class_maps import decode_mask
from eagleray.tasks.segmentation.semantic import MapPrediction
from eagleray.tasks.tiling import require_tiles
from tests.support.detectors import detector_package
from tests.support.images import encode, photo
from tests.support.models import small_package

TILING = Tiling(64, 0.25)


def test_small_images_are_predicted_as_without_tiles_and_large_ones_in_tiles(
    tmp_path: Path,
) -> None:
    package = detector_package(thresholds=(0.1,) * 3)
    predictor = Predictor(package, engine="eager", precision="float32", cache_folder=tmp_path)
    small, large = encode(photo(64, 60), "jpeg"), encode(photo(160, 100), "png")
    plain, without = predictor.predict([small, large])
    same, found, bad = predictor.predict([small, large, b"no image"], tiling=TILING)
    assert same.prediction is not None
    assert plain.prediction is not None
    np.testing.assert_allclose(
        package.task.outputs_of(same.prediction),
        package.task.outputs_of(plain.prediction),
        atol=1e-3,
    )
    assert not bad.ok
    assert (found.width, found.height) == (160, 100)
    assert isinstance(found.prediction, ObjectsPrediction)
    assert isinstance(without.prediction, ObjectsPrediction)
    image = decode_tiles(large, package.contract, TILING)
    assert isinstance(image, TiledImage)
    # An object that lies inside of the first tile, and in no other, is what this tile alone finds.
    pixels = image.read(image.windows[0])
    (row,) = predictor.forward(np.stack([pixels]))
    alone = package.task.postprocess(row, frame_of(package.contract, 64, 64))
    assert isinstance(alone, ObjectsPrediction)
    best = alone.objects[0]
    near = [abs(one.x - best.x) + abs(one.y - best.y) for one in found.prediction.objects]
    assert min(near) < 1e-2


class _Painter:
    """A network that gives each tile the class of the brightness of its pixels."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, pixels: np.ndarray, _: object) -> np.ndarray:
        self.batches.append(len(pixels))
        classes = pixels[..., 0] // 64
        return np.stack([classes == index for index in range(4)], axis=1).astype(np.float32)


def test_class_maps_of_tiles_make_that_of_the_image() -> None:
    contract = named_contract("letterbox", size=64)
    bands = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 150, axis=0).repeat(3, axis=2)
    image = TiledImage(bands, contract, tile_windows(200, 150, TILING))
    task = Semantic(labels=("background", "a", "b", "c"))
    network = _Painter()
    outcome = predict_tiled(image, task, network, batch_size=5)
    assert isinstance(outcome.prediction, MapPrediction)
    assert (decode_mask(outcome.prediction.mask) == bands[..., 0] // 64).all()
    assert network.batches == [5, 5, 2]
    np.testing.assert_allclose(outcome.prediction.shares, [0.32, 0.32, 0.32, 0.04], atol=1e-6)


def test_models_without_places_or_with_a_crop_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"^--tile is for .*, and this is a multiclass model; leave it out\.$"
    ):
        require_tiles(small_package().task, named_contract("letterbox"), where="--tile")
    with pytest.raises(InputError, match="cuts off the edges"):
        require_tiles(Detection(labels=("a",)), named_contract("fast"), where="--tile")
    predictor = Predictor(small_package(), engine="eager", precision="float32")
    with pytest.raises(InputError, match="tiling is for detection"):
        predictor.predict([b"x"], tiling=TILING)
