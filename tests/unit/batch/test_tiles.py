"""A shard in tiles: the rows of its images, one of which is in memory at a time."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from eagleray.batch.context import JobContext
from eagleray.batch.pipeline import WorkerPool
from eagleray.batch.shard_decoder import ShardDecoder
from eagleray.batch.shard_predictor import ShardPredictor
from eagleray.batch.shard_summary import decode_shard
from eagleray.batch.spec import PredictSpec
from eagleray.cli.console import Console
from eagleray.core.errors import InputError
from eagleray.imaging.tiles import TiledImage, Tiling
from eagleray.inference.predictor import Predictor
from eagleray.inference.prefetcher import DecodedItem
from eagleray.io.storage import read_bytes
from eagleray.models.package import ModelPackage, write_package
from eagleray.sharded.layout import OutputLayout
from tests.support.detectors import detector_package
from tests.support.images import encode, photo
from tests.support.job_folder import open_predict
from tests.support.models import settings_in, small_package

SIZES = [(160, 100), (60, 50), (200, 64), (64, 64), (130, 130)]


def request_for(folder: Path, package: ModelPackage, **fields: object) -> PredictSpec:
    images = folder / "in"
    images.mkdir()
    for number, (width, height) in enumerate(SIZES):
        (images / f"{number}.png").write_bytes(encode(photo(width, height), "png"))
    (images / "5.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    write_package(package, str(folder / "model"))
    return PredictSpec.model_validate(
        {
            "inputs": (str(images),),
            "model": str(folder / "model"),
            "output": str(folder / "out"),
            "precision": "float32",
            "engine": "eager",
            "device": "cpu",
            **fields,
        }
    )


def one_at_a_time(items: Iterator[DecodedItem]) -> Iterator[DecodedItem]:
    """Pass items on, and check that the pixels of the one before are gone by then."""
    before: weakref.ref[object] | None = None
    while True:
        assert before is None or before() is None
        item = next(items, None)
        if item is None:
            return
        before = weakref.ref(item.image.pixels) if isinstance(item.image, TiledImage) else None
        holder = [item]
        del item
        yield holder.pop()


@pytest.mark.parametrize("sandboxed", [False, True])
def test_a_shard_is_predicted_in_tiles(tmp_path: Path, sandboxed: bool) -> None:
    package = detector_package(thresholds=(0.1,) * 3)
    job = open_predict(
        request_for(tmp_path, package, tile="auto", tile_overlap=0.25),
        settings_in(tmp_path),
        Console(json_output=True),
    )
    context: JobContext = job.context(WorkerPool(1, 1, 1, 0, 1, 1, uses_gpu=False))
    assert context.options.tiling == Tiling(64, 0.25)
    shard = context.manifest.shard(0)
    decoded = ShardDecoder(context).decode(shard, sandboxed=sandboxed)
    ShardPredictor(context).predict(0, shard, one_at_a_time(decoded), 0.0)
    table, _ = decode_shard(read_bytes(OutputLayout(job.layout.location).shard(0)))
    rows = sorted(table.to_pylist(), key=lambda row: row["uri"])
    predictor = Predictor(package, engine="eager", precision="float32", cache_folder=tmp_path)
    contents = [Path(row["uri"]).read_bytes() for row in rows]
    expected = predictor.predict(contents, tiling=Tiling(64, 0.25))
    assert [row["status"] for row in rows] == ["ok"] * 5 + ["failed"]
    for row, outcome, size in zip(rows, expected, SIZES, strict=False):
        assert (row["width"], row["height"]) == size
        assert outcome.prediction is not None
        assert row["count"] == sum(package.task.counts(outcome.prediction).values())
        first, wanted = row["objects"][0], package.task.result_row(outcome.prediction, 5)
        assert first["label"] == wanted["objects"][0]["label"]
        assert first["x"] == pytest.approx(wanted["objects"][0]["x"], abs=0.01)


def test_a_classifier_has_no_tiles(tmp_path: Path) -> None:
    request = request_for(tmp_path, small_package(), tile="auto")
    with pytest.raises(
        InputError,
        match=r"tile is for .*, and this is a multiclass model;",
    ):
        open_predict(request, settings_in(tmp_path), Console(json_output=True))
