"""Panoptic-DeepLab: its outputs, its head, and what it is built on."""

from __future__ import annotations

import pytest
import torch

from eagleray.core.errors import InputError
from eagleray.models.architectures import Architecture, default_contract
from eagleray.models.building import build, check_fits, find_head, replace_head
from eagleray.models.compositions import backbone_of
from eagleray.models.networks.panoptic_deeplab import PanopticDeepLab
from eagleray.tasks import Instance, Panoptic, Semantic

pytestmark = pytest.mark.numerical

SMALL = Architecture(name="panoptic/resnet20", num_outputs=2)


def test_outputs_have_the_size_of_the_image_also_an_odd_one() -> None:
    network = build(SMALL).eval()
    assert isinstance(network, PanopticDeepLab)
    assert backbone_of(SMALL.name) == "resnet20"
    with torch.inference_mode():
        outputs = network(torch.zeros(2, 3, 50, 67))
    assert {name: tuple(values.shape) for name, values in outputs.items()} == {
        "labels": (2, 2, 50, 67),
        "centers": (2, 1, 50, 67),
        "offsets": (2, 2, 50, 67),
    }


def test_an_image_does_not_depend_on_its_batch() -> None:
    network = build(SMALL).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        both, alone = network(images), network(images[1:])
    for name, values in both.items():
        torch.testing.assert_close(values[1:], alone[name], atol=1e-5, rtol=1e-4)


def test_other_labels_replace_the_layer_of_labels_alone() -> None:
    # The offsets have as many channels as two labels.
    network = build(SMALL)
    assert find_head(network, 2) == "head"
    kept = network.state_dict()["offsets.weight"].clone()
    replace_head(network, 2, 5)
    assert network.get_submodule("head").out_channels == 5
    assert torch.equal(network.state_dict()["offsets.weight"], kept)


def test_it_fits_the_tasks_that_tell_objects_apart() -> None:
    instance = Instance(labels=("cell",))
    panoptic = Panoptic(labels=("background", "cell"), things=("cell",))
    for task in (instance, panoptic):
        check_fits(SMALL, 64, 64, task=task)
    with pytest.raises(InputError, match="returns the tensors centers, labels, offsets, and a sem"):
        check_fits(SMALL, 64, 64, task=Semantic(labels=("background", "cell")))
    with pytest.raises(InputError, match="cannot be a backbone"):
        build(Architecture(name="panoptic/vit_b_16", num_outputs=2))


def test_the_default_contract_is_a_letterbox() -> None:
    contract = default_contract("panoptic/resnet18")
    assert contract.size == (256, 256)
    assert contract.keeps_whole_image
