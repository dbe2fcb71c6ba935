"""Multiply-adds and parameters, against counts by hand and those that torchvision publishes."""

from __future__ import annotations

import pytest
import torchvision

from eagleray.models.architectures import Architecture
from eagleray.models.building import build
from eagleray.models.cost import ModelCost, model_cost


def test_a_small_network_is_counted_as_by_hand() -> None:
    convolutions = 6 * 25 * 28 * 28 + 16 * 6 * 25 * 10 * 10
    layers = 400 * 120 + 120 * 84 + 84 * 10
    cost = model_cost(Architecture(name="lenet5", in_channels=1, num_outputs=10), (32, 32))
    assert cost == ModelCost(convolutions + layers, 61_706)


@pytest.mark.parametrize(
    ("name", "entry"),
    [("resnet18", "ResNet18_Weights"), ("vit_b_16", "ViT_B_16_Weights")],
)
def test_large_networks_are_counted_as_torchvision_says(name: str, entry: str) -> None:
    published = getattr(torchvision.models, entry).IMAGENET1K_V1.meta
    image_size = 224 if name.startswith("vit") else None
    cost = model_cost(Architecture(name=name, image_size=image_size), (224, 224))
    assert cost.multiply_adds is not None
    assert cost.multiply_adds / 1e9 == pytest.approx(published["_ops"], abs=0.001)
    assert cost.parameters == published["num_params"]


def test_attributes_count_too() -> None:
    plain = Architecture(name="lenet5", in_channels=1, num_outputs=3)
    joined = plain.model_copy(update={"num_attributes": 4})
    cost, more = model_cost(plain, (32, 32)), model_cost(joined, (32, 32))
    assert cost.multiply_adds is not None
    assert more.multiply_adds == cost.multiply_adds + 128 * (84 + 4 + 3)
    assert more.parameters == sum(parameter.numel() for parameter in build(joined).parameters())
