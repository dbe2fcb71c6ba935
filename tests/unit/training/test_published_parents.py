"""Training from the published weights of torchvision's detectors and segmentation networks.

The weights here are random, and lie where torchvision would download the published ones to.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from eagleray.core.errors import InputError
from eagleray.models.architectures import Architecture
from eagleray.models.building import build, build_pretrained, find_head
from eagleray.tasks import Detection, Semantic
from eagleray.tasks.base import LossOptions
from eagleray.training.plan import TrainPlan
from tests.support.detection import write_shapes
from tests.support.published import hub_folder, noise, publish_network
from tests.support.training import plan_for, small_spec

pytestmark = pytest.mark.numerical

SIDE = 64
DETECTOR, SEGMENTER = "fcos_resnet50_fpn", "deeplabv3_mobilenet_v3_large"
HEADS = {
    "fcos_resnet50_fpn": "head.classification_head.cls_logits",
    "retinanet_resnet50_fpn_v2": "head.classification_head.cls_logits",
    "deeplabv3_mobilenet_v3_large": "classifier.4",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return hub_folder(tmp_path, monkeypatch)


def plan_of(folder: Path, **changes: Any) -> TrainPlan:
    """Plan a run on a few drawn shapes of two labels."""
    shapes = folder / "shapes"
    data = shapes / "objects.csv" if shapes.is_dir() else write_shapes(shapes)
    fields = {"task": "detection", "name": "shapes", "image_size": SIDE}
    return plan_for(small_spec(data, **{**fields, **changes}), folder)[0]


def test_a_plan_has_the_published_weights_and_a_head_of_its_labels(hub: Path) -> None:
    publish_network(hub, DETECTOR, noise((SIDE, SIDE)))
    plan = plan_of(hub, architecture=DETECTOR, pretrained=True)
    assert plan.architecture == Architecture(name=DETECTOR, num_outputs=2)
    assert plan.contract.size == (SIDE, SIDE)
    published, _ = build_pretrained(DETECTOR)
    own, theirs = plan.module.state_dict(), published.state_dict()
    differ = {name for name in own if own[name].shape != theirs[name].shape}
    assert differ == {f"{HEADS[DETECTOR]}.weight", f"{HEADS[DETECTOR]}.bias"}
    assert all(torch.equal(own[name], theirs[name]) for name in own if name not in differ)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "ssd300_vgg16", "pretrained": True}, "name ssdlite/vgg16 instead"),
        ({"architecture": DETECTOR}, "add --pretrained or a parent, or name fcos/resnet50"),
        ({"architecture": SEGMENTER, "pretrained": True}, "returns logits of every pixel, and"),
        ({"architecture": SEGMENTER}, "returns logits of every pixel, and"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(
    hub: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"^architecture: [^\n]*{re.escape(message)}"):
        plan_of(hub, **changes)


@pytest.mark.parametrize("name", HEADS)
def test_other_labels_replace_the_last_layer_alone(name: str, hub: Path) -> None:
    publish_network(hub, name, noise((SIDE, SIDE)))
    module, architecture = build_pretrained(name, num_outputs=5)
    assert find_head(module, 5) == HEADS[name]
    again = build(architecture)
    again.load_state_dict(module.state_dict())


@pytest.mark.parametrize("name", HEADS)
def test_a_few_steps_reduce_the_loss_and_keep_the_statistics(name: str, hub: Path) -> None:
    publish_network(hub, name, noise((SIDE, SIDE)))
    module, _ = build_pretrained(name, num_outputs=2)
    module.train()
    layers = [one for one in module.modules() if isinstance(one, nn.BatchNorm2d)]
    assert not any(layer.training for layer in layers)
    before = [layer.running_mean.clone() for layer in layers if layer.running_mean is not None]
    images = torch.stack([torch.from_numpy(noise((SIDE, SIDE))).permute(2, 0, 1).float() / 255])
    if name.startswith("deeplab"):
        targets = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
        targets[:, 20:50, 10:40] = 1
        losses = Semantic(labels=("background", "disc")).image_losses(LossOptions(), ())
    else:
        targets = torch.tensor([[[SIDE, SIDE, 0, 0, 0, 0], [10, 20, 40, 50, 1, 1.0]]])
        losses = Detection(labels=("disc", "square")).image_losses(LossOptions(), ())
    optimizer = torch.optim.AdamW(module.parameters(), 1e-4)
    history = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = losses(module(images), targets).mean()
        torch.autograd.backward(loss)
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.9 * history[0]
    after = [layer.running_mean for layer in layers if layer.running_mean is not None]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
