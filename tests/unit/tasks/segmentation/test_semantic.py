"""Semantic segmentation: from annotations to targets, metrics and results."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from eagleray.core.errors import InputError
from eagleray.imaging import named_contract
from eagleray.imaging.geometry import Frame, frame_of
from eagleray.tasks import Semantic, make_task
from eagleray.tasks.annotation import Annotation, TrueObject
from eagleray.tasks.segmentation.class_maps import IGNORED, class_map, decode_mask
from eagleray.tasks.segmentation.pixel_counts import (
    confusion_of,
    confusions_in_batch,
    shares_to_counts,
)
from eagleray.tasks.segmentation.semantic import MapPrediction
from tests.support.segmented import annotation_of, disk

pytestmark = pytest.mark.numerical

TASK = Semantic(labels=("background", "cat", "dog"))
SIZE = (60, 90)
CONTRACT = named_contract("letterbox", size=64)
ANNOTATION = annotation_of(
    {"cat": disk(SIZE, 30, 30, 20), "dog": disk(SIZE, 70, 30, 10)},
    crowds={"cat": disk(SIZE, 5, 5, 4)},
)


def noisy(classes: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return classes of which a fifth are others."""
    generator = np.random.default_rng(seed)
    other = generator.integers(0, 3, classes.shape, dtype=np.uint8)
    return np.where(generator.random(classes.shape) < 0.2, other, classes)


def prediction_of(classes: np.ndarray) -> MapPrediction:
    outputs = np.stack([(classes == index).astype(np.float32) for index in range(3)])
    height, width = classes.shape
    prediction = TASK.postprocess(outputs, Frame(width, height))
    assert isinstance(prediction, MapPrediction)
    return prediction


# --- targets ------------------------------------------------------------------------------------


def test_labels_are_the_background_and_those_of_all_objects() -> None:
    others = annotation_of({"zebra": disk(SIZE, 1, 1, 1), "background": disk(SIZE, 9, 9, 2)})
    task = make_task("semantic", [ANNOTATION.to_text(), others.to_text()])
    assert task.labels == ("background", "cat", "dog", "zebra")
    assert task.encode(others.to_text()) == [60 * 90 - 5, 0, 0, 5]


def test_data_without_objects_are_refused() -> None:
    with pytest.raises(InputError, match="No image has an object"):
        make_task("semantic", [Annotation(width=9, height=9).to_text()])
    with pytest.raises(InputError, match=r"The label of b.png cannot be used: 'cat' does not say"):
        Semantic.from_labels([ANNOTATION.to_text(), "cat"], ["a.png", "b.png"])
    many = tuple(TrueObject(label=f"{n}", x=0, y=0, width=1, height=1) for n in range(255))
    with pytest.raises(InputError, match="255 labels, and a segmentation model has at most 254"):
        Semantic.from_labels([Annotation(width=9, height=9, objects=many).to_text()])


def test_the_encoded_target_is_the_number_of_pixels_of_each_label() -> None:
    classes = class_map(ANNOTATION, TASK.labels)
    expected = [int((classes == index).sum()) for index in range(3)]
    assert TASK.encode(ANNOTATION.to_text()) == expected
    assert sum(expected) == 60 * 90 - (classes == IGNORED).sum()


# --- metrics ------------------------------------------------------------------------------------


def observed(seeds: tuple[int, ...] = (0, 1, 2)) -> tuple[torch.Tensor, torch.Tensor]:
    classes = class_map(ANNOTATION, TASK.labels)
    text = ANNOTATION.to_text()
    shares = [TASK.observe(prediction_of(noisy(classes, seed)), text) for seed in seeds]
    return torch.from_numpy(np.stack(shares)), TASK.stack_targets([TASK.encode(text)] * len(seeds))


def test_metrics_are_those_of_all_pixels_together() -> None:
    classes = class_map(ANNOTATION, TASK.labels)
    counted = classes != IGNORED
    true = np.concatenate([classes[counted]] * 3)
    found = np.concatenate([noisy(classes, seed)[counted] for seed in range(3)])
    found[found == IGNORED] = 0
    measured = TASK.measure(*observed())
    assert measured["mean_iou"] == pytest.approx(jaccard_score(true, found, average="macro"))
    assert measured["mean_dice"] == pytest.approx(f1_score(true, found, average="macro"))
    assert measured["pixel_accuracy"] == pytest.approx((true == found).mean())
    each = jaccard_score(true, found, average=None)
    assert [measured[f"iou[{label}]"] for label in TASK.labels] == pytest.approx(each.tolist())
    outputs, targets = observed()
    assert tuple(measured) == TASK.measured_names(targets) == TASK.measured_names()
    counts = shares_to_counts(outputs.numpy(), targets.numpy()).sum(axis=0)
    np.testing.assert_array_equal(counts, confusion_matrix(true, found))


def test_resampled_metrics_equal_those_measured() -> None:
    outputs, targets = observed()
    weighted = TASK.weighted_metrics(outputs, targets)(np.array([[1.0, 1, 1], [0, 2, 0]]))
    assert set(TASK.headline_names) <= set(weighted)
    for row, places in enumerate(([0, 1, 2], [1])):
        expected = TASK.measure(outputs[places], targets[places])
        for name in TASK.headline_names:
            assert weighted[name][row] == pytest.approx(expected[name])


def test_a_batch_in_training_is_counted_as_images_are() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.rand(3, 3, 16, 16, generator=generator).softmax(dim=1)
    targets = torch.randint(0, 3, (3, 16, 16), dtype=torch.uint8, generator=generator)
    targets[0, :4] = IGNORED
    predicted = outputs.argmax(dim=1)
    counts = confusions_in_batch(targets, predicted, 3)
    for place in range(3):
        found = predicted[place].numpy().astype(np.uint8)
        expected = confusion_of(targets[place].numpy(), found, 3)
        np.testing.assert_array_equal(counts[place].numpy(), expected)
    shares, num_pixels = TASK.observe_batch(outputs, targets)
    assert num_pixels.sum(dim=1).tolist() == [12 * 16, 256, 256]
    right = (predicted == targets)[targets != IGNORED].float().mean()
    assert TASK.training_metrics(shares, num_pixels)["pixel_accuracy"] == pytest.approx(
        float(right)
    )
    outputs[1, 0, 0, 0] = float("nan")
    shares, _ = TASK.observe_batch(outputs, targets)
    assert shares.flatten(1).isfinite().all(dim=1).tolist() == [True, False, True]


def test_the_constant_prediction_is_the_label_of_the_most_pixels() -> None:
    _, targets = observed()
    found = TASK.constant_prediction(targets)
    assert found is not None
    description, outputs = found
    assert description == "predicting 'background' for every pixel"
    metrics = TASK.measure(outputs.expand(3, 3, 3), targets)
    assert metrics["pixel_accuracy"] == pytest.approx(float(targets[0, 0] / targets[0].sum()))
    assert metrics["iou[cat]"] == 0


def test_an_annotation_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match=r"image of 60 x 90 pixels, and the upright image has 9"):
        TASK.observe(prediction_of(np.zeros((90, 60), np.uint8)), ANNOTATION.to_text())


def test_outputs_that_are_not_finite_stay_so() -> None:
    outputs = np.full((3, 64, 64), 1 / 3, np.float32)
    outputs[0, 9, 9] = np.nan
    prediction = TASK.postprocess(outputs, frame_of(CONTRACT, 90, 60))
    assert np.isnan(TASK.observe(prediction, ANNOTATION.to_text())).all()


def test_the_images_with_the_most_wrong_pixels_are_the_worst() -> None:
    classes = class_map(ANNOTATION, TASK.labels)
    classes[classes == IGNORED] = 0
    found = [classes, noisy(classes), np.zeros_like(classes)]
    text = annotation_of({"cat": disk(SIZE, 30, 30, 20), "dog": disk(SIZE, 70, 30, 10)}).to_text()
    shares = [TASK.observe(prediction_of(one), text) for one in found]
    outputs, targets = (
        torch.from_numpy(np.stack(shares)),
        TASK.stack_targets([TASK.encode(text)] * 3),
    )
    mistakes = TASK.worst_mistakes(outputs, targets, 5)
    assert [one.position for one in mistakes] == [2, 1]
    assert mistakes[0].predicted == "100.0 % background"
    section = TASK.section(outputs, targets, TASK.measure(outputs, targets))
    assert [row[0] for row in section.tables[0].rows] == list(TASK.labels)


# --- predictions and results --------------------------------------------------------------------


def test_a_prediction_has_the_class_of_each_pixel_of_the_original() -> None:
    outputs = np.zeros((3, 64, 64), np.float32)
    outputs[0] = 0.4
    outputs[1, :, 32:] = 0.6
    prediction = TASK.postprocess(outputs, frame_of(CONTRACT, 90, 60))
    assert isinstance(prediction, MapPrediction)
    assert prediction.label is None
    assert prediction.labels == ("background", "cat")
    expected = np.zeros((60, 90), np.uint8)
    expected[:, 45:] = 1
    assert (decode_mask(prediction.mask) != expected).mean() < 0.02
    assert prediction.shares.tolist() == pytest.approx([0.5, 0.5, 0], abs=0.02)


def test_predictions_agree_if_nearly_all_pixels_do() -> None:
    classes = class_map(annotation_of({"cat": disk(SIZE, 30, 30, 20)}), TASK.labels)
    nearly = classes.copy()
    nearly[0, :50] = 2  # of 5,400
    first, close, far = map(prediction_of, (classes, nearly, noisy(classes)))
    assert TASK.same_answer(first, close)
    assert not TASK.same_answer(first, far)
    assert not TASK.same_answer(first, prediction_of(classes.T.copy()))
    share = (classes == 1).mean() * 100
    assert TASK.describe(first) == f"{100 - share:.1f} % background, {share:.1f} % cat"


def test_results_have_the_mask_and_the_shares() -> None:
    classes = class_map(annotation_of({"dog": disk(SIZE, 30, 30, 20)}), TASK.labels)
    prediction = prediction_of(classes)
    row = TASK.result_row(prediction, top_k=5)
    assert list(row) == [one.name for one in TASK.result_fields()]
    np.testing.assert_array_equal(decode_mask(row["mask"]), classes)
    assert row["share_cat"] == 0
    assert row["share_dog"] == pytest.approx((classes == 2).mean())
    response = TASK.response(prediction, top_k=5, threshold=None)
    assert base64.b64decode(response["mask"]) == row["mask"]
    assert list(response["shares"]) == list(TASK.labels)
    shares, mask = TASK.tensors([prediction, None])
    assert [(one.name, one.datatype) for one in (shares, mask)] == [
        (one.name, one.datatype) for one in TASK.tensor_specs()
    ]
    assert shares.shape == (2, 3)
    assert mask.elements == [row["mask"], b""]
    assert np.isnan(np.asarray(shares.elements)[1]).all()
    assert mask.has_files


def test_a_summary_has_the_mean_probabilities_of_64_cells() -> None:
    outputs = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    summary = TASK.summarize(outputs)
    assert summary.shape == (2, TASK.num_values)
    assert summary[1, 64].item() == pytest.approx(outputs[1, 1, :8, :6].mean().item())
    moved = outputs + 0.01
    difference = TASK.max_difference(TASK.summarize(moved).numpy(), summary.numpy())
    assert difference == pytest.approx(0.01, rel=1e-3)
