"""Networks of torchvision with published weights: the same results as in torchvision.

The weights here are random, and lie where torchvision would download the published ones to.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.imaging.contract import IMAGENET_MEAN, IMAGENET_STD
from eagleray.inference.predictor import Predictor
from eagleray.models.architectures import Architecture, default_contract, require_architecture
from eagleray.models.building import build, build_on_meta
from eagleray.models.networks.features import features_of
from eagleray.models.networks.published_two_stage import PublishedFasterRCNN
from eagleray.models.package import create_package
from eagleray.models.published import find_published, published_names, require_trainable
from eagleray.registry.references import load_model
from eagleray.tasks import Detection, Semantic
from eagleray.tasks.detection.object_task import ObjectsPrediction
from tests.support.images import Pixels
from tests.support.models import LINEAGE
from tests.support.published import hub_folder, noise, objects_of_torchvision, publish_network

pytestmark = pytest.mark.numerical

_QUICK = ("ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn")
DETECTORS = [
    name if name in _QUICK else pytest.param(name, marks=pytest.mark.long)
    for name in published_names()
    if find_published(name).task is Detection  # type: ignore[union-attr]
]
SEGMENTERS = [
    name if name.startswith("lraspp") else pytest.param(name, marks=pytest.mark.long)
    for name in published_names()
    if find_published(name).task is Semantic  # type: ignore[union-attr]
]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return hub_folder(tmp_path, monkeypatch)


def picture_for(name: str, hub: Path) -> Pixels:
    """Publish random weights of a network; return a picture of the size of its input.

    Networks that take any size see a small picture, whose sides are no multiples of all strides.
    """
    side = default_contract(name).size[0] if name.startswith("ssd") else 288
    pixels = noise((side, side))
    publish_network(hub, name, pixels)
    return pixels


def ours(name: str, pixels: Pixels) -> tuple[Tensor, Any]:
    """Return what the network and its task make of a picture, and the task.

    Layers compute in double precision: rounding, which random weights amplify, hides no fault.
    """
    package = load_model(f"pretrained:{name}").package
    contract = package.contract
    module = package.build_module().double()
    if isinstance(module, PublishedFasterRCNN):
        module.roi_heads.float()  # regions are cut out in single precision
    with torch.inference_mode():
        outputs = module(normalized(pixels, contract.mean, contract.std))
        return package.task.activate(outputs), package.task


def normalized(pixels: Pixels, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return a picture as the input of a network (1, 3, H, W), in double precision."""
    image = torch.from_numpy(pixels).permute(2, 0, 1).double() / 255
    shift, scale = (torch.tensor(one, dtype=torch.float64)[:, None, None] for one in (mean, std))
    return ((image - shift) / scale)[None]


def theirs(name: str, pixels: Pixels, task: Detection) -> npt.NDArray[np.float64]:
    """Return the objects that torchvision finds, with the settings of a task."""
    prefix = "box_" if name.startswith("faster") else ""
    options = {
        f"{prefix}score_thresh": task.min_score,
        f"{prefix}detections_per_img": 20_000,  # also of the categories without a label
    }
    if name.startswith("ssd"):
        options["topk_candidates"] = 1000  # of each label
    else:
        options |= {"min_size": pixels.shape[0], "max_size": pixels.shape[0]}
    categories = torchvision.models.get_model_weights(name).DEFAULT.meta["categories"]
    rows = []
    for *box, score, category in objects_of_torchvision(name, pixels, **options):
        label = categories[int(category)]
        if label in task.labels:
            rows.append((*box, score, float(task.labels.index(label))))
    return np.array(rows[: task.max_objects])


def require_same(
    found: npt.NDArray[Any], expected: npt.NDArray[Any], *, pixels: float, score: float
) -> None:
    """Check that objects are the same; those of equal scores may change places."""
    assert len(found) == len(expected) > 50
    assert len(set(expected[:, 5])) > 2
    np.testing.assert_allclose(found[:, 4], expected[:, 4], rtol=0, atol=score)
    order = [nearest(row, found) for row in expected]
    assert sorted(order) == list(range(len(found)))
    np.testing.assert_array_equal(found[order, 5], expected[:, 5])
    np.testing.assert_allclose(found[order, :4], expected[:, :4], rtol=0, atol=pixels)


def nearest(row: npt.NDArray[Any], rows: npt.NDArray[Any]) -> int:
    """Return the place of the row of the same label whose box is nearest."""
    distances = np.abs(rows[:, :4] - row[:4]).max(axis=1) + 1e6 * (rows[:, 5] != row[5])
    return int(distances.argmin())


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_finds_what_it_finds_in_torchvision(name: str, hub: Path) -> None:
    pixels = picture_for(name, hub)
    (rows,), task = ours(name, pixels)
    found = rows[rows[:, 4] > 0].numpy()
    require_same(found, theirs(name, pixels, task), pixels=1e-3, score=1e-5)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_a_segmenter_finds_the_classes_that_it_finds_in_torchvision(name: str, hub: Path) -> None:
    pixels = picture_for(name, hub)
    (probabilities,), task = ours(name, pixels)
    assert isinstance(task, Semantic)
    assert (task.labels[0], task.labels[15], len(task.labels)) == ("background", "person", 21)
    network = torchvision.models.get_model(name, weights="DEFAULT").eval().double()
    with torch.inference_mode():
        (expected,) = network(normalized(pixels, IMAGENET_MEAN, IMAGENET_STD))["out"].softmax(dim=1)
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-6)
    assert len(expected.argmax(dim=0).unique()) > 5


def test_a_predictor_finds_in_a_file_what_torchvision_finds_in_its_pixels(hub: Path) -> None:
    name = "ssdlite320_mobilenet_v3_large"
    pixels = picture_for(name, hub)
    package = load_model(f"pretrained:{name}").package
    assert isinstance(package.task, Detection)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    predictor = Predictor(package, engine="eager", precision="float32")
    (outcome,) = predictor.predict([file.getvalue()])
    assert isinstance(outcome.prediction, ObjectsPrediction)
    found = outcome.prediction.detections
    require_same(found, theirs(name, pixels, package.task), pixels=0.02, score=1e-4)


@pytest.mark.parametrize("name", published_names())
def test_published_weights_fit_what_is_built(name: str) -> None:
    network = find_published(name)
    assert network is not None
    entry = torchvision.models.get_model_weights(name).DEFAULT
    task = network.make_task(entry.meta["categories"])
    built = build_on_meta(Architecture(name=name, num_outputs=task.num_outputs))
    with torch.device("meta"):
        options = {"num_classes": len(entry.meta["categories"])}
        theirs = torchvision.models.get_model(name, weights=None, weights_backbone=None, **options)
    shapes = {key: value.shape for key, value in built.state_dict().items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
    normalizations = [one for one in theirs.modules() if isinstance(one, nn.BatchNorm2d)]
    fixed = sum(one.numel() for layer in normalizations for one in layer.parameters())
    more = entry.meta["num_params"] - sum(one.numel() for one in theirs.parameters())
    assert more == -fixed or more >= 0  # published as fixed values, or with an auxiliary head


def test_the_labels_are_those_of_coco_and_the_settings_those_of_torchvision() -> None:
    for name in published_names():
        network = find_published(name)
        assert network is not None
        require_architecture(network.like)
        entry = torchvision.models.get_model_weights(name).DEFAULT
        task = network.make_task(entry.meta["categories"])
        if isinstance(task, Detection):
            assert len(task.labels) == 80
            assert (task.labels[0], task.labels[79]) == ("person", "toothbrush")
            theirs = torchvision.models.get_model(name, weights=None, weights_backbone=None)
            part = getattr(theirs, "roi_heads", theirs)
            assert task.max_overlap == part.nms_thresh
            assert task.max_objects == part.detections_per_img
            assert task.min_score == max(part.score_thresh, 0.01)
            contract = default_contract(name)
            assert contract.mean == tuple(theirs.transform.image_mean)
            assert contract.std == tuple(theirs.transform.image_std)


def test_weights_that_cannot_be_fetched_are_one_sentence(hub: Path) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        load_model("pretrained:fcos_resnet50_fpn")
    assert "'fcos_resnet50_fpn' cannot be fetched from https://download.pyt" in str(caught.value)
    assert "no network" in str(caught.value)


def test_a_reference_without_weights_names_the_entries(hub: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"'COCO_V9'.*COCO_V1"):
        load_model("pretrained:ssdlite320_mobilenet_v3_large/COCO_V9")


def test_random_weights_have_the_labels_of_the_published_ones() -> None:
    package = load_model("random:ssdlite320_mobilenet_v3_large").package
    assert package.task.name == "detection"
    assert len(package.task.labels) == 80
    again = package.build_module()
    with torch.inference_mode():
        found = again(torch.zeros(1, 3, 320, 320))
    assert found["logits"].shape == (1, 3234, 80)


def test_boxes_lie_within_inputs_of_any_size() -> None:
    torch.manual_seed(0)
    module = build(Architecture(name="fcos_resnet50_fpn", num_outputs=80)).eval()
    with torch.inference_mode():
        boxes = module(torch.randn(1, 3, 100, 70))["boxes"]
    assert boxes[..., 0::2].max() == 70
    assert boxes[..., 1::2].max() == 100
    assert boxes.min() == 0


@pytest.mark.parametrize(
    ("name", "has_weights", "said"),
    [
        ("fasterrcnn_resnet50_fpn", True, "cannot be trained; name fasterrcnn/resnet50 instead."),
        ("ssd300_vgg16", True, "cannot be trained; name ssdlite/vgg16 instead."),
        ("fcos_resnet50_fpn", False, "add --pretrained or a parent, or name fcos/resnet50 to"),
    ],
)
def test_what_cannot_be_trained_names_what_can(name: str, has_weights: bool, said: str) -> None:
    with pytest.raises(InputError) as caught:
        require_trainable(name, Detection(labels=("cell",)), has_weights=has_weights)
    assert said in str(caught.value)


def test_what_can_be_trained_is_accepted() -> None:
    task = Detection(labels=("cell",))
    for name in ("fcos_resnet50_fpn", "deeplabv3_resnet50", "resnet18", "retinanet/resnet18"):
        require_trainable(name, task, has_weights=True)
    for name in ("resnet18", "deeplabv3_resnet50"):  # the latter is of another task
        require_trainable(name, task, has_weights=False)


def test_features_of_a_detector_are_refused_in_one_sentence() -> None:
    name = "fcos_resnet50_fpn"
    architecture = Architecture(name=name, num_outputs=2)
    package = create_package(
        name="shapes",
        task=Detection(labels=("disc", "square")),
        architecture=architecture,
        contract=default_contract(name, size=64),
        module=build(architecture).eval(),
        lineage=LINEAGE,
    )
    with pytest.raises(InputError, match="features of fcos_resnet50_fpn cannot be taken"):
        features_of(package)
