"""Networks are built: every family at its size, with published weights, and with other heads."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models._api import WeightsEnum

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.imaging import named_contract
from eagleray.models.architectures import (
    Architecture,
    architecture_for,
    default_contract,
)
from eagleray.models.building import build, build_pretrained, check_fits
from eagleray.tasks import Detection
from tests.support.published import hub_folder

pytestmark = pytest.mark.numerical

# One or two of each family, with the size that they were designed for.
FAMILIES = {
    "lenet5": 32,
    "alexnet": 224,
    "zfnet": 224,
    "googlenet": 224,
    "inception_v3": 299,
    "vgg11": 224,
    "vgg16_bn": 224,
    "resnet18": 224,
    "resnet50": 224,
    "mobilenet_v2": 224,
    "mobilenet_v3_small": 224,
    "squeezenet1_0": 224,
    "squeezenet1_1": 224,
    "efficientnet_b0": 224,
    "efficientnet_v2_s": 384,
    "convnext_tiny": 224,
    "vit_b_16": 224,
    "densenet121": 224,
    "swin_t": 224,
    "swin_v2_t": 256,
    "regnet_y_400mf": 224,
    "shufflenet_v2_x0_5": 224,
    "mnasnet0_5": 224,
    "maxvit_t": 224,
    "resnet20": 32,
}
NOT_ON_META = {"regnet_y_400mf"}  # torchvision reads block widths back from tensors


def device_of(name: str) -> torch.device:
    """The device that builds a network without computing, where its code allows that."""
    return torch.device("cpu" if name in NOT_ON_META else "meta")


def num_parameters(architecture: Architecture) -> int:
    with device_of(architecture.name):
        return sum(weight.numel() for weight in build(architecture, initialize=False).parameters())


# --- building ---------------------------------------------------------------------------------


@pytest.mark.parametrize("in_channels", [1, 3, 5])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_predicts_at_its_own_size_with_any_channels(
    name: str, in_channels: int
) -> None:
    contract = default_contract(name)
    assert contract.size == (FAMILIES[name], FAMILIES[name])
    architecture = Architecture(name=name, in_channels=in_channels, num_outputs=7)
    with device_of(name), torch.no_grad():
        module = build(architecture, initialize=False).eval()
        assert module(torch.zeros(2, in_channels, *contract.size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "in_channels", "num_outputs", "expected"),
    [
        # 156 + 2,416 + 48,120 + 10,164 + 850
        ("lenet5", 1, 10, 61_706),
        # features 14,208 + 614,656 + 885,120 + 1,327,488 + 884,992
        # classifier 37,752,832 + 16,781,312 + 4,097,000
        ("zfnet", 3, 1000, 62_357_608),
        ("alexnet", 3, 1000, 61_100_840),
        ("resnet18", 3, 1000, 11_689_512),
        ("vgg16", 3, 1000, 138_357_544),
    ],
)
def test_parameters_are_as_many_as_the_papers_layers_have(
    name: str, in_channels: int, num_outputs: int, expected: int
) -> None:
    architecture = Architecture(name=name, in_channels=in_channels, num_outputs=num_outputs)
    assert num_parameters(architecture) == expected


@pytest.mark.parametrize(("name", "millions"), [("resnet20", 0.27), ("resnet56", 0.86)])
def test_small_residual_networks_have_the_papers_millions(name: str, millions: float) -> None:
    architecture = Architecture(name=name, num_outputs=10)
    assert num_parameters(architecture) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_no_network_brings_auxiliary_heads(name: str) -> None:
    with torch.device("meta"):
        module = build(Architecture(name=name, num_outputs=7), initialize=False).train()
        answer = module(torch.zeros(2, 3, 299, 299))
    assert isinstance(answer, torch.Tensor)
    assert not [key for key in module.state_dict() if "aux" in key.lower()]


# --- sizes that fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("alexnet", 32, "alexnet cannot take images of 32 x 32 pixels; it is made for 224 x 224."),
        ("inception_v3", 64, "inception_v3 cannot take images of 64 x 64 pixels"),
        ("vit_b_16", 256, "vit_b_16 cannot take images of 256 x 256 pixels; it is made for 224"),
        (
            "lenet5",
            28,
            "lenet5 cannot take images of 28 x 28 pixels; it is made for 32 x 32. Choose",
        ),
    ],
)
def test_a_size_that_a_network_cannot_take_is_one_sentence(
    name: str, size: int, expected: str
) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        check_fits(Architecture(name=name, num_outputs=7), size, size)
    assert str(caught.value).startswith(expected)
    assert str(caught.value).endswith("Choose that size, or another architecture.")


@pytest.mark.parametrize(
    "name",
    [
        "alexnet",
        "lenet5",
        "swin_t",
        pytest.param(
            "regnet_y_400mf",
        ),
        pytest.param(
            "vit_h_14",
        ),
    ],
)
def test_a_network_takes_images_of_its_own_contract(name: str) -> None:
    contract = default_contract(name)
    check_fits(architecture_for(name, contract, 7), *contract.size)


# --- published weights ------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return hub_folder(tmp_path, monkeypatch)


def publish(hub: Path, name: str, seed: int = 1) -> dict[str, torch.Tensor]:
    """Put random weights where a download of the network's published ones would be."""
    torch.manual_seed(seed)
    weights: dict[str, torch.Tensor] = torchvision.models.get_model(name).state_dict()
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    torch.save(weights, hub / "checkpoints" / url.rsplit("/", 1)[-1])
    return weights


def same(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], but: tuple[str, ...]
) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one if not key.startswith(but))


def test_weights_that_cannot_be_fetched_are_one_sentence(
    hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        build_pretrained("resnet18")
    sentence = str(caught.value)
    assert "'resnet18' cannot be fetched from https://download.pytorch.org/models/res" in sentence
    assert "no network" in sentence
    assert f"{hub}/checkpoints by hand" in sentence
    shown = capsys.readouterr()
    assert shown.out == ""  # standard output is for results, such as JSON
    assert "Downloading" in shown.err


def test_damaged_weights_are_an_input_error(hub: Path) -> None:
    publish(hub, "squeezenet1_1")
    published = next((hub / "checkpoints").iterdir())
    published.write_bytes(published.read_bytes()[:5000])
    with pytest.raises(InputError, match="'squeezenet1_1' cannot be fetched"):
        build_pretrained("squeezenet1_1")


@pytest.mark.parametrize(
    ("name", "weights", "error", "expected"),
    [
        ("resnet50", "IMAGENET1K_V9", UnknownNameError, "IMAGENET1K_V1"),
        ("resnet18", "DEFALT", UnknownNameError, "Nearest: DEFAULT"),
        ("lenet5", "DEFAULT", InputError, "no published weights for 'lenet5'"),
        ("zfnet", "DEFAULT", InputError, "no published weights for 'zfnet'"),
    ],
)
def test_weights_that_were_never_published_are_refused(
    hub: Path, name: str, weights: str, error: type[Exception], expected: str
) -> None:
    with pytest.raises(error) as caught:
        build_pretrained(name, weights=weights)
    assert expected in str(caught.value)


def test_published_weights_arrive_and_a_new_head_is_new(hub: Path) -> None:
    weights = publish(hub, "resnet18")
    whole, architecture = build_pretrained("resnet18")
    assert architecture == Architecture(name="resnet18", in_channels=3, num_outputs=1000)
    assert same(whole.state_dict(), weights, but=("nothing",))

    fitted, architecture = build_pretrained("resnet18", num_outputs=7)
    assert architecture == Architecture(name="resnet18", in_channels=3, num_outputs=7)
    assert same(fitted.state_dict(), weights, but=("fc.",))
    assert fitted.state_dict()["fc.weight"].shape == (7, 512)
    build(architecture).load_state_dict(fitted.state_dict())

    gray, architecture = build_pretrained("resnet18", in_channels=1, num_outputs=7)
    assert architecture == Architecture(name="resnet18", in_channels=1, num_outputs=7)
    assert same(gray.state_dict(), weights, but=("fc.", "conv1."))
    expected = weights["conv1.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(gray.state_dict()["conv1.weight"], expected)


def test_many_channels_repeat_the_mean_so_that_equal_channels_predict_alike(hub: Path) -> None:
    publish(hub, "squeezenet1_1")
    gray, five = (
        build_pretrained("squeezenet1_1", in_channels=count)[0].eval() for count in (1, 5)
    )
    images = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(gray(images), five(images.expand(2, 5, 64, 64)))


def test_a_convolution_as_head_is_replaced(hub: Path) -> None:
    weights = publish(hub, "squeezenet1_1")
    module, architecture = build_pretrained("squeezenet1_1", num_outputs=7)
    assert same(module.state_dict(), weights, but=("classifier.1.",))
    assert module.state_dict()["classifier.1.weight"].shape == (7, 512, 1, 1)
    with torch.no_grad():
        assert module.eval()(torch.rand(2, 3, 64, 64)).shape == (2, 7)
    build(architecture).load_state_dict(module.state_dict())


def test_the_last_of_several_linear_layers_is_the_head(hub: Path) -> None:
    weights = publish(hub, "mobilenet_v3_small")
    module, _ = build_pretrained("mobilenet_v3_small", num_outputs=7)
    assert same(module.state_dict(), weights, but=("classifier.3.",))
    assert module.state_dict()["classifier.3.weight"].shape == (7, 1024)


PUBLISHED = [name for name in FAMILIES if name not in {"lenet5", "zfnet", "resnet20"}]


def without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision's builders run their way with published weights, without the weights."""

    def nothing(*_: Any, **__: Any) -> dict[str, torch.Tensor]:
        return {}

    monkeypatch.setattr(WeightsEnum, "get_state_dict", nothing)
    monkeypatch.setattr(nn.Module, "load_state_dict", nothing)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_form_of_every_family_takes_a_new_head(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_weights(monkeypatch)
    with device_of(name), torch.no_grad():
        module, architecture = build_pretrained(name, in_channels=5, num_outputs=7)
        module.eval()
        assert module(torch.zeros(2, 5, *default_contract(name).size)).shape == (2, 7)
        again = build(architecture)
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    assert shapes == {key: value.shape for key, value in again.state_dict().items()}


def test_a_network_whose_weights_want_a_larger_image_builds_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_weights(monkeypatch)
    with torch.device("meta"):
        module, architecture = build_pretrained("vit_b_16", weights="IMAGENET1K_SWAG_E2E_V1")
        again = build(architecture)
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    assert shapes == {key: value.shape for key, value in again.state_dict().items()}


def test_a_loss_that_needs_more_than_the_network_returns_is_refused() -> None:
    contract = named_contract("letterbox", size=64)
    said = "needs `points` of the network, which retinanet/resnet18 does not return; leave --loss"
    for name, fault in (("retinanet/resnet18", said), ("detector/resnet18", "")):
        architecture = architecture_for(name, contract, 2)
        task = Detection(labels=("a", "b"))
        with pytest.raises(InputError, match=fault) if fault else contextlib.nullcontext():
            check_fits(architecture, 64, 64, task=task, loss="quality_focal")
