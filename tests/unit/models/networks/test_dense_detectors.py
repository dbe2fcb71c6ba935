"""Detectors beside the default one: their outputs, and that they learn what a few images show."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from eagleray.core.errors import InputError
from eagleray.imaging import decode, named_contract
from eagleray.models.architectures import Architecture, default_contract
from eagleray.models.building import build, build_on_meta, check_fits, find_head, replace_head
from eagleray.models.networks.faster_rcnn import FasterRCNN
from eagleray.models.networks.fcos import FCOS
from eagleray.models.networks.retinanet import RetinaNet
from eagleray.models.networks.ssdlite import SSDLite
from eagleray.models.package import create_package
from eagleray.tasks import Detection, Instance
from eagleray.tasks.base import LossOptions
from tests.support.detection import write_shapes
from tests.support.models import LINEAGE

pytestmark = pytest.mark.numerical

KINDS = {"fcos": FCOS, "retinanet": RetinaNet, "ssdlite": SSDLite, "fasterrcnn": FasterRCNN}
TASK = Detection(labels=("disc", "square"))


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLERAY_EXTENSIONS", "tests.support.detection")


def network(prefix: str, num_labels: int = 2) -> torch.nn.Module:
    torch.manual_seed(0)
    name = f"{prefix}/tests.support.detection:TinyMaps"
    module = build(Architecture(name=name, num_outputs=num_labels)).eval()
    assert isinstance(module, KINDS[prefix])
    return module


def outputs_of(prefix: str, height: int = 64, width: int = 48) -> dict[str, Tensor]:
    with torch.no_grad():
        found: dict[str, Tensor] = network(prefix)(torch.randn(2, 3, height, width))
    return found


@pytest.mark.parametrize(
    ("prefix", "count"),
    [
        ("fcos", 32 * 24 + 16 * 12 + 8 * 6 + 4 * 3 + 2 * 2),
        ("retinanet", 9 * (32 * 24 + 16 * 12 + 8 * 6 + 4 * 3 + 2 * 2)),
        ("ssdlite", 6 * (16 * 12 + 8 * 6 + 4 * 3 + 2 * 2 + 1 + 1)),
        ("fasterrcnn", 300),
    ],
)
def test_every_candidate_has_a_box_and_logits(prefix: str, count: int) -> None:
    outputs = outputs_of(prefix)
    assert outputs["boxes"].shape == (2, count, 4)
    assert outputs["logits"].shape == (2, count, 2)
    assert (outputs["boxes"][..., 2:] > outputs["boxes"][..., :2]).all()
    architecture = Architecture(name=f"{prefix}/resnet18", num_outputs=2)
    check_fits(architecture, 64, 64, task=TASK)
    meta = build_on_meta(architecture)(torch.zeros(1, 3, 96, 96, device="meta"))
    assert meta["boxes"].shape[2] == 4


def test_the_score_of_fcos_is_the_geometric_mean_of_label_and_centreness() -> None:
    outputs = outputs_of("fcos")
    expected = outputs["label_logits"].sigmoid() * outputs["centreness"].sigmoid()[..., None]
    torch.testing.assert_close(outputs["logits"].sigmoid(), expected.sqrt(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prefix", ["ssdlite", "fasterrcnn"])
def test_the_probabilities_of_labels_and_background_are_one_together(prefix: str) -> None:
    outputs = outputs_of(prefix)
    total = outputs["logits"].sigmoid().sum(dim=2) + outputs["background"].sigmoid()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-4, atol=1e-4)


def test_the_anchors_of_retinanet_have_three_sizes_and_three_shapes_around_each_place() -> None:
    anchors = outputs_of("retinanet")["anchors"][0]
    first = anchors[:9]  # of the place (1, 1), with a stride of 2
    torch.testing.assert_close((first[:, :2] + first[:, 2:]) / 2, torch.ones(9, 2))
    width, height = (first[:, 2:] - first[:, :2]).unbind(dim=1)
    sides = torch.tensor([8.0, 8 * 2 ** (1 / 3), 8 * 2 ** (2 / 3)]).repeat_interleave(3)
    torch.testing.assert_close((width * height).sqrt(), sides)
    torch.testing.assert_close(height / width, torch.tensor([0.5, 1, 2] * 3))


def test_the_anchors_of_ssdlite_are_shares_of_the_input() -> None:
    anchors = outputs_of("ssdlite", 64, 128)["anchors"][0]
    width, height = (anchors[:, 2:] - anchors[:, :2]).unbind(dim=1)
    sides = [one[place].item() for place in (0, -6) for one in (width, height)]
    assert sides == pytest.approx([0.2 * 128, 0.2 * 64, 0.95 * 128, 0.95 * 64])


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("fcos", "head.labels"),
        ("retinanet", "head.labels"),
        ("ssdlite", "labels"),
        ("fasterrcnn", "head.labels"),
    ],
)
@pytest.mark.parametrize("num_labels", [1, 4])  # as many as other layers have outputs
def test_other_labels_replace_the_last_layer_alone(prefix: str, head: str, num_labels: int) -> None:
    module = network(prefix, num_labels)
    assert find_head(module, num_labels) == head
    replace_head(module, num_labels, 3)
    again = network(prefix, 3)
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    assert shapes == {name: value.shape for name, value in again.state_dict().items()}


def test_a_task_with_masks_refuses_a_detector_in_one_sentence() -> None:
    architecture = Architecture(name="fasterrcnn/resnet20", num_outputs=3)
    with pytest.raises(InputError, match=r"boxes, .* needs the tensors centers, labels, offsets"):
        check_fits(architecture, 32, 32, task=Instance(labels=("a", "b")))


def test_contracts_show_the_whole_image() -> None:
    for prefix, side in (("fcos", 416), ("retinanet", 416), ("ssdlite", 320), ("fasterrcnn", 416)):
        contract = default_contract(f"{prefix}/resnet18")
        assert contract.keeps_whole_image
        assert contract.size == (side, side)


def drawn_images(folder: Path) -> tuple[Tensor, Tensor]:
    """Return eight normalised images (8, 3, 64, 64) and their targets."""
    with write_shapes(folder / "shapes", 8, seed=1).open() as file:
        rows = list(csv.DictReader(file))
    contract = named_contract("letterbox", size=64)
    pixels = [decode(Path(row["path"]).read_bytes(), contract).pixels for row in rows]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    targets = TASK.stack_targets([TASK.encode(row["label"]) for row in rows])
    return images, TASK.targets_in_input(targets, contract)


@pytest.mark.parametrize(
    ("prefix", "steps"),
    [
        ("fcos", 60),
        pytest.param("retinanet", 110, marks=pytest.mark.long),
        ("ssdlite", 100),
        pytest.param("fasterrcnn", 70, marks=pytest.mark.long),
    ],
)
def test_a_detector_learns_what_eight_images_show(prefix: str, steps: int, tmp_path: Path) -> None:
    images, targets = drawn_images(tmp_path)
    module = network(prefix).train()
    if isinstance(module, FasterRCNN):
        module.proposals.count = 60  # enough for three objects, and quicker
    optimizer = torch.optim.AdamW(module.parameters(), 3e-3)
    losses = TASK.image_losses(LossOptions(), ())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = losses(module(images), targets).mean()
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        found = TASK.activate(module.eval()(images))
    assert TASK.training_metrics(found, targets)["map_50"] >= 0.85


@pytest.mark.parametrize("prefix", KINDS)
def test_a_package_has_the_outputs_of_its_network(prefix: str) -> None:
    architecture = Architecture(name=f"{prefix}/resnet20", num_outputs=2)
    torch.manual_seed(0)
    package = create_package(
        name="shapes",
        task=TASK,
        architecture=architecture,
        contract=default_contract(architecture.name, size=32),
        module=build(architecture).eval(),
        lineage=LINEAGE,
    )
    again = package.build_module()
    torch.manual_seed(0)
    module = build(architecture).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again(images), module(images))
