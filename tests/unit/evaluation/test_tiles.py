"""An evaluation in tiles measures what a batch job in the same tiles predicts."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from eagleray.core.errors import InputError
from eagleray.data.labelled import LabelledImages
from eagleray.evaluation.evaluate import evaluate
from eagleray.evaluation.job import open_evaluation, run_evaluation
from eagleray.evaluation.predictions import ImagePredictions
from eagleray.evaluation.spec import EvaluateSpec
from eagleray.imaging import named_contract
from eagleray.imaging.tiles import Tiling
from eagleray.inference.predictor import Predictor
from eagleray.models.package import ModelPackage
from eagleray.registry.references import LoadedModel
from eagleray.tasks import Semantic
from tests.support.detectors import detector_package
from tests.support.images import encode, photo
from tests.support.models import settings_in, small_package
from tests.support.quantized import SilentReporter

pytestmark = pytest.mark.numerical

TILES = Tiling(64, 0.2)
TRUTH = (
    '{"height":100,"objects":[{"height":20.0,"label":"cell","width":20.0,"x":9.0,"y":8.0}],'
    '"width":160}'
)


def test_an_evaluation_in_tiles_measures_the_predictions_in_tiles(tmp_path: Path) -> None:
    predictor = Predictor(detector_package(), engine="eager", precision="float32", batch_size=4)
    large, small, broken = (tmp_path / name for name in ("large.png", "small.png", "broken.png"))
    large.write_bytes(encode(photo(160, 100), "png"))
    small.write_bytes(encode(photo(60, 50), "png"))
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    uris = tuple(str(path) for path in (large, broken, small))
    texts = (TRUTH, TRUTH, TRUTH.replace("100", "50").replace("160", "60"))
    images = LabelledImages(uris, texts, ("", "", ""))
    counts: list[tuple[int, int]] = []
    tiled = evaluate(
        predictor,
        images,
        tiling=TILES,
        progress=lambda count, failed: counts.append((count, failed)),
    )
    whole = evaluate(predictor, images)
    assert tiled.rows.tolist() == [0, 2]
    assert [failure.row for failure in tiled.failures] == [1]
    assert counts == [(1, 0), (1, 1), (1, 0)]
    for position, row in enumerate((0, 2)):
        (outcome,) = predictor.predict([Path(uris[row])], tiling=TILES)
        assert outcome.prediction is not None
        observed = predictor.task.observe(outcome.prediction, texts[row])
        rows = tiled.outputs[position].numpy()
        np.testing.assert_array_equal(rows[: len(observed)], observed)
        assert not rows[len(observed) :].any()
    found, of_whole = tiled.outputs[:, :, 4], whole.outputs[:, :, 4]
    assert found[0].count_nonzero() > of_whole[0].count_nonzero()
    # What one tile covers is predicted as without tiles.
    torch.testing.assert_close(found[1, : of_whole.shape[1]], of_whole[1])
    again = ImagePredictions.from_parquet(
        ImagePredictions.of(tiled).to_parquet() or b"", predictor.task
    )
    torch.testing.assert_close(again.outputs, tiled.outputs)


def test_another_model_is_evaluated_in_the_same_tiles() -> None:
    spec = EvaluateSpec(data="/x", model="m", tile="640", tile_whole=True)
    assert spec.arguments == ("/x", "--tile", "640", "--tile-whole")
    assert spec.tiling_text == "640, overlap 0.2, and the whole image"


def test_a_classifier_cannot_be_evaluated_in_tiles() -> None:
    spec = EvaluateSpec(data="/x", model="m", tile="auto")
    said = (
        "tile is for detection and semantic models, and this is a multiclass model; leave it out."
    )
    with pytest.raises(InputError, match=re.escape(said)):
        spec.tiling(small_package())


def test_the_whole_image_is_for_objects() -> None:
    task = Semantic(labels=("background", "cell"))
    package = SimpleNamespace(task=task, contract=named_contract("letterbox", size=64))
    spec = EvaluateSpec(data="/x", model="m", tile="96", tile_whole=True)
    said = "tile_whole is for objects larger than a tile, and this is a semantic model; leave it"
    with pytest.raises(InputError, match=said):
        spec.tiling(cast("ModelPackage", package))
    assert spec.model_copy(update={"tile_whole": False}).tiling(
        cast("ModelPackage", package)
    ) == Tiling(96, 0.2)


def test_evaluations_with_and_without_tiles_are_not_compared(tmp_path: Path) -> None:
    image = tmp_path / "large.png"
    image.write_bytes(encode(photo(160, 100), "png"))
    with (tmp_path / "cells.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), (str(image), TRUTH)])
    settings = settings_in(tmp_path)
    model = LoadedModel("found", detector_package())
    records = []
    for tile in (None, "64", "96"):
        spec = EvaluateSpec(data=str(tmp_path / "cells.csv"), model="found", tile=tile)
        opened = open_evaluation(spec, settings, lambda _: model)
        record = run_evaluation(opened, SilentReporter()).record
        records.append(record)
        assert Path(opened.output).is_file()
    assert [record.tiles for record in records] == ["", "64, overlap 0.2", "96, overlap 0.2"]
    assert len({record.data_digest for record in records}) == 3
    assert len(list(settings.evaluations_folder.iterdir())) == 3
