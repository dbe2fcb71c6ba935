"""Masks of queries: maps, objects and segments are those of transformers' image processors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from eagleray.imaging.geometry import Frame
from eagleray.tasks import Instance, Panoptic, Semantic
from eagleray.tasks.detection.object_task import ObjectsPrediction
from eagleray.tasks.run_lengths import inside_runs
from eagleray.tasks.segmentation.class_maps import decode_mask, decode_numbers
from eagleray.tasks.segmentation.mask_queries import MaskQueries
from eagleray.tasks.segmentation.panoptic import PanopticPrediction
from eagleray.tasks.segmentation.semantic import MapPrediction

LABELS = ("sky", "cow", "car", "road")
THINGS = ("cow", "car")
HEIGHT, WIDTH, COUNT = 61, 90, 14
PROCESSORS = {"Mask2Former": (384, 384), "MaskFormer": None}


def network_outputs(seed: int) -> dict[str, torch.Tensor]:
    """Return scores, many of them high, and smooth masks that overlap."""
    generator = torch.Generator().manual_seed(seed)
    labels = 4 * torch.randn(1, COUNT, len(LABELS) + 1, generator=generator)
    small = 8 * torch.randn(1, COUNT, 4, 4, generator=generator) - 2
    masks = torch.nn.functional.interpolate(small, size=(16, 24), mode="bicubic")
    return {"labels": labels, "masks": masks}


def outputs_apart(seed: int) -> dict[str, torch.Tensor]:
    """Return high scores, and masks of blobs that touch and overlap a little."""
    outputs = network_outputs(seed)
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(24.0), indexing="ij")
    masks = []
    for query in range(COUNT):
        down, across = 5.2 * (query // 5) + 2.5, 4.8 * (query % 5) + 2.5
        radius = 2.2 + torch.rand(1, generator=generator)
        far = torch.maximum((y - down).abs(), (x - across).abs())
        masks.append(12 * (1 - far / radius))
    return {"labels": 3 * outputs["labels"], "masks": torch.stack(masks)[None]}


def processed(kind: str, outputs: dict[str, torch.Tensor], task: str, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, f"{kind}ImageProcessor")()
    given = SimpleNamespace(
        class_queries_logits=outputs["labels"], masks_queries_logits=outputs["masks"]
    )
    process = getattr(processor, f"post_process_{task}_segmentation")
    return process(given, target_sizes=[(HEIGHT, WIDTH)], **options)[0]


def queries_of(kind: str) -> MaskQueries:
    return MaskQueries(count=COUNT, size=(16, 24), enlarged=PROCESSORS[kind])


def predicted(task: Any, outputs: dict[str, torch.Tensor]) -> Any:
    activated = task.activate(outputs)
    assert task.summarize(activated).shape == (1, task.num_values)
    return task.postprocess(activated[0].numpy(), Frame(WIDTH, HEIGHT, 0.5, 0.5))


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("seed", range(3))
def test_each_pixel_has_the_label_of_transformers(kind: str, seed: int) -> None:
    outputs = network_outputs(seed)
    prediction = predicted(Semantic(labels=LABELS, queries=queries_of(kind)), outputs)
    assert isinstance(prediction, MapPrediction)
    wanted = processed(kind, outputs, "semantic").numpy()
    found = decode_mask(prediction.mask)
    assert (found == wanted).mean() >= 0.9995
    assert len(np.unique(wanted)) >= 2


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("seed", range(3))
def test_objects_are_those_of_transformers_and_may_overlap(kind: str, seed: int) -> None:
    outputs = network_outputs(seed)
    task = Instance(
        labels=LABELS, thresholds=(0.3,) * 4, max_objects=COUNT, queries=queries_of(kind)
    )
    prediction = predicted(task, outputs)
    assert isinstance(prediction, ObjectsPrediction)
    wanted = processed(kind, outputs, "instance", threshold=0.3, return_binary_maps=True)
    rows = sorted(
        zip(wanted["segments_info"], wanted["segmentation"], strict=True),
        key=lambda row: -row[0]["score"],
    )
    assert len(prediction.objects) == len(rows) >= 3
    total = np.zeros(HEIGHT * WIDTH, int)
    for one, (told, pixels) in zip(prediction.objects, rows, strict=True):
        assert one.label == LABELS[told["label_id"]]
        assert one.score == pytest.approx(told["score"], abs=1e-5)
        assert one.mask is not None
        flat = np.zeros(HEIGHT * WIDTH, bool)
        flat[inside_runs(one.mask.counts, HEIGHT, WIDTH)] = True
        assert ((pixels.numpy() == 1) == flat.reshape(WIDTH, HEIGHT).T).mean() >= 0.9995
        total += flat
    assert total.max() > 1


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("seed", range(4))
def test_segments_are_those_of_transformers_and_stuff_is_one(kind: str, seed: int) -> None:
    outputs = outputs_apart(seed)
    labels = ("background", *LABELS)
    task = Panoptic(labels=labels, things=THINGS, queries=queries_of(kind))
    prediction = predicted(task, outputs)
    assert isinstance(prediction, PanopticPrediction)
    wanted = processed(kind, outputs, "panoptic", label_ids_to_fuse=set())
    told = {one["id"]: one for one in wanted["segments_info"]}
    fused = wanted["segmentation"].numpy()
    names = np.array(["background", *(LABELS[told[one]["label_id"]] for one in sorted(told))])
    ids = decode_numbers(prediction.segment_map)
    shown = np.array(["background", *(one.label for one in prediction.segments)])
    assert (shown[ids] == names[fused]).mean() >= 0.9995
    assert len(told) >= 2
    expected = sorted(
        [(LABELS[one["label_id"]], one["score"]) for one in told.values()], reverse=True
    )
    best = dict(reversed(expected))
    pairs = [one for one in expected if one[0] in THINGS]
    pairs += [(label, best[label]) for label in best if label not in THINGS]
    found = sorted((one.label, one.score) for one in prediction.segments)
    assert [label for label, _ in found] == [label for label, _ in sorted(pairs)]
    assert [score for _, score in found] == pytest.approx(
        [score for _, score in sorted(pairs)], abs=1e-5
    )
    for number, one in told.items():
        if LABELS[one["label_id"]] in THINGS:
            own = ids[fused == number]
            assert (own == np.bincount(own).argmax()).mean() >= 0.99


def test_no_segment_is_all_background() -> None:
    outputs = network_outputs(0)
    outputs["labels"][..., -1] = 50.0
    task = Panoptic(
        labels=("background", *LABELS), things=THINGS, queries=queries_of("Mask2Former")
    )
    prediction = predicted(task, outputs)
    assert prediction.segments == ()
    assert prediction.labels == ("background",)
