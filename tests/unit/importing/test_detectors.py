"""Detectors of other programs: boxes and logits as by hand, and one sentence for refused files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from eagleray.core.errors import InputError
from eagleray.core.settings import Settings
from eagleray.exports.graph import onnx_graph
from eagleray.importing.job import import_network
from eagleray.importing.spec import ImportSpec
from eagleray.inference.openvino import import_openvino
from eagleray.inference.predictor import Predictor
from eagleray.inference.verification import verify_package
from eagleray.models.graph import takes_one_image
from eagleray.models.package import GRAPH_FILE, ModelPackage, write_package
from eagleray.tasks.detection.object_task import ObjectsPrediction

pytestmark = pytest.mark.numerical

LABELS = ("cat", "dog", "cow")
SIDE = 32
NUM_BINS = 5
Outputs = dict[str, tuple[int, ...]]
Arrays = dict[str, Any]


def weights_of(outputs: Outputs) -> Arrays:
    """Return the weights of the layer that makes each output of the means of the channels."""
    random = np.random.default_rng(0)
    return {
        name: random.normal(size=(3, int(np.prod(shape)))).astype(np.float32)
        for name, shape in outputs.items()
    }


def detector(
    outputs: Outputs,
    *,
    ends: dict[str, str] | None = None,
    batch: int | str = 1,
    folds_batch: bool = False,
) -> bytes:
    """Return a network whose outputs are linear in the means of an image's channels.

    `folds_batch` gives its tensors shapes on the way in which the batch is not the first length.
    """
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["means"], axes=[2, 3], keepdims=0),
    ]
    held = []
    for name, weights in weights_of(outputs).items():
        shape = outputs[name]
        held += [
            numpy_helper.from_array(weights, f"{name}_weights"),
            numpy_helper.from_array(np.asarray([1, *shape], np.int64), f"{name}_shape"),
        ]
        nodes.append(helper.make_node("MatMul", ["means", f"{name}_weights"], [f"{name}_flat"]))
        last = f"{name}_flat"
        if folds_batch:
            held.append(numpy_helper.from_array(np.asarray(shape, np.int64), f"{name}_folded"))
            nodes.append(helper.make_node("Reshape", [last, f"{name}_folded"], [f"{name}_two"]))
            last = f"{name}_two"
        end = (ends or {}).get(name, "Identity")
        nodes.append(helper.make_node("Reshape", [last, f"{name}_shape"], [f"{name}_raw"]))
        nodes.append(helper.make_node(end, [f"{name}_raw"], [name]))
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        held,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    content: bytes = model.SerializeToString()
    return content


def by_hand(outputs: Outputs, pixels: Any) -> Arrays:
    """Compute the raw outputs for images (N, H, W, 3)."""
    means = (pixels.astype(np.float64) / 255).mean(axis=(1, 2))
    return {
        name: (means @ weights).reshape(len(pixels), *outputs[name])
        for name, weights in weights_of(outputs).items()
    }


def sigmoid(values: Any) -> Any:
    return 1 / (1 + np.exp(-values))


def softmax(values: Any) -> Any:
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def corners(rows: Any) -> Any:
    x, y, width, height = np.moveaxis(rows, -1, 0)
    return np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=-1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path / "home")
    settings.make_home()
    return settings


def imported(
    content: bytes, settings: Settings, decoder: str | None, **fields: Any
) -> ModelPackage:
    file = settings.home_folder / "network.onnx"
    file.write_bytes(content)
    known = {"labels": LABELS, "mean": "0", "std": "255", "stretch": True, "task": "detection"}
    spec = ImportSpec.make(
        {"file": str(file), "name": "found", "decoder": decoder, **known, **fields}
    )
    return import_network(spec, settings)


PIXELS = np.random.default_rng(1).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
PIXELS[1] //= 3  # images whose means differ
PIXELS[2, :, :, 0] //= 5


def run(package: ModelPackage) -> Arrays:
    predictor = Predictor(package, precision="float32")
    outputs: Any = predictor.passes.run(torch.from_numpy(PIXELS))
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def assert_same(package: ModelPackage, boxes: Any, probabilities: Any) -> None:
    found = run(package)
    np.testing.assert_allclose(found["boxes"], boxes, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sigmoid(found["logits"]), probabilities, atol=1e-5)


# --- the decoders -----------------------------------------------------------------------------

NANODET: Outputs = {
    "s8": (16, 3),
    "d8": (16, 4 * NUM_BINS),
    "d16": (4, 4 * NUM_BINS),
    "s16": (4, 3),
    "s32": (1, 3),
    "d32": (1, 4 * NUM_BINS),
}
NANODET_ENDS = dict.fromkeys(("s8", "s16", "s32"), "Sigmoid")


def test_nanodet_has_distances_from_the_centres_of_cells(settings: Settings) -> None:
    package = imported(detector(NANODET, ends=NANODET_ENDS), settings, "nanodet")
    raw = by_hand(NANODET, PIXELS)
    boxes = []
    for stride in (8, 16, 32):
        side = SIDE // stride
        distances = raw[f"d{stride}"].reshape(3, side * side, 4, NUM_BINS)
        left, top, right, bottom = np.moveaxis(softmax(distances) @ np.arange(NUM_BINS), 2, 0)
        for cell in range(side * side):
            x, y = (cell % side + 0.5) * stride, (cell // side + 0.5) * stride
            edges = (x - left[:, cell] * stride, y - top[:, cell] * stride)
            others = (x + right[:, cell] * stride, y + bottom[:, cell] * stride)
            boxes.append(np.stack([*edges, *others], axis=1))
    scores = np.concatenate([sigmoid(raw[name]) for name in ("s8", "s16", "s32")], axis=1)
    assert_same(package, np.stack(boxes, axis=1), scores)


@pytest.mark.parametrize("form", ["columns", "rows", "objectness"])
def test_yolo_has_centres_and_sizes_in_pixels(settings: Settings, form: str) -> None:
    shape = {"columns": (7, 20), "rows": (20, 7), "objectness": (20, 8)}[form]
    outputs: Outputs = {"y": shape}
    package = imported(detector(outputs, ends={"y": "Sigmoid"}), settings, "yolo")
    rows = sigmoid(by_hand(outputs, PIXELS)["y"])
    rows = rows.swapaxes(1, 2) if form == "columns" else rows
    scores = rows[..., 4:] if form != "objectness" else rows[..., 4:5] * rows[..., 5:]
    assert_same(package, corners(rows[..., :4]), scores)


def test_yolo_may_give_logits(settings: Settings) -> None:
    outputs: Outputs = {"y": (20, 8)}
    package = imported(detector(outputs), settings, "yolo", scores="logits")
    rows = by_hand(outputs, PIXELS)["y"]
    scores = sigmoid(rows[..., 4:5]) * sigmoid(rows[..., 5:])
    assert_same(package, corners(rows[..., :4]), scores)


def test_logits_of_a_detector_that_are_promised_as_probabilities_are_refused(
    settings: Settings,
) -> None:
    with pytest.raises(InputError, match=r"gives scores .*(down|up) to .*; name --scores logits"):
        imported(detector({"y": (20, 7)}), settings, "yolo")


@pytest.mark.parametrize(("num_scores", "end"), [(3, "Sigmoid"), (4, "Softmax")])
def test_probabilities_that_are_promised_as_logits_are_refused(
    settings: Settings, num_scores: int, end: str
) -> None:
    content = detector({"logits": (9, num_scores), "boxes": (9, 4)}, ends={"logits": end})
    with pytest.raises(InputError, match=r"scores that are all from 0 to 1.*--scores probabilit"):
        imported(content, settings, "detr")
    package = imported(content, settings, "detr", scores="probabilities")
    assert package.task.labels == LABELS


@pytest.mark.parametrize("num_scores", [3, 4])
def test_detr_has_relative_boxes(settings: Settings, num_scores: int) -> None:
    outputs: Outputs = {"hidden": (9, 16), "logits": (9, num_scores), "pred_boxes": (9, 4)}
    package = imported(detector(outputs, ends={"pred_boxes": "Sigmoid"}), settings, "detr")
    raw = by_hand(outputs, PIXELS)
    scores = sigmoid(raw["logits"]) if num_scores == 3 else softmax(raw["logits"])[..., :3]
    assert_same(package, corners(sigmoid(raw["pred_boxes"])) * SIDE, scores)
    assert package.task.settings()["non-maximum suppression"] == "IoU above 1"


def test_the_activation_of_detr_can_be_named(settings: Settings) -> None:
    outputs: Outputs = {"logits": (9, 4), "boxes": (9, 4)}
    package = imported(detector(outputs), settings, "detr", activation="sigmoid")
    raw = by_hand(outputs, PIXELS)
    assert_same(package, corners(raw["boxes"]) * SIDE, sigmoid(raw["logits"][..., :3]))


# --- batches ----------------------------------------------------------------------------------


def test_a_file_of_one_image_takes_any_number(settings: Settings) -> None:
    package = imported(detector({"y": (20, 7)}), settings, "yolo", scores="logits")
    assert not takes_one_image(package.files[GRAPH_FILE])


def test_where_no_batch_can_be_made_images_run_one_by_one(settings: Settings) -> None:
    outputs: Outputs = {"y": (20, 7)}
    content = detector(outputs, folds_batch=True)
    package = imported(content, settings, "yolo", scores="logits")
    assert takes_one_image(package.files[GRAPH_FILE])
    rows = by_hand(outputs, PIXELS)["y"]
    assert_same(package, corners(rows[..., :4]), sigmoid(rows[..., 4:]))


def test_a_file_of_two_images_whose_batch_is_folded_is_refused(settings: Settings) -> None:
    content = detector({"y": (20, 7)}, folds_batch=True, batch=2)
    with pytest.raises(InputError, match=r"a fixed number of images at a time, and a batch can"):
        imported(content, settings, "yolo", scores="logits")


# --- the whole package ------------------------------------------------------------------------


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def test_a_detector_is_healthy_and_its_objects_lie_in_the_original(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden" / "1.png").write_bytes(png(1))
    package = imported(
        detector(NANODET, ends=NANODET_ENDS),
        settings,
        "nanodet",
        golden=(str(tmp_path / "golden"),),
        stretch=False,
        letterbox=True,
        fill=0,
        threshold=0.3,
    )
    write_package(package, str(tmp_path / "package"))
    report = verify_package(str(tmp_path / "package"))
    assert report.passed
    assert report.golden is not None
    assert report.golden.num_images == 1
    (outcome,) = Predictor(package, precision="float32").predict([png(1)])
    assert outcome.prediction is not None
    assert isinstance(outcome.prediction, ObjectsPrediction)
    assert outcome.prediction.objects
    for one in outcome.prediction.objects:
        assert 0 <= one.x <= one.x + one.width <= 60.001
        assert 0 <= one.y <= one.y + one.height <= 40.001
    assert package.contract.resize.model_dump() == {
        "mode": "letterbox",
        "height": SIDE,
        "width": SIDE,
        "fill": 0,
    }


def test_an_export_of_an_imported_detector_has_boxes_and_scores(settings: Settings) -> None:
    package = imported(detector(NANODET, ends=NANODET_ENDS), settings, "nanodet")
    graph = onnx_graph(package)
    assert [one.name for one in graph.graph.output] == ["boxes", "scores"]
    core = import_openvino().Core()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    results = core.compile_model(core.read_model(graph.SerializeToString()), "CPU", options)(PIXELS)
    found = run(package)
    np.testing.assert_allclose(results["boxes"], found["boxes"], atol=1e-5)
    np.testing.assert_allclose(results["scores"], sigmoid(found["logits"]), atol=1e-6)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "decoder", "message"),
    [
        (
            {"y": (20, 7)},
            "nanodet",
            r"its outputs are 'y' \(1, 20, 7\), and nanodet reads for each .* name --decoder yolo",
        ),
        ({"s": (16, 3)}, "nanodet", r"'s' \(1, 16, 3\), and nanodet reads"),
        ({"s": (16, 3), "d": (16, 6)}, "nanodet", r"with C = 3 labels; no decoder reads them with"),
        ({"s": (16, 5), "d": (16, 12)}, "nanodet", r"with C = 3 labels; name 5 --labels"),
        ({"y": (20, 9)}, "yolo", r"'y' \(1, 20, 9\), and yolo reads one .* name 4 or 5 --labels"),
        ({"y": (7, 8)}, "yolo", r"'y' \(1, 7, 8\), and yolo reads one output"),
        ({"logits": (9, 3), "boxes": (8, 4)}, "detr", r"'boxes' \(1, 8, 4\), and detr reads"),
        ({"one": (9, 4), "two": (9, 4)}, "detr", r"'two' \(1, 9, 4\), and detr reads"),
    ],
)
def test_outputs_that_a_decoder_cannot_read_are_named(
    settings: Settings, outputs: Outputs, decoder: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        imported(detector(outputs), settings, decoder)


def test_an_output_whose_shape_is_open_is_refused(settings: Settings) -> None:
    content = detector({"y": (20, 7)})
    model = onnx.ModelProto.FromString(content)
    model.graph.node.insert(0, helper.make_node("NonZero", ["x"], ["places"]))
    model.graph.node[-1].CopyFrom(helper.make_node("Cast", ["places"], ["y"], to=1))
    with pytest.raises(InputError, match=r"the shape of its output 'y' \(4, \?\) is not known"):
        imported(model.SerializeToString(), settings, "yolo")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stretch": False}, "a detector takes the whole image; name stretch or letterbox"),
        ({"letterbox": True}, "stretch and letterbox exclude each other"),
        ({"decoder": None}, "a detector needs a decoder; name nanodet, yolo or detr"),
        ({"task": "multiclass"}, "a decoder yolo is of the task detection"),
        ({"threshold": 2}, "threshold"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    settings: Settings, fields: dict[str, Any], message: str
) -> None:
    known = {"decoder": "yolo", **fields}
    with pytest.raises(InputError, match=message):
        imported(detector({"y": (20, 7)}), settings, **known)
