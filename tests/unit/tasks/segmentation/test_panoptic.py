"""Panoptic segmentation: things and stuff, segments, panoptic quality and results."""

from __future__ import annotations

import base64
import json

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from eagleray.core.errors import InputError
from eagleray.imaging import named_contract
from eagleray.imaging.geometry import Frame, frame_of
from eagleray.tasks import Panoptic, StoredTask, make_task
from eagleray.tasks.limits import exceeded_limits, require_limits
from eagleray.tasks.segmentation.class_maps import decode_numbers
from eagleray.tasks.segmentation.object_maps import ObjectMaps
from eagleray.tasks.segmentation.panoptic import PanopticPrediction
from eagleray.tasks.segmentation.segments import find_segments
from tests.support.segmented import annotation_of, disk, outputs_of_objects

pytestmark = pytest.mark.numerical

SIZE = (64, 64)
TASK = Panoptic(labels=("background", "cell", "sky"), things=("cell",), max_objects=20)
CONTRACT = named_contract("letterbox", size=64)
FRAME = Frame(64, 64)
SKY = np.zeros(SIZE, bool)
SKY[:16] = True
CELLS = [disk(SIZE, 14, 40, 9), disk(SIZE, 34, 40, 9), disk(SIZE, 54, 40, 7)]
ANNOTATION = annotation_of([("sky", SKY), *(("cell", cell) for cell in CELLS)])
TEXT = ANNOTATION.to_text()


def maps(text: str = TEXT) -> torch.Tensor:
    return ObjectMaps([text], TASK.labels, TASK.things, CONTRACT)[0]


def predict(outputs: npt.NDArray[np.float32]) -> PanopticPrediction:
    prediction = TASK.postprocess(outputs, FRAME)
    assert isinstance(prediction, PanopticPrediction)
    return prediction


def perfect() -> PanopticPrediction:
    return predict(outputs_of_objects(maps(), 3))


def measured(prediction: PanopticPrediction, text: str = TEXT) -> dict[str, float]:
    observed = torch.from_numpy(TASK.observe(prediction, text))[None]
    targets = TASK.stack_targets([TASK.encode(text)])
    metrics = TASK.measure(observed, targets)
    assert tuple(metrics) == TASK.measured_names(targets)
    weighted = TASK.weighted_metrics(observed, targets)(np.ones((1, 1)))
    for name in TASK.headline_names:
        assert weighted[name][0] == pytest.approx(metrics[name])
    return metrics


def test_things_are_the_labels_with_several_objects_in_an_image() -> None:
    crowds = annotation_of([("sky", SKY)], crowds={"sky": SKY})
    task = make_task("panoptic", [TEXT, crowds.to_text()])
    assert isinstance(task, Panoptic)
    assert task.labels == ("background", "cell", "sky")
    assert task.things == ("cell",)
    assert TypeAdapter(StoredTask).validate_json(task.model_dump_json()) == task
    with pytest.raises(InputError, match="nothing to tell apart; train a semantic model"):
        make_task("panoptic", [crowds.to_text()])
    with pytest.raises(ValidationError, match="things must be labels other than the first"):
        Panoptic(labels=("background", "cell"), things=("background",))


def test_stuff_has_no_numbers() -> None:
    classes, numbers = maps()
    assert classes[3, 3] == 2
    assert numbers[3, 3] == 0
    assert sorted(np.unique(numbers.numpy()).tolist()) == [0, 2, 3, 4]


def test_perfect_outputs_give_the_true_segments() -> None:
    prediction = perfect()
    assert [one.label for one in prediction.segments] == ["cell", "cell", "cell", "sky"]
    assert [one.id for one in prediction.segments] == [1, 2, 3, 4]
    ids = decode_numbers(prediction.segment_map)
    assert ids.shape == SIZE
    for one in prediction.segments:
        assert one.area == (ids == one.id).sum()
        rows, columns = np.nonzero(ids == one.id)
        assert [one.x, one.y] == [int(columns.min()), int(rows.min())]
        assert [one.width, one.height] == [int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
        assert one.score == pytest.approx(1, abs=0.02)
    np.testing.assert_array_equal(ids > 0, SKY | np.any(CELLS, axis=0))
    assert prediction.shares.sum() == pytest.approx(1)
    assert prediction.shares[2] == pytest.approx(0.25)
    metrics = measured(prediction)
    names = ("pq", "sq", "rq", "pq_things", "pq_stuff", "mean_iou", "pq[cell]", "iou[sky]")
    assert [metrics[name] for name in names] == pytest.approx([1] * len(names))
    assert "pq[background]" not in metrics
    assert "iou[background]" in metrics


def test_quality_by_hand() -> None:
    # The first cell is missed, the second one lacks its right half and more, the sky its half.
    drawn = maps().clone()
    drawn[:, drawn[1] == 2] = 0
    drawn[:, :, 34:][(drawn[1:, :, 34:] == 3).expand(2, -1, -1)] = 0
    drawn[0, 8:16] = 0
    metrics = measured(predict(outputs_of_objects(drawn, 3)))
    # Of cells one is right, one has an IoU below a half, and one is missed: F1 = 1 / (1 + 3 / 2).
    assert metrics["rq[cell]"] == pytest.approx(1 / 2.5)
    assert metrics["sq[cell]"] == pytest.approx(1)
    # Half of the sky is no match: it is both missed and invented.
    assert metrics["pq_stuff"] == 0
    assert metrics["pq"] == pytest.approx(0.4 / 2)
    assert metrics["iou[sky]"] == pytest.approx(0.5)


def test_crowds_are_neither_right_nor_wrong() -> None:
    crowded = annotation_of(
        [("sky", SKY), *(("cell", cell) for cell in CELLS[:2])], crowds={"cell": CELLS[2]}
    )
    assert measured(perfect(), crowded.to_text())["pq"] == pytest.approx(1)


def test_a_label_that_no_image_has_is_in_no_name() -> None:
    without = annotation_of([("cell", cell) for cell in CELLS]).to_text()
    metrics = measured(perfect(), without)
    assert "pq[sky]" not in metrics
    assert "pq_stuff" not in metrics
    assert metrics["pq"] == pytest.approx(0.5)  # the sky is predicted where it is not


def test_a_batch_in_training_is_measured_as_images_are() -> None:
    outputs = outputs_of_objects(maps(), 3)
    observed, targets = TASK.observe_batch(torch.from_numpy(outputs)[None], maps()[None])
    assert TASK.encode(TEXT) == targets[0].tolist()
    np.testing.assert_array_equal(observed[0].numpy(), TASK.observe(predict(outputs), TEXT))
    assert TASK.training_metrics(TASK.decide(observed), targets)["pq"] == pytest.approx(1)
    outputs[4, 0, 0] = np.nan
    observed, _ = TASK.observe_batch(torch.from_numpy(outputs)[None], maps()[None])
    assert observed.isnan().all()
    assert np.isnan(TASK.observe(predict(outputs), TEXT)).all()


def test_an_empty_image_has_no_segments() -> None:
    outputs = np.zeros((6, 64, 64), np.float32)
    outputs[0] = 1
    prediction = predict(outputs)
    assert prediction.segments == ()
    assert prediction.labels == ("background",)
    assert measured(prediction)["pq"] == 0


def test_pixels_of_a_thing_without_an_object_are_background() -> None:
    classes = np.array([[1, 1, 2, 0]], np.uint8)
    found = find_segments(
        classes, np.array([[1, 0, 0, 0]]), np.array([1]), np.array([False, True, False])
    )
    assert found.ids.tolist() == [[1, 0, 2, 0]]
    assert found.labels.tolist() == [0, 1, 2]
    assert found.numbers.tolist() == [0, 1, 0]


def test_more_than_255_segments_have_a_map_of_16_bits() -> None:
    task = TASK.model_copy(update={"max_objects": 400})
    maps = torch.zeros(2, 160, 160, dtype=torch.int32)
    for place in range(289):
        y, x = 9 * (place // 17) + 2, 9 * (place % 17) + 2
        maps[0, y : y + 5, x : x + 5] = 1
        maps[1, y : y + 5, x : x + 5] = place + 1
    prediction = task.postprocess(outputs_of_objects(maps, 3), Frame(160, 160))
    assert isinstance(prediction, PanopticPrediction)
    ids = decode_numbers(prediction.segment_map)
    assert ids.dtype == np.uint16
    assert len(np.unique(ids)) == 290


def test_results_list_segments_and_count_things() -> None:
    prediction = perfect()
    row = TASK.result_row(prediction, 5)
    assert set(row) == {field.name for field in TASK.result_fields()}
    assert row["count_cell"] == 3
    assert "count_sky" not in row
    assert row["share_sky"] == pytest.approx(0.25)
    assert row["segments"][3]["label"] == "sky"
    members = TASK.response(prediction, top_k=5, threshold=None)
    assert base64.b64decode(members["segment_map"]) == prediction.segment_map
    assert members["counts"] == {"cell": 3}
    tensors = {one.name: one for one in TASK.tensors([prediction, None])}
    assert [one.name for one in TASK.tensor_specs()] == list(tensors)
    segments = tensors["segments"].elements
    assert json.loads(bytes(segments[0])) == members["segments"]
    assert segments[1] == b"[]"
    limits = require_limits(["cell>2", "cell<1"], TASK, where="limit")
    assert exceeded_limits(limits, TASK, prediction) == ["cell>2"]
    drawing = TASK.drawing(prediction, None)
    assert drawing is not None
    assert [box.label for box in drawing.boxes] == ["cell"] * 3
    assert drawing.mask == prediction.segment_map
    assert TASK.same_answer(prediction, perfect())
    assert str(TASK.describe(prediction)).endswith("25.0 % sky, 16.0 % cell")


def test_the_page_lists_labels_and_the_worst_images() -> None:
    observed = np.stack([TASK.observe(perfect(), TEXT)] * 2)
    observed[1, :4, 1] = 0.9, 1, 2, 2
    outputs = torch.from_numpy(observed)
    targets = TASK.stack_targets([TASK.encode(TEXT)] * 2)
    (table,) = TASK.section(outputs, targets, TASK.measure(outputs, targets)).tables
    assert [row[:3] for row in table.rows] == [("cell", "thing", 6), ("sky", "stuff", 2)]
    (worst,) = TASK.worst_mistakes(outputs, targets, 5)
    assert worst.position == 1
    assert (worst.given, worst.predicted) == ("3 cell, 1 sky", "3 cell, 1 sky")
    assert worst.error == pytest.approx(1 - 1.9 / (2 + 2), abs=1e-6)


def test_the_contract_of_a_photo_maps_segments_to_its_pixels() -> None:
    frame = frame_of(CONTRACT, 640, 640)
    prediction = TASK.postprocess(outputs_of_objects(maps(), 3), frame)
    assert isinstance(prediction, PanopticPrediction)
    (sky,) = (one for one in prediction.segments if one.label == "sky")
    assert (sky.x, sky.y, sky.width) == (0, 0, 640)
    assert sky.height == pytest.approx(160, abs=10)
