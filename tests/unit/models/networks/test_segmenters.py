"""Networks of pixels on the feature maps of classifiers."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch.nn import functional

from eagleray.core.errors import InputError
from eagleray.inference.eager import fuse_and_cast
from eagleray.inference.predictor import Predictor
from eagleray.models.architectures import Architecture, default_contract
from eagleray.models.building import build, check_fits, find_head, load_backbone, replace_head
from eagleray.models.graph_export import export_graph, require_graph_outputs
from eagleray.models.networks.segmenters import FullyConvolutional
from eagleray.models.package import Lineage, create_package
from eagleray.tasks import Detection, Multiclass, Semantic
from eagleray.tasks.segmentation.class_maps import decode_mask
from eagleray.tasks.segmentation.semantic import MapPrediction

pytestmark = pytest.mark.numerical

TASK = Semantic(labels=("background", "cat", "dog"))


def network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(Architecture(name=name, num_outputs=3)).eval()


@pytest.mark.parametrize(
    "name", ["unet/resnet18", "unet/resnet20", "fcn8s/resnet18", "fcn32s/vgg11"]
)
@pytest.mark.parametrize("size", [(64, 64), (75, 100)])
def test_every_pixel_has_logits(name: str, size: tuple[int, int]) -> None:
    module = network(name)
    with torch.no_grad():
        assert module(torch.randn(2, 3, *size)).shape == (2, 3, *size)
    assert find_head(module, 3) == "head"


def test_other_labels_replace_the_last_layer_only() -> None:
    module = network("fcn8s/resnet18")
    before = {name: value.shape for name, value in module.state_dict().items()}
    replace_head(module, 3, 5)
    after = {name: value.shape for name, value in module.state_dict().items()}
    assert {name for name in after if after[name] != before[name]} == {"head.weight", "head.bias"}
    with torch.no_grad():
        assert module(torch.randn(1, 3, 64, 64)).shape == (1, 5, 64, 64)


def test_transposed_convolutions_begin_as_bilinear_interpolation() -> None:
    module = network("fcn32s/resnet18")
    assert isinstance(module, FullyConvolutional)
    features = torch.randn(1, 32, 6, 6)
    with torch.no_grad():
        found = module.enlarge[0](features)
    expected = functional.interpolate(features, scale_factor=32, mode="bilinear")
    inner = slice(32, -32)  # at the edges, pixels outside are 0
    torch.testing.assert_close(found[..., inner, inner], expected[..., inner, inner])


def test_the_backbone_takes_the_weights_of_its_classifier() -> None:
    torch.manual_seed(1)
    classifier = build(Architecture(name="resnet20", num_outputs=10))
    module = network("unet/resnet20")
    load_backbone(module, classifier.state_dict())
    for name, value in module.get_submodule("backbone").state_dict().items():
        assert torch.equal(value, classifier.state_dict()[name])


@pytest.mark.parametrize("name", ["unet/resnet18", "fcn8s/resnet18"])
def test_normalisation_of_the_backbone_is_fused(name: str) -> None:
    module = network(name)
    images = torch.randn(1, 3, 64, 64)
    fused = fuse_and_cast(module, None)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in fused.modules())
    with torch.no_grad():
        torch.testing.assert_close(fused(images), module(images), rtol=1e-4, atol=1e-4)


def test_the_default_contract_shows_the_whole_image() -> None:
    contract = default_contract("unet/resnet18")
    assert contract.keeps_whole_image
    assert contract.shape == (256, 256, 3)
    assert contract.mean == default_contract("resnet18").mean


def test_a_backbone_without_these_feature_maps_is_refused() -> None:
    with pytest.raises(InputError, match=r"strides 1, 2, 4, and 8, 16, 32 are needed; .* unet/res"):
        build(Architecture(name="fcn8s/resnet20"))
    with pytest.raises(InputError, match="vit_b_16 cannot be a backbone"):
        build(Architecture(name="unet/vit_b_16"))


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        (
            "resnet20",
            TASK,
            "resnet20 returns one row of logits for each image, and a semantic model needs logits "
            "of every pixel; name another network, such as unet/resnet20.",
        ),
        (
            "unet/resnet20",
            Multiclass(labels=("a", "b", "c")),
            "unet/resnet20 returns logits of every pixel, and a multiclass model needs one row of "
            "logits for each image; name another network, such as resnet18.",
        ),
        (
            "resnet20",
            Detection(labels=("a", "b", "c")),
            "resnet20 returns one row of logits for each image, and a detection model needs the "
            "tensors boxes, logits; name another network, such as detector/resnet20.",
        ),
        (
            "detector/resnet20",
            TASK,
            "detector/resnet20 returns the tensors boxes, logits, points, and a semantic model "
            "needs logits of every pixel; name another network, such as unet/resnet18.",
        ),
    ],
)
def test_a_network_of_another_task_is_refused(name: str, task: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_fits(Architecture(name=name, num_outputs=3), 64, 64, task=task)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_a_network_of_the_task_is_taken() -> None:
    check_fits(Architecture(name="unet/resnet20", num_outputs=3), 64, 64, task=TASK)
    check_fits(Architecture(name="fcn32s/vgg11", num_outputs=3), 256, 320, task=TASK)


def test_a_package_checks_its_golden_images_and_becomes_a_graph() -> None:
    contract = default_contract("unet/resnet20", size=32)
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 40, 3), np.uint8)).save(
        content, "png"
    )
    architecture = Architecture(name="unet/resnet20", num_outputs=3)
    package = create_package(
        name="pets",
        task=TASK,
        architecture=architecture,
        contract=contract,
        module=network("unet/resnet20"),
        lineage=Lineage.now(),
        golden_images=[content.getvalue()],
    )
    assert len(package.golden.images[0].outputs) == 3 * 64
    predictor = Predictor(package, engine="eager", precision="float32", device="cpu")
    assert predictor.check_golden().healthy
    (outcome,) = predictor.predict([content.getvalue()])
    assert isinstance(outcome.prediction, MapPrediction)
    assert decode_mask(outcome.prediction.mask).shape == (20, 40)
    require_graph_outputs(package)
    (output,) = onnx.load_from_string(export_graph(package)).graph.output
    assert [one.dim_value for one in output.type.tensor_type.shape.dim][1:] == [3, 32, 32]
