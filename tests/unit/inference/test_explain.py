"""Grad-CAM against the package `grad-cam`, and what can be explained at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eagleray.core.errors import InputError, PackageError, UnknownNameError
from eagleray.imaging import DecodedImage, named_contract
from eagleray.inference.explain import Explainer
from eagleray.models.architectures import Architecture
from eagleray.models.attributes import NumberAttribute, encode_mappings
from eagleray.models.building import build
from eagleray.models.manifest import Quantization
from eagleray.models.network import ImageNetwork
from eagleray.models.package import ModelPackage
from eagleray.registry.references import load_model
from eagleray.tasks import Binary, Multilabel, Regression, Task
from tests.support.models import DIGITS, lenet, lenet_module, small_package


def noise(package: ModelPackage, seed: int = 0) -> DecodedImage:
    height, width, channels = package.contract.shape
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return DecodedImage(pixels, width, height)


def package_of(name: str, side: int) -> ModelPackage:
    architecture = Architecture(name=name, in_channels=3, num_outputs=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build(architecture).eval()
    contract = named_contract("whole-image", size=side)
    return small_package(
        architecture=architecture, module=module, contract=contract, golden_images=()
    )


# The layers are those that grad-cam's documentation recommends, and their outputs' sizes.
@pytest.mark.parametrize(
    ("name", "side", "layer", "grid"),
    [
        ("resnet18", 96, "layer4", (3, 3)),
        ("mobilenet_v3_small", 96, "features", (3, 3)),
        ("densenet121", 96, "features", (3, 3)),  # a ReLU works in place on its output
        ("resnet20", 32, "stages", (8, 8)),
    ],
)
def test_heat_maps_equal_those_of_grad_cam(
    name: str, side: int, layer: str, grid: tuple[int, int]
) -> None:
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    package = package_of(name, side)
    explainer, image = Explainer(package), noise(package)
    network = ImageNetwork(package.build_module(), package.contract)
    pixels = torch.from_numpy(image.pixels[None]).permute(0, 3, 1, 2)
    inputs = pixels.float() * network.scale + network.offset
    reference = grad_cam.GradCAM(network.module, [network.module.get_submodule(layer)])
    for index, label in enumerate(DIGITS.labels):
        explanation = explainer.explain(image, label)
        (expected,) = reference(inputs, [targets.ClassifierOutputTarget(index)])
        assert explanation.channels.shape[1:] == grid
        np.testing.assert_allclose(explanation.heat, expected, atol=1e-4)
    assert explainer.layer == layer


def test_the_layer_may_have_its_channels_last() -> None:
    explainer = Explainer(package_of("swin_t", 64))
    package = package_of("swin_t", 64)
    assert explainer.explain(noise(package), "one").channels.shape == (768, 2, 2)


class SquareDetector(nn.Module):
    """One channel: how bright each quarter of the image is; two logits of their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.quarters = nn.Sequential(nn.AvgPool2d(16), nn.ReLU())
        self.head = nn.Linear(1, 3)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.quarters(images).mean(dim=(2, 3))
        logits: Tensor = self.head(features)
        return logits


def quarters(monkeypatch: pytest.MonkeyPatch, task: Task, weights: list[float]) -> Explainer:
    """Return the explainer of a network whose only channel is weighted as given."""
    module = SquareDetector()
    module.head = nn.Linear(1, len(weights))
    with torch.no_grad():
        module.head.weight.copy_(torch.tensor(weights)[:, None])
    package = small_package(
        task=task, architecture=lenet(len(weights)), module=lenet_module(len(weights))
    )
    monkeypatch.setattr(ModelPackage, "build_module", lambda _: module.eval())
    return Explainer(package)


def bright_corner() -> DecodedImage:
    pixels = np.zeros((32, 32, 1), np.uint8)
    pixels[:16, 16:] = 255
    return DecodedImage(pixels, 64, 32)


def test_the_evidence_is_where_it_is_in_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    explanation = quarters(monkeypatch, DIGITS, [1.0, 0.0, -1.0]).explain(bright_corner(), "zero")
    assert explanation.heat.dtype == np.float32
    assert explanation.heat.shape == (32, 32)
    assert explanation.heat[0, 31] == pytest.approx(1, abs=1e-5)
    assert explanation.heat[31, 0] == 0
    assert explanation.frame.to_original(32, 0) == (64, 0)
    assert explanation.weights == pytest.approx([0.25])  # the mean over four places


@pytest.mark.parametrize(
    ("task", "weights", "label", "is_hot"),
    [
        (DIGITS, [1.0, 0.0, -1.0], "one", False),
        (DIGITS, [1.0, 0.0, -1.0], "two", False),
        (Binary(labels=("off", "on")), [1.0], "on", True),
        (Binary(labels=("off", "on")), [1.0], "off", False),
        (Binary(labels=("off", "on")), [-1.0], "off", True),
        (Multilabel(labels=("red", "round"), thresholds=(0.5, 0.5)), [0.0, 1.0], "round", True),
        (Multilabel(labels=("red", "round"), thresholds=(0.5, 0.5)), [0.0, 1.0], "red", False),
    ],
)
def test_only_positive_evidence_for_the_label_counts(
    task: Task, weights: list[float], label: str, is_hot: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    explanation = quarters(monkeypatch, task, weights).explain(bright_corner(), label)
    assert (explanation.heat.max() > 0.99) == is_hot
    assert is_hot or not explanation.heat.any()


def test_explanations_need_labels_gradients_and_a_feature_map() -> None:
    with pytest.raises(InputError, match=r"predicts no label .*; `eagleray evaluate` shows"):
        Explainer(
            small_package(
                task=Regression(mean=0.0, std=1.0), architecture=lenet(1), module=lenet_module(1)
            )
        )
    with pytest.raises(InputError, match="vit_b_32 passes tokens to its last layer"):
        Explainer(load_model("random:vit_b_32").package)
    with pytest.raises(UnknownNameError, match="label of the model is named 'four'"):
        Explainer(small_package()).explain(noise(small_package()), "four")


def test_a_network_without_places_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    package = small_package()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 3))
    monkeypatch.setattr(ModelPackage, "build_module", lambda _: flat.eval())
    with pytest.raises(InputError, match="no layer before its last one whose output has places"):
        Explainer(package)


def test_the_explained_label_is_the_predicted_one() -> None:
    from eagleray.tasks import Prediction

    probabilities = np.array([0.2, 0.3], np.float32)
    task = Multilabel(labels=("red", "round"), thresholds=(0.5, 0.5))
    nothing = Prediction(None, 0.3, (), None, probabilities)
    assert task.explained_label(nothing) == "round"
    assert DIGITS.explained_label(Prediction("one", 0.4, ("one",), None, probabilities)) == "one"


def test_a_graph_has_no_gradients() -> None:
    package = small_package()
    quantization = Quantization(method="static", calibration_digest="0" * 64, num_images=32)
    manifest = package.manifest.model_copy(update={"quantization": quantization})
    with pytest.raises(PackageError, match="is quantized"):
        Explainer(ModelPackage(manifest, package.files))


def test_attributes_are_part_of_the_evidence() -> None:
    age = NumberAttribute(name="age", mean=40.0, std=10.0)
    architecture = lenet().model_copy(update={"num_attributes": 2})
    module = build(architecture).eval()
    torch.nn.init.normal_(module.head.answer.weight, std=1.0)  # type: ignore[union-attr, arg-type]
    package = small_package(
        attributes=(age,), architecture=architecture, module=module, golden_images=()
    )
    explainer, image = Explainer(package), noise(package)
    young, old = (
        explainer.explain(image, "two", encode_mappings([age], [{"age": years}])[0])
        for years in (1, 99)
    )
    assert explainer.layer.startswith("backbone.")
    assert (young.channels == old.channels).all()
    assert np.abs(young.weights - old.weights).max() > 1e-4
