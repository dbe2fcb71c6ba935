"""Instance models of boxes with masks: objects in the original, observations, and the package."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from eagleray.core.errors import InputError
from eagleray.imaging import named_contract
from eagleray.imaging.geometry import Frame, frame_of
from eagleray.tasks import Instance
from eagleray.tasks.base import LossOptions
from eagleray.tasks.detection.object_task import ObjectsPrediction
from eagleray.tasks.segmentation.mask_queries import MaskQueries
from eagleray.tasks.segmentation.object_maps import ObjectMaps
from eagleray.tasks.segmentation.region_loss import mask_targets, rows_of_maps
from eagleray.tasks.segmentation.region_masks import RegionMasks
from tests.support.segmented import annotation_of, disk

SIZE = (60, 90)
CONTRACT = named_contract("letterbox", size=96)
FRAME = frame_of(CONTRACT, SIZE[1], SIZE[0])
TASK = Instance(
    labels=("cat", "dog"), max_objects=8, regions=RegionMasks(count=8, side=28, size=(96, 96))
)
MASKS = [
    ("cat", disk(SIZE, 20, 30, 12)),
    ("cat", disk(SIZE, 46, 30, 11)),
    ("dog", disk(SIZE, 70, 20, 9)),
]
TEXT = annotation_of(MASKS).to_text()


def maps() -> torch.Tensor:
    return ObjectMaps([TEXT], TASK.pixel_labels, TASK.labels, CONTRACT)[0]


def network_outputs(scores: tuple[float, ...] = (0.9, 0.8, 0.7)) -> dict[str, torch.Tensor]:
    """Return perfect outputs for the annotated image, with rows that only fill it up."""
    objects = rows_of_maps(maps()[None])[:, 1:]
    wanted = torch.tensor([[1, 2, 3]])
    true = mask_targets(maps()[None, 1], objects[..., :4], wanted, 28)
    detections, masks = torch.zeros(1, 8, 6), torch.full((1, 8, 28, 28), 9.0)
    detections[0, :3, :4], detections[0, :3, 5] = objects[0, :, :4], objects[0, :, 4]
    detections[0, :3, 4] = torch.tensor(scores)
    masks[0, :3] = (true[0] - 0.5) * 20
    return {"detections": detections, "masks": masks, "logits": torch.zeros(1, 9, 2)}


def predict(outputs: dict[str, torch.Tensor], frame: Frame = FRAME) -> ObjectsPrediction:
    prediction = TASK.postprocess(TASK.activate(outputs)[0].numpy(), frame)
    assert isinstance(prediction, ObjectsPrediction)
    return prediction


def overlap(counts: str, pixels: Any) -> float:
    found = coco.decode({"size": list(SIZE), "counts": counts.encode()}).astype(bool)
    return float((found & pixels).sum() / (found | pixels).sum())


def test_masks_are_those_of_the_objects_at_the_size_of_the_original() -> None:
    prediction = predict(network_outputs())
    assert [one.label for one in prediction.objects] == ["cat", "cat", "dog"]
    for one, (_, pixels) in zip(prediction.objects, MASKS, strict=True):
        assert one.mask is not None
        assert one.mask.size == SIZE
        assert overlap(one.mask.counts, pixels) > 0.9
        rows, columns = np.nonzero(pixels)
        edges = one.x, one.y, one.x + one.width, one.y + one.height
        assert edges == pytest.approx(
            [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], abs=1
        )
    assert prediction.detections.shape == (8, 6)
    assert TASK.response(prediction, top_k=1, threshold=None)["count"] == 3


def test_objects_below_the_lowest_score_and_without_pixels_are_left_out() -> None:
    outputs = network_outputs((0.9, 0.8, 0.04))
    outputs["masks"][0, 1] = -9.0
    prediction = predict(outputs)
    assert prediction.detections[:, 4].tolist() == pytest.approx([0.9] + [0] * 7)
    assert len(prediction.masks) == 1


def test_outputs_that_are_not_finite_are_no_objects() -> None:
    outputs = network_outputs()
    outputs["detections"][0, 0, 0] = float("nan")
    assert np.isnan(predict(outputs).detections).all()
    assert TASK.form.summarize(TASK.activate(outputs)).isnan().any()


def test_perfect_outputs_have_the_best_metrics_in_training_and_in_evaluation() -> None:
    outputs = TASK.activate(network_outputs())
    observed, true = TASK.observe_batch(outputs, maps()[None])
    assert TASK.measure(observed, true)["map_50"] == pytest.approx(1)
    row = torch.from_numpy(TASK.observe(predict(network_outputs()), TEXT))
    metrics = TASK.measure(row[None], TASK.stack_targets([TASK.encode(TEXT)]))
    assert metrics["map_50"] == pytest.approx(1)
    assert metrics["box_map_50"] == pytest.approx(1)


def test_pixels_that_are_ignored_in_training_are_of_no_object() -> None:
    drawn = maps()
    drawn[0, :, :30], drawn[1, :, :30] = 255, 0
    observed, _ = TASK.observe_batch(TASK.activate(network_outputs()), drawn[None])
    whole, _ = TASK.observe_batch(TASK.activate(network_outputs()), maps()[None])
    assert 0 < observed[0, 0, 6] < whole[0, 0, 6]  # pixels of the first cat
    assert observed[0, 1, 6] == whole[0, 1, 6]


def test_a_summary_has_the_scores_of_labels_where_they_are() -> None:
    grid = TASK.summarize(TASK.activate(network_outputs())).reshape(2, 8, 8)
    assert TASK.num_values == grid.numel()
    cats, dogs = grid
    assert cats[:, 6:].sum() == 0
    assert dogs[:, :5].sum() == 0
    assert cats.max() > 0.4
    later = network_outputs((0.9, 0.8, 0.6))
    other = TASK.summarize(TASK.activate(later)).reshape(2, 8, 8)
    torch.testing.assert_close(other[1], dogs * (6 / 7))


def test_the_form_is_a_field_of_the_package_that_others_do_not_have() -> None:
    fields = TASK.model_dump(mode="json")
    assert fields["regions"] == {"count": 8, "side": 28, "size": [96, 96]}
    assert "regions" not in Instance(labels=("cat",)).model_dump(mode="json")
    assert TASK.network_outputs == {"detections": (8, 6), "masks": (8, 28, 28)}
    assert not TASK.has_exports
    assert TASK.num_activated(CONTRACT) == TASK.activate(network_outputs())[0].numel()


def test_networks_of_mask_queries_are_not_trained() -> None:
    task = Instance(labels=("cat",), queries=MaskQueries(count=4, size=(8, 8)))
    with pytest.raises(InputError, match="imported and not trained here"):
        task.image_losses(LossOptions(), ())
