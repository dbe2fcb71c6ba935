"""Networks of other programs: the same outputs as by hand, and one sentence for what is refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from eagleray.core.errors import InputError, JobFailedError, PackageError
from eagleray.core.settings import Settings
from eagleray.importing.job import import_network
from eagleray.importing.spec import ImportSpec
from eagleray.inference.predictor import Predictor
from eagleray.inference.verification import verify_package
from eagleray.models.cost import manifest_cost
from eagleray.models.package import ModelPackage, read_package, write_package

pytestmark = pytest.mark.numerical

LABELS = ("red", "green", "blue")
MEAN, STD = (10.0, 20.0, 30.0), (100.0, 110.0, 120.0)
WEIGHTS = np.asarray([[2, -1, 0.5], [0, 3, -2], [1, 1, 1]], np.float32)
SIDE = 8


def color_network(
    *,
    layout: str = "nchw",
    batch: int | str = "n",
    end: str | None = None,
    flatten: str = "Flatten",
    num_outputs: int = 3,
    extra: Callable[[Any], None] | None = None,
) -> bytes:
    """Return a network of the mean of each channel, and of a linear layer."""
    lengths = [batch, 3, SIDE, SIDE] if layout == "nchw" else [batch, SIDE, SIDE, 3]
    axes = [2, 3] if layout == "nchw" else [1, 2]
    shape = numpy_helper.from_array(np.asarray([1, 3], np.int64), "shape")
    weights = numpy_helper.from_array(WEIGHTS[:, :num_outputs].copy(), "weights")
    nodes = [helper.make_node("ReduceMean", ["x"], ["means"], axes=axes, keepdims=1)]
    if flatten == "Flatten":
        nodes.append(helper.make_node("Flatten", ["means"], ["flat"]))
    else:
        nodes.append(helper.make_node("Reshape", ["means", "shape"], ["flat"]))
    last = "y" if end is None else "scores"
    nodes.append(helper.make_node("MatMul", ["flat", "weights"], [last]))
    if end is not None:
        nodes.append(helper.make_node(end, ["scores"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "colors",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, lengths)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, num_outputs])],
        [weights, shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    if extra is not None:
        extra(model)
    content: bytes = model.SerializeToString()
    return content


def image(seed: int, side: int = SIDE) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def expected_scores(content: bytes, order: tuple[int, ...] = (0, 1, 2)) -> Any:
    """Compute the network's output by hand: channels in an order, then mean and deviation."""
    pixels = np.asarray(Image.open(io.BytesIO(content)), np.float64)[..., list(order)]
    return ((pixels - MEAN) / STD).mean(axis=(0, 1)) @ WEIGHTS


def softmax(scores: Any) -> Any:
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path / "home")
    settings.make_home()
    return settings


def imported(content: bytes, settings: Settings, **fields: Any) -> ModelPackage:
    file = settings.home_folder / "network.onnx"
    file.write_bytes(content)
    known = {"labels": LABELS, "mean": "10,20,30", "std": "100,110,120", "stretch": True}
    spec = ImportSpec.make({"file": str(file), "name": "colors", **known, **fields})
    return import_network(spec, settings)


def probabilities(package: ModelPackage, *contents: bytes) -> Any:
    predictor = Predictor(package, precision="float32")
    rows = []
    for outcome in predictor.predict(contents):
        assert outcome.prediction is not None
        rows.append(outcome.prediction.probabilities)
    return np.stack(rows)


@pytest.mark.parametrize(
    ("network", "fields"),
    [
        ({}, {}),
        ({"layout": "nhwc"}, {}),
        ({"end": "Softmax"}, {}),
        ({"batch": 1, "flatten": "Reshape"}, {}),
        ({"batch": 1, "end": "Softmax"}, {"scores": "probabilities"}),
    ],
    ids=["logits", "nhwc", "softmax", "batch of one", "named probabilities"],
)
def test_an_imported_network_predicts_what_it_did(
    settings: Settings, network: dict[str, Any], fields: dict[str, Any]
) -> None:
    package = imported(color_network(**network), settings, **fields)
    contents = [image(seed) for seed in range(5)]
    expected = np.stack([softmax(expected_scores(content)) for content in contents])
    np.testing.assert_allclose(probabilities(package, *contents), expected, atol=1e-5)


def test_blue_may_come_first(settings: Settings) -> None:
    package = imported(color_network(), settings, colors="bgr")
    content = image(1)
    expected = softmax(expected_scores(content, (2, 1, 0)))
    np.testing.assert_allclose(probabilities(package, content)[0], expected, atol=1e-5)
    assert package.contract.mean == pytest.approx([30 / 255, 20 / 255, 10 / 255])


@pytest.mark.parametrize("end", [None, "Sigmoid"])
def test_a_binary_network_gives_the_second_label(settings: Settings, end: str | None) -> None:
    network = color_network(num_outputs=1, end=end)
    package = imported(network, settings, task="binary", labels=("no", "yes"))
    content = image(2)
    score = expected_scores(content)[0]
    positive = 1 / (1 + np.exp(-score))
    found = probabilities(package, content)[0]
    np.testing.assert_allclose(found, [1 - positive, positive], atol=1e-5)


def test_a_regression_gives_its_value(settings: Settings) -> None:
    network = color_network(num_outputs=1)
    package = imported(network, settings, task="regression", labels=())
    (outcome,) = Predictor(package, precision="float32").predict([image(3)])
    assert outcome.prediction is not None
    assert outcome.prediction.value == pytest.approx(expected_scores(image(3))[0], abs=1e-4)


def test_the_package_is_read_verified_and_healthy(settings: Settings, tmp_path: Path) -> None:
    golden = tmp_path / "golden"
    golden.mkdir()
    for seed in range(3):
        (golden / f"{seed}.png").write_bytes(image(seed, side=20))
    content = color_network(end="Softmax")
    package = imported(content, settings, golden=(str(golden),))
    write_package(package, str(tmp_path / "package"))
    again = read_package(str(tmp_path / "package"), expected_digest=package.digest)
    report = verify_package(str(tmp_path / "package"))
    assert report.passed
    assert report.golden is not None
    assert (report.golden.num_images, len(again.golden.images)) == (3, 3)
    assert manifest_cost(again.manifest).parameters == WEIGHTS.size + 2  # and the unused shape
    assert again.manifest.facts["its outputs"] == "probabilities"
    with pytest.raises(PackageError, match="has a graph of another program and no weights"):
        again.build_module()
    with pytest.raises(InputError, match="eager runs no imported models"):
        Predictor(again, engine="eager")


def test_a_file_of_labels_is_read(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("red\ngreen\n\nblue\n")
    package = imported(color_network(), settings, labels=(str(tmp_path / "labels.txt"),))
    assert package.task.labels == LABELS


def test_unused_operator_sets_are_forgotten(settings: Settings) -> None:
    def add(model: Any) -> None:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    assert imported(color_network(extra=add), settings).task.labels == LABELS


# --- what is refused --------------------------------------------------------------------------


def _foreign(model: Any) -> None:
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    model.graph.node[0].domain = "com.evil"


def _external(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def _loop(model: Any) -> None:
    model.graph.node.append(helper.make_node("Loop", ["", ""], ["z"]))


def _second_output(model: Any) -> None:
    model.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["n", 3]))


def _second_input(model: Any) -> None:
    model.graph.input.append(helper.make_tensor_value_info("age", TensorProto.FLOAT, ["n", 1]))


def _huge(model: Any) -> None:
    shape = numpy_helper.from_array(np.asarray([1, 1, 2**20, 2**20], np.int64), "large")
    model.graph.initializer.append(shape)
    model.graph.node.append(helper.make_node("ConstantOfShape", ["large"], ["z"]))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (_foreign, "it uses operators of 'com.evil'"),
        (_external, "the data of 'weights' are outside of the file"),
        (_loop, "it has control flow"),
        (
            _second_output,
            r"it has 'y' \(\?, 3\), 'flat' \(\?, 3\) as outputs, .*name --task detection, sem",
        ),
        (_second_input, r"it has 'x' \(\?, 3, 8, 8\), 'age' \(\?, 1\) as inputs, where one of im"),
    ],
)
def test_graphs_that_are_more_than_a_network_are_refused(
    settings: Settings, extra: Callable[[Any], None], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        imported(color_network(extra=extra), settings)


def test_a_graph_that_makes_impossible_tensors_is_refused(settings: Settings) -> None:
    with pytest.raises(PackageError, match=r"numbers, 268,435,456 is the limit"):
        imported(color_network(extra=_huge), settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is not an ONNX file"),
        (b"no onnx at all", "it is not an ONNX file"),
        (color_network()[:-30], "it is not an ONNX file"),
    ],
)
def test_other_files_are_refused(settings: Settings, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        imported(content, settings)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"labels": ("a", "b")},
            r"has 3 values for an image, and the task needs 2; name as many --",
        ),
        ({"labels": ("a", "a", "b")}, r"The labels are refused: .*"),
        ({"labels": ()}, r"A model of the task multiclass needs --labels: name a file"),
        ({"task": "regression"}, r"--labels have no meaning for the task regression; leave"),
        (
            {"task": "regression", "labels": ()},
            r"has 3 values for an image, and the task needs 1; name another --task",
        ),
        (
            {"task": "binary", "labels": ("a", "b")},
            r"has 3 values for an image, and the task needs 1; name another --task",
        ),
        (
            {"labels": (",".join(f"label {number}" for number in range(100)),)},
            r"has 3 values for an image, and the task needs 100; name as many --labels",
        ),
        ({"layout": "nhwc"}, r"By --layout nhwc the network takes 8 channels, and images have 1"),
        ({"task": "semantic", "stretch": True}, r"none of them is a map of pixels, so name anoth"),
        ({"resampler": "nearest"}, r"The input is refused: resampler"),
        ({"labels": ("missing.txt",)}, r"is no file, and one label is too few"),
        ({"colors": "gray"}, r"The network takes 3 channels, and gray has 1"),
        ({"mean": "1,2"}, r"--mean '1,2' has 2 numbers; write 1 or 3"),
        ({"std": "one"}, r"--std 'one': write one number, or 3 with commas"),
        ({"std": "0"}, r"--std '0': 0.001 is the smallest"),
        ({"std": "1e-300"}, r"--std '1e-300': 0.001 is the smallest"),
        ({"mean": "1e300"}, r"--mean '1e300' is not of pixels from 0 to 255: 65,535 is the limit"),
        ({"mean": "nan"}, r"--mean 'nan' is not of pixels from 0 to 255"),
        ({"image_size": 9}, r"--image-size 9: the network takes 8 x 8 pixels; leave it out"),
        ({"golden": ("/nowhere.png",)}, r"/nowhere.png"),
    ],
)
def test_what_does_not_fit_the_network_is_refused(
    settings: Settings, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        imported(color_network(), settings, **fields)


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("multiclass", ("a", "b", "c"), r"add up to \S+ for an image, .* name --scores logits"),
        ("multilabel", ("a", "b", "c"), r"gives scores .*(down|up) to .*; name --scores logits"),
    ],
)
def test_logits_that_are_promised_as_probabilities_are_refused(
    settings: Settings, task: str, labels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        imported(color_network(), settings, task=task, labels=labels, scores="probabilities")


def test_a_network_that_mixes_the_images_of_a_batch_is_refused(settings: Settings) -> None:
    def add(model: Any) -> None:
        node = model.graph.node[-1]
        node.output[0] = "scores"
        mixed = helper.make_node("ReduceMean", ["scores"], ["mean"], axes=[0], keepdims=1)
        model.graph.node.extend([mixed, helper.make_node("Sub", ["scores", "mean"], ["y"])])

    with pytest.raises(InputError, match="another output for an image in a batch than for the im"):
        imported(color_network(extra=add), settings)


def test_a_trial_run_has_bounds(settings: Settings) -> None:
    with pytest.raises(JobFailedError, match=r"trial run took more than 0.01 GB"):
        imported(color_network(), settings, max_memory_gb=0.01)


def test_an_open_size_is_named(settings: Settings) -> None:
    def add(model: Any) -> None:
        for dimension in model.graph.input[0].type.tensor_type.shape.dim[2:]:
            dimension.dim_param = "side"

    with pytest.raises(InputError, match="leaves the size of its images open; name --image-size"):
        imported(color_network(extra=add), settings)
    package = imported(color_network(extra=add), settings, image_size=16)
    assert package.contract.size == (16, 16)


@pytest.mark.parametrize("missing", ["mean", "std"])
def test_a_file_needs_the_scale_of_its_pixels(missing: str) -> None:
    known = {"file": "x.onnx", "name": "colors", "labels": LABELS, "mean": "0", "std": "255"}
    del known[missing]
    with pytest.raises(ValueError, match="does not say how pixels are scaled; name mean and std"):
        ImportSpec.model_validate(known)
