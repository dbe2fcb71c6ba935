"""Instance segmentation: targets, grouping, masks, metrics and results."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from eagleray.core.errors import InputError
from eagleray.imaging import named_contract
from eagleray.imaging.geometry import Frame, Placement, frame_of
from eagleray.tasks import Instance, make_task
from eagleray.tasks.annotation import Annotation, TrueObject
from eagleray.tasks.detection.object_task import ObjectsPrediction
from eagleray.tasks.segmentation.center_loss import center_losses, draw_centers
from eagleray.tasks.segmentation.class_maps import IGNORED
from eagleray.tasks.segmentation.grouping import group_pixels
from eagleray.tasks.segmentation.loss import pixel_cross_entropies
from eagleray.tasks.segmentation.object_maps import ObjectMaps
from eagleray.tasks.segmentation.object_masks import encode_masks, numbers_of
from tests.support.segmented import annotation_of, disk, outputs_of_objects

pytestmark = pytest.mark.numerical

TASK = Instance(labels=("cat", "dog"), max_objects=20)
SIZE = (60, 90)
CONTRACT = named_contract("letterbox", size=96)
MASKS = [
    ("cat", disk(SIZE, 20, 30, 10)),
    ("cat", disk(SIZE, 42, 30, 10)),
    ("dog", disk(SIZE, 70, 20, 9)),
]
CROWD = disk(SIZE, 75, 50, 6)
ANNOTATION = annotation_of(MASKS, crowds={"cat": CROWD})
TEXT = ANNOTATION.to_text()
WHOLE = (0, 0, 96, 96)


def maps() -> torch.Tensor:
    return ObjectMaps([TEXT], TASK.pixel_labels, TASK.labels, CONTRACT)[0]


def outputs() -> npt.NDArray[np.float32]:
    """Return perfect outputs for the annotated image."""
    return outputs_of_objects(maps(), 3)


def predict(activated: npt.NDArray[np.float32]) -> ObjectsPrediction:
    prediction = TASK.postprocess(activated, frame_of(CONTRACT, SIZE[1], SIZE[0]))
    assert isinstance(prediction, ObjectsPrediction)
    return prediction


# --- targets ------------------------------------------------------------------------------------


def test_labels_are_those_of_objects_and_the_network_has_a_background() -> None:
    task = make_task("instance", [TEXT])
    assert task.labels == ("cat", "dog")
    assert task.num_outputs == 3
    assert task.network_outputs["labels"] == (3, None, None)
    hidden = annotation_of([("background", MASKS[0][1])]).to_text()
    fault = r"2 images, first /b\.png, have objects with the label 'background', which an instance"
    with pytest.raises(InputError, match=fault):
        make_task("instance", [TEXT, hidden, hidden], ["/a.png", "/b.png", "/c.png"])
    with pytest.raises(InputError, match=r"1 image has objects with the label 'background'"):
        make_task("instance", [hidden])


def test_an_object_without_a_mask_is_refused() -> None:
    boxed = TrueObject(label="cat", x=1, y=2, width=3, height=4)
    text = Annotation(width=9, height=9, objects=(boxed,)).to_text()
    with pytest.raises(InputError, match="has a box and no mask; segmentation learns from masks"):
        TASK.encode(text)


def test_maps_of_the_input_have_labels_and_numbers() -> None:
    classes, numbers = maps()
    assert classes[0, 0] == classes[95, 95] == IGNORED  # above and below
    assert classes[48, 2] == numbers[48, 2] == 0
    place = frame_of(CONTRACT, 90, 60).to_input(42.5, 30.5)
    x, y = (int(value) for value in place)
    assert (classes[y, x], numbers[y, x]) == (1, 2)
    x, y = (int(value) for value in frame_of(CONTRACT, 90, 60).to_input(75.5, 50.5))
    assert (classes[y, x], numbers[y, x]) == (IGNORED, 0)  # the crowd


def test_maps_move_with_the_pixels_and_back() -> None:
    flip = Placement(scale_x=-1, shift_x=96)
    moved = TASK.move_targets(maps(), flip, WHOLE)
    assert torch.equal(moved, maps().flip(2))
    assert torch.equal(TASK.move_targets(moved, flip, WHOLE), maps())
    cut = TASK.move_targets(maps(), Placement(), (0, 0, 30, 96))
    assert (cut[0, :, 30:] == IGNORED).all()
    assert not cut[1, :, 30:].any()


def test_objects_of_joined_images_have_numbers_of_their_own() -> None:
    left = TASK.move_targets(maps(), Placement(), (0, 0, 48, 96))
    right = TASK.move_targets(maps(), Placement(), (48, 0, 96, 96))
    joined = TASK.join_targets([left, right])
    assert torch.equal(joined[0], maps()[0])
    # The second cat lies on both sides: its halves are two objects.
    counts = [len(np.unique(one[1].numpy())) - 1 for one in (joined, left, right)]
    assert counts[0] == counts[1] + counts[2]


def test_centers_are_those_of_mass() -> None:
    numbers = torch.zeros(2, 12, 16, dtype=torch.int32)
    numbers[1, 2:5, 3:10] = 4  # the middle is at row 3, column 6
    drawn = draw_centers(numbers)
    assert drawn.centers[0].max() == 0
    assert drawn.centers[1].argmax() == 3 * 16 + 6
    assert drawn.centers[1, 3, 6] == 1
    assert drawn.centers[1, 3, 9] == pytest.approx(np.exp(-0.5), abs=1e-6)
    assert drawn.offsets[1, :, 2, 3].tolist() == [1, 3]
    assert drawn.offsets[1, :, 4, 9].tolist() == [-1, -3]
    assert not drawn.offsets[1][:, numbers[1] == 0].any()


def test_the_loss_of_an_image_by_hand_does_not_depend_on_others() -> None:
    targets = torch.stack([maps(), maps().flip(2)])
    generator = torch.Generator().manual_seed(0)
    raw = {
        "labels": torch.randn(2, 3, 96, 96, generator=generator),
        "centers": torch.rand(2, 1, 96, 96, generator=generator),
        "offsets": torch.randn(2, 2, 96, 96, generator=generator),
    }
    both = center_losses(raw, targets, pixel_cross_entropies)
    second = {name: values[1:] for name, values in raw.items()}
    alone = center_losses(second, targets[1:], pixel_cross_entropies)
    assert alone[0].item() == pytest.approx(both[1].item())
    wanted = draw_centers(targets[:1, 1])
    counted, apart = targets[0, 0] != IGNORED, targets[0, 1] > 0
    squares = ((raw["centers"][0, 0] - wanted.centers[0]) ** 2)[counted].mean()
    distances = (raw["offsets"][0] - wanted.offsets[0]).abs().sum(dim=0)[apart].mean()
    expected = pixel_cross_entropies(raw["labels"][:1], targets[:1, 0])[0] + 200 * squares
    assert both[0].item() == pytest.approx(float(expected + 0.01 * distances), rel=1e-5)


# --- prediction ---------------------------------------------------------------------------------


def test_perfect_outputs_give_the_true_objects_in_the_original() -> None:
    prediction = predict(outputs())
    assert sorted(one.label for one in prediction.objects) == ["cat", "cat", "dog"]
    assert all(one.score > 0.9 for one in prediction.objects)
    for one in prediction.objects:
        assert one.mask is not None
        rle = {"size": list(one.mask.size), "counts": one.mask.counts.encode()}
        pixels = coco.decode(rle).astype(bool)
        assert coco.encode(np.asfortranarray(pixels.astype(np.uint8)))["counts"] == rle["counts"]
        assert coco.toBbox(rle).tolist() == [one.x, one.y, one.width, one.height]
        overlaps = [
            (pixels & true).sum() / (pixels | true).sum()
            for label, true in MASKS
            if label == one.label
        ]
        assert max(overlaps) > 0.9
    assert TASK.counts(prediction) == {"cat": 2, "dog": 1}
    assert TASK.describe(prediction) == "2 cat, 1 dog"


def test_runs_are_those_of_pycocotools() -> None:
    numbers = np.random.default_rng(0).integers(0, 4, (13, 17))
    numbers[-1, -1] = 3
    found = encode_masks(numbers)
    assert sorted(found) == [1, 2, 3]
    for number, one in found.items():
        pixels = np.asfortranarray((numbers == number).astype(np.uint8))
        assert one.counts.encode() == coco.encode(pixels)["counts"]
        assert one.area == (numbers == number).sum()
    drawn = numbers_of([found[number].counts for number in (1, 2, 3)], 13, 17)
    np.testing.assert_array_equal(drawn, numbers)


def test_equal_peaks_are_decided_by_their_place() -> None:
    activated = np.zeros((2 + 3, 8, 30), np.float32)
    activated[1] = 1  # everything is of the only label
    activated[2, 4, 5] = activated[2, 4, 6] = activated[2, 4, 20] = 0.8
    found = group_pixels(activated, np.array([False, True]), max_objects=9)
    assert len(found.labels) == 2  # of neighbours the first one is the peak
    assert found.scores.tolist() == pytest.approx([0.8, 0.8])
    assert found.numbers[4, 5] == 1
    assert found.numbers[4, 20] == 2
    assert (found.numbers[:, :12] == 1).all()  # half way to the other
    assert (found.numbers[:, 13:] == 2).all()
    assert len(group_pixels(activated, np.array([False, True]), max_objects=1).labels) == 1


def test_the_label_is_that_of_most_pixels_and_the_first_of_equals() -> None:
    activated = np.zeros((3 + 3, 4, 4), np.float32)
    activated[1, :2], activated[2, 2:] = 0.9, 0.9
    activated[3, 2, 2] = 0.5
    found = group_pixels(activated, np.array([False, True, True]), max_objects=9)
    assert found.labels.tolist() == [1]
    assert found.scores.tolist() == pytest.approx([0.45 / 2])


def test_an_image_without_objects_and_outputs_that_are_not_finite() -> None:
    nothing = np.zeros((6, 96, 96), np.float32)
    nothing[0] = 1
    prediction = predict(nothing)
    assert prediction.objects == ()
    assert prediction.label is None
    assert np.isfinite(TASK.observe(prediction, TEXT)).all()
    drawing = TASK.drawing(prediction, None)
    assert drawing is not None
    assert drawing.mask == b""
    nothing[4, 3, 3] = np.nan
    assert np.isnan(TASK.observe(predict(nothing), TEXT)).all()
    observed, _ = TASK.observe_batch(torch.from_numpy(nothing)[None], maps()[None])
    assert observed.isnan().all()


def test_a_large_image_is_enlarged_once() -> None:
    found = TASK.postprocess(outputs(), frame_of(CONTRACT, 900, 600))
    assert isinstance(found, ObjectsPrediction)
    small = predict(outputs())
    for one, other in zip(found.objects, small.objects, strict=True):
        assert one.x == pytest.approx(other.x * 10, abs=10)
        assert one.width == pytest.approx(other.width * 10, abs=15)
        assert one.mask is not None
        assert one.mask.size == (600, 900)


# --- metrics ------------------------------------------------------------------------------------


def measured(prediction: ObjectsPrediction, text: str = TEXT) -> dict[str, float]:
    observed = torch.from_numpy(TASK.observe(prediction, text))[None]
    targets = TASK.stack_targets([TASK.encode(text)])
    metrics = TASK.measure(observed, targets)
    assert tuple(metrics) == TASK.measured_names(targets)
    weighted = TASK.weighted_metrics(observed, targets)(np.ones((1, 1)))
    assert weighted["map_50"][0] == pytest.approx(metrics["map_50"])
    return metrics


def test_metrics_are_over_masks_and_boxes() -> None:
    metrics = measured(predict(outputs()))
    assert metrics["map_50"] == metrics["box_map_50"] == pytest.approx(1)
    assert metrics["count_error"] == 0
    assert {"map", "map_75", "map_small", "mar_100", "ap[cat]", "f1[dog]"} <= set(metrics)


def test_an_object_in_a_crowd_is_neither_right_nor_wrong() -> None:
    numbers = maps()
    x, y = (int(value) for value in frame_of(CONTRACT, 90, 60).to_input(75.5, 50.5))
    numbers[0, y - 4 : y + 5, x - 4 : x + 5] = 1
    numbers[1, y - 4 : y + 5, x - 4 : x + 5] = 9
    found = predict(outputs_of_objects(numbers, 3))
    assert len(found.objects) == 4
    assert measured(found)["map_50"] == pytest.approx(1)
    without = annotation_of(MASKS)
    assert measured(found, without.to_text())["count_error"] == 0.5


def test_a_batch_in_training_is_measured_as_images_are() -> None:
    activated = torch.from_numpy(np.stack([outputs(), outputs()]))
    observed, targets = TASK.observe_batch(activated, torch.stack([maps(), maps()]))
    assert observed.shape == (2, 20, 15)
    assert targets.shape == (2, 4, 7)
    assert TASK.training_metrics(TASK.decide(observed), targets)["map"] == pytest.approx(1)


def test_an_annotation_of_another_size_is_refused() -> None:
    turned = annotation_of([("cat", disk((90, 60), 20, 20, 5))])
    with pytest.raises(InputError, match=r"image of 90 x 60 pixels, and the upright image has 60"):
        TASK.observe(predict(outputs()), turned.to_text())


# --- results ------------------------------------------------------------------------------------


def test_results_have_masks_in_the_order_of_objects() -> None:
    prediction = predict(outputs())
    row = TASK.result_row(prediction, 5)
    assert [one["size"] for one in row["masks"]] == [[60, 90]] * 3
    assert row["count"] == 3
    assert "mask" not in row["objects"][0]
    assert TASK.optional_columns == {"masks"}
    members = TASK.response(prediction, top_k=5, threshold=None)
    assert [one["mask"] for one in members["objects"]] == row["masks"]
    assert TASK.response(prediction, top_k=5, threshold=1.01)["objects"] == []


def test_the_drawing_has_the_number_of_each_object() -> None:
    prediction = predict(outputs())
    drawing = TASK.drawing(prediction, None)
    assert drawing is not None
    numbers = np.asarray(Image.open(io.BytesIO(drawing.mask)))
    assert numbers.shape == SIZE
    assert numbers[20, 70] == [one.label for one in prediction.objects].index("dog") + 1
    assert len(drawing.boxes) == 3


def test_tensors_are_filled_up() -> None:
    prediction = predict(outputs())
    tensors = {one.name: one for one in TASK.tensors([prediction, None])}
    assert [one.name for one in TASK.tensor_specs()] == list(tensors)
    masks = tensors["masks"]
    assert masks.shape == (2, 20)
    assert prediction.objects[0].mask is not None
    assert masks.elements[0] == prediction.objects[0].mask.counts.encode()
    assert list(masks.elements[3:]) == [b""] * 37


def test_summaries_are_means_in_a_grid() -> None:
    activated = torch.from_numpy(outputs())[None]
    summary = TASK.summarize(activated)
    assert summary.shape == (1, TASK.num_values) == (1, 6 * 64)
    assert TASK.max_difference(summary.numpy(), summary.numpy() + 0.25) == pytest.approx(0.25)
    counts = {"labels": 3, "centers": 1, "offsets": 2}
    raw = {name: torch.ones(1, count, 4, 4) for name, count in counts.items()}
    assert TASK.activate(raw).shape == (1, 6, 4, 4)
    assert TASK.activate(raw)[0, 0, 0, 0] == pytest.approx(1 / 3)


def test_the_frame_of_no_resize_changes_nothing() -> None:
    activated = outputs_of_objects(maps(), 3)
    found = TASK.postprocess(activated, Frame(96, 96))
    assert isinstance(found, ObjectsPrediction)
    numbers = numbers_of([one.mask.counts for one in found.objects if one.mask], 96, 96)
    assert ((numbers > 0) == (maps()[1].numpy() > 0)).all()


def test_an_image_whose_truth_is_empty_has_false_positives_only() -> None:
    nothing = Annotation(width=SIZE[1], height=SIZE[0]).to_text()
    observed = torch.from_numpy(
        np.stack([TASK.observe(predict(outputs()), text) for text in (nothing, TEXT)])
    )
    targets = TASK.stack_targets([TASK.encode(text) for text in (nothing, TEXT)])
    metrics = TASK.measure(observed, targets)
    assert metrics["map_50"] < 1  # the objects of the first image are ranked among the others
    assert metrics["count_error"] == pytest.approx(3 / 4)
    (worst,) = TASK.worst_mistakes(observed, targets, 5)
    assert (worst.position, worst.given, worst.predicted) == (0, "no objects", "2 cat, 1 dog")
    section = TASK.section(observed, targets, metrics)
    assert section.tables[0].rows[0][:2] == ("cat", 2)
