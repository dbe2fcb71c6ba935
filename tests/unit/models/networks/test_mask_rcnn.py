"""Mask R-CNN: what it chooses, the shapes of its outputs, and that it learns boxes and masks."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from eagleray.core.errors import InputError
from eagleray.imaging import decode
from eagleray.models.architectures import Architecture, default_contract
from eagleray.models.building import (
    build,
    build_on_meta,
    check_fits,
    find_head,
    replace_head,
    task_of_network,
)
from eagleray.models.networks.mask_rcnn import MaskRCNN, choose_detections
from eagleray.tasks import Detection, Instance, Panoptic, Task
from eagleray.tasks.base import LossOptions
from eagleray.tasks.segmentation.object_maps import ObjectMaps
from tests.support.segmented import write_nuclei

pytestmark = pytest.mark.numerical

TINY = "maskrcnn/tests.support.detection:TinyMaps"
TASK = Instance(labels=("cat", "dog"))
RESNET = Architecture(name="maskrcnn/resnet20", num_outputs=2)


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLERAY_EXTENSIONS", "tests.support.detection")


def network(num_labels: int = 2) -> MaskRCNN:
    torch.manual_seed(0)
    module = build(Architecture(name=TINY, num_outputs=num_labels)).eval()
    assert isinstance(module, MaskRCNN)
    return module


def drawn_boxes(count: int, seed: int) -> Tensor:
    """Return boxes of 10 to 30 pixels in an input of 64 x 64, some of them over its edges."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(count, 2, generator=generator) * 64
    halves = torch.rand(count, 2, generator=generator) * 10 + 5
    return torch.cat([centres - halves, centres + halves], dim=1)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_chosen_is_what_torchvision_keeps_of_each_label(seed: int) -> None:
    boxes = drawn_boxes(30, seed)
    scores = torch.rand(30, 3, generator=torch.Generator().manual_seed(seed))
    rows = choose_detections(boxes[None], scores[None], (64, 64), 20)[0]
    clipped = boxes.clamp(0, 64).repeat_interleave(3, dim=0)
    labels = torch.arange(3).repeat(30)
    kept = batched_nms(clipped, scores.flatten(), labels, 0.5)[:20]
    expected = torch.cat(
        [clipped[kept], scores.flatten()[kept, None], labels[kept, None].float()], dim=1
    )
    torch.testing.assert_close(rows[: len(expected)], expected)
    assert (rows[len(expected) :, 4] == 0).all()


def test_few_candidates_are_filled_up_with_rows_without_a_score() -> None:
    rows = choose_detections(drawn_boxes(2, 0)[None], torch.full((1, 2, 1), 0.9), (64, 64), 5)
    assert rows.shape == (1, 5, 6)
    assert rows[0, 2:].abs().sum() == 0


def test_the_network_returns_a_fixed_number_of_boxes_with_masks() -> None:
    module = network()
    with torch.no_grad():
        outputs = module(torch.randn(2, 3, 64, 48))
        alone = module.train()(torch.randn(1, 3, 64, 48))
    assert outputs["detections"].shape == (2, 100, 6)
    assert outputs["masks"].shape == (2, 100, 28, 28)
    assert alone["masks"].shape == (1, 64, 28, 28)
    assert "boxes" not in outputs
    x1, y1, x2, y2, scores, labels = outputs["detections"].unbind(dim=2)
    assert (x1 >= 0).all()
    assert (x2 <= 48).all()
    assert (y1 >= 0).all()
    assert (y2 <= 64).all()
    assert (scores.diff(dim=1) <= 0).all()
    assert set(labels.unique().tolist()) <= {0.0, 1.0}
    meta = build_on_meta(RESNET)(torch.zeros(1, 3, 96, 96, device="meta"))
    assert meta["masks"].shape == (1, 100, 28, 28)


@pytest.mark.parametrize("num_labels", [1, 4, 16])  # as many as other layers have outputs
def test_other_labels_replace_the_last_layer_alone(num_labels: int) -> None:
    module = network(num_labels)
    assert find_head(module, num_labels) == "head.labels"
    replace_head(module, num_labels, 3)
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    again = network(3).state_dict()
    assert shapes == {name: value.shape for name, value in again.items()}


def test_an_instance_task_takes_the_form_of_the_network() -> None:
    contract = default_contract("maskrcnn/resnet20", size=96)
    task = task_of_network(TASK, RESNET, contract)
    assert isinstance(task, Instance)
    assert task.regions is not None
    assert task.regions.model_dump() == {"count": 100, "side": 28, "size": (96, 96)}
    assert (task.max_objects, task.num_outputs) == (100, 2)
    check_fits(RESNET, 96, 96, task=task)
    centres = Architecture(name="panoptic/resnet20", num_outputs=3)
    assert task_of_network(TASK, centres, contract) is TASK


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Detection(labels=("a", "b")), "a detection model needs the tensors boxes, logits; name"),
        (
            Panoptic(labels=("background", "a"), things=("a",)),
            "a panoptic model needs the tensors centers, labels, offsets; name another network",
        ),
    ],
)
def test_other_tasks_refuse_it_in_one_sentence(task: Task, message: str) -> None:
    contract = default_contract("maskrcnn/resnet20", size=32)
    with pytest.raises(InputError, match=message):
        check_fits(RESNET, 32, 32, task=task_of_network(task, RESNET, contract))


def test_it_learns_boxes_and_masks_of_eight_images(tmp_path: Path) -> None:
    contract = default_contract("maskrcnn/resnet20", size=64)
    with write_nuclei(tmp_path / "nuclei", 8).open() as file:
        rows = list(csv.DictReader(file))
    pixels = [
        decode((tmp_path / "nuclei" / row["path"]).read_bytes(), contract).pixels for row in rows
    ]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    architecture = Architecture(name=TINY, num_outputs=1)
    task = task_of_network(Instance(labels=("nucleus",)), architecture, contract)
    assert isinstance(task, Instance)
    targets = ObjectMaps([row["label"] for row in rows], task.pixel_labels, task.labels, contract)[
        np.arange(8)
    ]
    module = network(1).train()
    module.proposals.count = 60  # enough for three objects, and quicker
    module.trained_count = 12
    optimizer = torch.optim.AdamW(module.parameters(), 3e-3)
    losses = task.image_losses(LossOptions(), ())
    for _ in range(80):
        optimizer.zero_grad()
        loss = losses(module(images), targets).mean()
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        found = task.activate(module.eval()(images))
    observed, true = task.observe_batch(found, targets)
    metrics = task.measure(observed, true)
    assert metrics["map_50"] >= 0.9
