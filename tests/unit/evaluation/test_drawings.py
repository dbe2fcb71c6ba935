"""The worst mistakes of a model of pixels: what is drawn of the label and of the prediction."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from eagleray.data.labelled import LabelledImages
from eagleray.evaluation.drawings import draw_mistakes
from eagleray.evaluation.evaluate import Evaluation
from eagleray.evaluation.report import render_evaluation
from eagleray.imaging import FORMATS, Exact, ImageContract
from eagleray.tasks import Instance, Multiclass, Panoptic, Task
from eagleray.tasks.outcome import Outcome
from eagleray.tasks.segmentation.class_maps import decode_mask, encode_mask
from eagleray.tasks.segmentation.semantic import MapPrediction, Semantic
from tests.support.images import encode, photo
from tests.support.segmented import annotation_of

TASK = Semantic(labels=("background", "cell"))
CONTRACT = ImageContract(formats=FORMATS, resize=Exact(height=8, width=8))


def half(*, left: bool) -> Any:
    pixels = np.zeros((30, 40), bool)
    pixels[:, :20] = left
    pixels[:, 20:] = not left
    return pixels


def evaluation_of(folder: Path, predicted: MapPrediction) -> Evaluation:
    """Return the evaluation of two images, of which only the second is predicted rightly."""
    texts = [annotation_of({"cell": half(left=left)}).to_text() for left in (True, False)]
    uris = []
    for number in range(2):
        path = folder / f"{number}.png"
        path.write_bytes(encode(photo(40, 30), "png"))
        uris.append(str(path))
    images = LabelledImages(tuple(uris), tuple(texts), ("", ""))
    outputs = np.stack([TASK.observe(predicted, text) for text in texts])
    targets = torch.tensor([TASK.encode(text) for text in texts])
    return Evaluation(TASK, images, np.arange(2), torch.from_numpy(outputs), targets, ())


def test_label_and_prediction_of_a_wrong_image_are_drawn(tmp_path: Path) -> None:
    mask = encode_mask(half(left=False).astype(np.uint8))
    predicted = MapPrediction(mask=mask, shares=np.asarray([0.5, 0.5], np.float32))
    evaluation = evaluation_of(tmp_path, predicted)
    predictor = SimpleNamespace(
        task=TASK,
        package=SimpleNamespace(attributes=(), contract=CONTRACT),
        predict=lambda images, tiling: [Outcome(predicted, width=40, height=30) for _ in images],
    )
    drawn = draw_mistakes(cast("Any", predictor), evaluation)
    assert list(drawn) == [0]
    assert (decode_mask(drawn[0].true.mask) == half(left=True)).all()
    assert drawn[0].predicted.mask == mask
    page = render_evaluation(
        evaluation, {"data": "cells"}, model_name="cells/1", intervals={}, drawn=drawn
    ).decode()
    assert page.count("data:image/jpeg") == 2
    assert "The labelled pixels, and the predicted ones below." in page


@pytest.mark.parametrize(
    "task",
    [
        Instance(labels=("background", "cell")),
        Panoptic(labels=("background", "cell"), things=("cell",)),
    ],
)
def test_true_objects_are_drawn_each_in_a_colour(task: Task) -> None:
    left, right = half(left=True), half(left=False)
    left[:, 10:] = right[:10] = False
    drawing = task.true_drawing(annotation_of([("cell", left), ("cell", right)]).to_text())
    assert drawing is not None
    numbers = decode_mask(drawing.mask)
    assert np.unique(numbers).tolist() == [0, 1, 2]
    assert ((numbers == 1) == left).all()
    assert ((numbers == 2) == right).all()


def test_nothing_is_predicted_again_for_a_task_without_masks() -> None:
    evaluation = SimpleNamespace(
        outputs=torch.tensor([[0.9, 0.1]]),
        targets=torch.tensor([1]),
        rows=np.arange(1),
        images=SimpleNamespace(labels=("b",)),
    )
    predictor = SimpleNamespace(
        task=Multiclass(labels=("a", "b")), package=SimpleNamespace(attributes=())
    )
    assert draw_mistakes(cast("Any", predictor), cast("Any", evaluation)) == {}
