"""Architectures by name: contracts, labels, and wrong names that are explained."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec

import pytest
import torch
import torchvision

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.models.architectures import (
    Architecture,
    architecture_names,
    default_contract,
    imagenet_labels,
    require_architecture,
)
from eagleray.models.building import build, build_pretrained
from eagleray.models.published import published_names

pytestmark = pytest.mark.numerical

needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed: it is an extra"
)


def test_every_name_has_a_contract_of_its_channels() -> None:
    names = [name for name in architecture_names() if not name.startswith("timm/")]
    assert len(names) >= 80
    assert names == sorted(names)
    for name in names:
        contract = default_contract(name)
        assert contract.color == ("gray" if name == "lenet5" else "rgb"), name
        assert 32 <= contract.size[0] == contract.size[1] <= 800, name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet81", "Nearest: resnet18, "),
        ("resnet-18", "Nearest: resnet18, "),
        ("lenet", "Nearest: lenet5, "),
        ("AlexNet", "Nearest: alexnet"),
        ("zzzzzz", "No architecture is named 'zzzzzz'. `eagleray models architectures` lists all."),
    ],
)
def test_an_unknown_name_lists_the_nearest(name: str, expected: str) -> None:
    for refuse in (
        lambda: require_architecture(name),
        lambda: default_contract(name),
        lambda: build(Architecture(name=name)),
        lambda: build_pretrained(name),
    ):
        with pytest.raises(UnknownNameError) as caught:
            refuse()
        assert expected in str(caught.value)


@needs_timm
@pytest.mark.timm
def test_timm_networks_build_behind_their_prefix() -> None:
    name = "timm/resnet10t"
    assert name in architecture_names()
    assert default_contract(name).size == (176, 176)
    with torch.device("meta"):
        module = build(Architecture(name=name, in_channels=5, num_outputs=7)).eval()
        assert module(torch.zeros(2, 5, 176, 176)).shape == (2, 7)


@needs_timm
@pytest.mark.timm
def test_timm_networks_keep_the_normalisation_of_their_weights() -> None:
    contract = default_contract("timm/vit_base_patch16_224")
    assert (contract.mean, contract.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_without_timm_its_names_say_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def without_timm(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "timm" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_timm)
    with pytest.raises(InputError, match=r"'timm/resnet10t' needs timm.*pip install eagleray\[tim"):
        build(Architecture(name="timm/resnet10t"))
    assert not [name for name in architecture_names() if name.startswith("timm/")]
    require_architecture("resnet18")


@pytest.mark.parametrize("name", ["efficientnet_b0", "swin_t", "maxvit_t"])
def test_the_contract_scales_as_the_published_weights_expect(name: str) -> None:
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    assert default_contract(name).resampler == f"pillow_{preset.interpolation.value}"


def test_imagenet_has_a_thousand_labels_that_are_unique() -> None:
    labels = imagenet_labels()
    assert len(labels) == len(set(labels)) == 1000
    assert labels[0] == "tench"
    assert labels[999] == "toilet tissue"


def test_names_without_timm_are_the_same_as_torchvisions_and_ours() -> None:
    ours = {"lenet5", "zfnet", "resnet20", "resnet20_x2", "resnet56"}
    theirs = {*torchvision.models.list_models(module=torchvision.models), *published_names()}
    names = {name for name in architecture_names() if not name.startswith("timm/")}
    assert names == ours | theirs
    assert not ours & theirs


def test_a_composed_network_is_no_backbone() -> None:
    with pytest.raises(InputError, match="unet/resnet18 is none; write fasterrcnn/resnet18"):
        require_architecture("fasterrcnn/unet/resnet18")
