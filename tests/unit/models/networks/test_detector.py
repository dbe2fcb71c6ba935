"""Networks on the feature maps of classifiers: levels, weights, contracts, and the detector."""

from __future__ import annotations

import pytest
import torch

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.imaging import Letterbox
from eagleray.models.architectures import (
    Architecture,
    default_contract,
    has_published,
    require_architecture,
)
from eagleray.models.building import (
    build,
    build_on_meta,
    check_fits,
    find_head,
    load_backbone,
    make_backbone,
    replace_head,
)
from eagleray.models.networks.detector import Detector
from eagleray.models.networks.feature_maps import extract_feature_maps, feature_levels
from eagleray.tasks import Detection, Multiclass

pytestmark = pytest.mark.numerical


def detector(backbone: str = "resnet20", num_labels: int = 3, in_channels: int = 3) -> Detector:
    architecture = Architecture(
        name=f"detector/{backbone}", in_channels=in_channels, num_outputs=num_labels
    )
    module = build(architecture).eval()
    assert isinstance(module, Detector)
    return module


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("resnet20", [(16, 1), (32, 2), (64, 4)]),
        ("resnet18", [(64, 2), (64, 4), (128, 8), (256, 16), (512, 32)]),
        ("mobilenet_v3_small", [(16, 2), (72, 4), (96, 8), (288, 16), (576, 32)]),
        ("convnext_tiny", [(96, 4), (192, 8), (384, 16), (768, 32)]),
        pytest.param(
            "timm/tf_efficientnet_lite0",
            [(96, 2), (144, 4), (240, 8), (672, 16), (1280, 32)],
            marks=pytest.mark.timm,
        ),
    ],
)
def test_feature_maps_are_the_last_of_each_size(name: str, levels: list[tuple[int, int]]) -> None:
    backbone = make_backbone(name)
    found = feature_levels(backbone)
    assert [(level.channels, level.stride) for level in found] == levels
    maps = extract_feature_maps(backbone, found[-3:], initialize=False).eval()
    with torch.no_grad():
        outputs = maps(torch.zeros(1, 3, 96, 64))
    for level in found[-3:]:
        assert outputs[level.layer].shape == (
            1,
            level.channels,
            96 // level.stride,
            64 // level.stride,
        )


@pytest.mark.parametrize("name", ["vit_b_16", "lenet5"])
def test_a_network_without_feature_maps_is_no_backbone(name: str) -> None:
    channels = 1 if name == "lenet5" else 3
    with pytest.raises(InputError, match=f"{name} cannot be a backbone: it has feature maps of"):
        feature_levels(make_backbone(name, channels))


def test_an_unknown_backbone_gets_the_nearest_names() -> None:
    with pytest.raises(UnknownNameError, match="resnet18"):
        require_architecture("detector/resnet19")
    assert has_published("detector/resnet18")
    assert not has_published("detector/resnet20")


def test_every_point_predicts_a_box_around_itself() -> None:
    network = detector()
    with torch.no_grad():
        outputs = network(torch.randn(2, 3, 32, 48))
    num_points = 32 * 48 + 16 * 24 + 8 * 12
    assert outputs["boxes"].shape == (2, num_points, 4)
    assert outputs["logits"].shape == (2, num_points, 3)
    x, y, stride = outputs["points"][0].unbind(dim=1)
    assert (x[0], y[0], stride[0]) == (0.5, 0.5, 1)
    assert (x[-1], y[-1], stride[-1]) == (46, 30, 4)
    centres = (outputs["boxes"][..., :2] + outputs["boxes"][..., 2:]) / 2
    # At first every box is 4 strides wide, and every label improbable.
    assert ((centres - outputs["points"][..., :2]).abs() < stride[None, :, None]).all()
    assert outputs["logits"].sigmoid().max() < 0.05


def test_a_new_set_of_labels_replaces_the_last_layer_alone() -> None:
    network = detector(num_labels=4)  # as many as a box has numbers
    assert find_head(network, 4) == "head.labels"
    before = {name: value.clone() for name, value in network.state_dict().items()}
    replace_head(network, 4, 2)
    after = network.state_dict()
    assert after["head.labels.weight"].shape[0] == 2
    kept = [name for name in before if not name.startswith("head.labels")]
    assert all(torch.equal(before[name], after[name]) for name in kept)


def test_a_classifier_becomes_the_backbone_with_its_weights() -> None:
    classifier = build(Architecture(name="resnet20", num_outputs=10))
    network = detector()
    load_backbone(network, classifier.state_dict())
    for name, value in network.backbone.state_dict().items():
        assert torch.equal(value, classifier.state_dict()[name])


def test_the_contract_keeps_the_whole_image_and_the_statistics_of_the_backbone() -> None:
    contract = default_contract("detector/resnet18", size=128)
    assert isinstance(contract.resize, Letterbox)
    assert contract.size == (128, 128)
    assert contract.mean == default_contract("resnet18").mean
    assert default_contract("detector/resnet18").size == (416, 416)
    assert default_contract("detector/resnet18", "whole-image").keeps_whole_image


def test_networks_of_other_tasks_are_refused_in_one_sentence() -> None:
    detection, classes = Detection(labels=("a", "b")), Multiclass(labels=("a", "b"))
    of_places = Architecture(name="detector/resnet20", num_outputs=2)
    classifier = Architecture(name="resnet20", num_outputs=2)
    check_fits(of_places, 32, 32, task=detection)
    check_fits(classifier, 32, 32, task=classes)
    with pytest.raises(InputError, match=r"needs the tensors boxes, logits; .* detector/resnet20"):
        check_fits(classifier, 32, 32, task=detection)
    with pytest.raises(InputError, match="returns the tensors boxes, logits, points"):
        check_fits(of_places, 32, 32, task=classes)


def test_a_detector_has_shapes_without_memory() -> None:
    module = build_on_meta(Architecture(name="detector/resnet18", num_outputs=2))
    with torch.no_grad():
        outputs = module(torch.zeros(1, 3, 64, 64, device="meta"))
    assert outputs["boxes"].shape == (1, 8 * 8 + 4 * 4 + 2 * 2, 4)
