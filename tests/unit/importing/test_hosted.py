"""Models that another server runs: imported, and predicted with by requests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eagleray import Predictor
from eagleray.compression.prepare import open_quantization
from eagleray.compression.spec import QuantizeSpec
from eagleray.core.errors import InputError, OutageError, PackageError
from eagleray.core.settings import Settings
from eagleray.imaging import decode
from eagleray.importing.hosted import import_hosted, is_hosted
from eagleray.importing.spec import ImportSpec
from eagleray.inference.choice import require_engine
from eagleray.inference.latency import measure_latency
from eagleray.models.cost import ModelCost, manifest_cost
from eagleray.models.hosted import HostedNetwork
from eagleray.models.package import ModelPackage, read_package, write_package
from tests.support.images import encode
from tests.support.inference_server import SIDE, ModelServer, model_server, scores_of
from tests.support.models import registry_in

IMAGES = [
    encode(np.random.default_rng(seed).integers(0, 256, (3, 2, 3), np.uint8).repeat(20, 0))
    for seed in range(3)
]  # of three bands
LABELS = ("top", "middle", "bottom")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    with model_server() as running:
        monkeypatch.setenv("EAGLERAY_HOSTED_MODELS", running.host)
        yield running


def spec(server: ModelServer, **changes: Any) -> ImportSpec:
    fields = {
        "file": server.url,
        "name": "thirds",
        "labels": LABELS,
        "mean": "123.675,116.28,103.53",
        "std": "58.395,57.12,57.375",
        "stretch": True,
        "scores": "logits",
        **changes,
    }
    return ImportSpec.make(fields)


def imported(server: ModelServer, **changes: Any) -> ModelPackage:
    return import_hosted(spec(server, **changes), Settings())


def expected(package: ModelPackage, *, bgr: bool = False) -> Any:
    """Return the probabilities that the server's arithmetic gives for the images."""
    pixels = np.stack([decode(image, package.contract).pixels for image in IMAGES]) / 255
    mean, std = np.array(package.contract.mean), np.array(package.contract.std)
    images = ((pixels - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    return scores_of(images[:, ::-1] if bgr else images, "softmax")


def probabilities(package: ModelPackage, **options: Any) -> Any:
    outcomes = Predictor(package, **options).predict(IMAGES)
    return np.array([package.task.outputs_of(one.prediction) for one in outcomes])  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(-1, 3, SIDE, SIDE), (-1, SIDE, SIDE, 3), (1, 3, SIDE, SIDE)])
@pytest.mark.parametrize("extensions", [[], ["binary_tensor_data"]])
@pytest.mark.parametrize("colors", ["rgb", "bgr"])
def test_predictions_are_those_of_the_server(
    server: ModelServer, shape: tuple[int, ...], extensions: list[str], colors: str
) -> None:
    server.shape, server.extensions = shape, extensions
    values = (
        {} if colors == "rgb" else {"mean": "103.53,116.28,123.675", "std": "57.375,57.12,58.395"}
    )
    package = imported(server, colors=colors, **values)
    wanted = expected(package, bgr=colors == "bgr")
    assert wanted.std(axis=0).min() > 1e-3  # the images differ
    np.testing.assert_allclose(probabilities(package), wanted, atol=1e-5)
    fields, request = server.requests[-1]
    sent = request["inputs"][0]["shape"]
    assert sent[0] == (1 if shape[0] == 1 else len(IMAGES))
    assert ("Inference-Header-Content-Length" in fields) == bool(extensions)


def test_probabilities_and_values_of_pixels_are_taken_too(server: ModelServer) -> None:
    server.datatype, server.scores = "UINT8", "softmax"
    package = imported(server, mean="0", std="1", scores="probabilities")
    pixels = np.stack([decode(image, package.contract).pixels for image in IMAGES])
    wanted = scores_of(pixels.transpose(0, 3, 1, 2).astype(np.float32), "softmax")
    np.testing.assert_allclose(probabilities(package), wanted, atol=1e-5)
    with pytest.raises(InputError, match="write --mean 0 --std 1"):
        imported(server, scores="probabilities")
    server.scores = "logits"
    for task, said in (("multiclass", "add up to"), ("multilabel", "probabilities are from 0")):
        with pytest.raises(InputError, match=said):
            imported(server, task=task, mean="0", std="1", scores="probabilities")


def test_the_package_keeps_golden_images_and_says_where_the_model_is(
    server: ModelServer, tmp_path: Path
) -> None:
    (tmp_path / "golden.png").write_bytes(IMAGES[0])
    package = imported(server, golden=(str(tmp_path / "golden.png"),))
    write_package(package, str(tmp_path / "package"))
    again = read_package(str(tmp_path / "package"), expected_digest=package.digest)
    assert again.manifest.facts["hosted at"] == f"{server.url} (thirds version 1 test)"
    predictor = Predictor(again)
    assert predictor.require_healthy().num_images == 1
    assert predictor.engine == f"hosted at {server.url}"
    server.answer = [0.0, 0.0, 9.0]  # another model is there now
    with pytest.raises(PackageError, match="fails its golden images"):
        predictor.require_healthy()


def test_a_busy_server_is_asked_again_when_it_says(server: ModelServer) -> None:
    package = imported(server)
    server.faults = [(429, "1"), (503, "")]
    before, started = len(server.requests), time.monotonic()
    np.testing.assert_allclose(probabilities(package), expected(package), atol=1e-5)
    assert time.monotonic() - started >= 1
    assert len(server.requests) - before == 3


def test_a_server_that_stays_busy_is_an_outage(server: ModelServer) -> None:
    package = imported(server, timeout_s=0.5)
    server.faults = [(503, "")] * 99
    with pytest.raises(OutageError, match=r"127\.0\.0\.1 responds 503"):
        probabilities(package)


def test_a_server_that_is_gone_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    with model_server() as running:
        monkeypatch.setenv("EAGLERAY_HOSTED_MODELS", running.host)
        package = imported(running, timeout_s=0.5)
    with pytest.raises(OutageError, match="does not answer"):
        probabilities(package)


def test_images_are_sent_at_the_rate_that_is_allowed(server: ModelServer) -> None:
    package = imported(server, max_images_per_s=20)
    network = HostedNetwork(package.manifest.hosted, num_outputs=3)  # type: ignore[arg-type]
    started = time.monotonic()
    for _ in range(5):
        network(torch.zeros(2, 3, SIDE, SIDE))
    assert time.monotonic() - started >= 8 / 20


def test_a_host_that_is_not_allowed_is_never_asked(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = imported(server)
    asked = len(server.requests)
    monkeypatch.setenv("EAGLERAY_HOSTED_MODELS", "models.example.com")
    with pytest.raises(InputError, match="add it to EAGLERAY_HOSTED_MODELS"):
        Predictor(package)
    assert len(server.requests) == asked


def test_the_key_of_the_host_is_sent_and_kept_secret(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# hosts\n127.0.0.1 abc123\nmodels.example.com other\n")
    monkeypatch.setenv("EAGLERAY_HOSTED_MODEL_KEYS", str(keys))
    keys.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        imported(server)
    keys.chmod(0o600)
    package = imported(server)
    assert server.requests[-1][0]["Authorization"] == "Bearer abc123"
    assert "abc123" not in str(package.manifest)
    monkeypatch.setenv("EAGLERAY_HOSTED_MODELS", "models.example.com")
    plain = "http://models.example.com/v2/models/a"
    with pytest.raises(InputError, match="in plain text; use https"):
        import_hosted(spec(server, file=plain), Settings())


@pytest.mark.parametrize(
    ("behaviour", "changes", "sentence"),
    [
        ({"shape": (-1, 8)}, {}, "has not four dimensions"),
        ({"shape": (-1, SIDE, SIDE, 5)}, {}, "name --layout nchw or nhwc"),
        ({"shape": (4, 3, SIDE, SIDE)}, {}, "it takes 4 images at a time"),
        ({"shape": (-1, 1, SIDE, SIDE)}, {}, "takes 1 channels, and rgb has 3"),
        ({"shape": (-1, 3, -1, -1)}, {}, "name --image-size"),
        ({"datatype": "FP16"}, {}, "is of the type FP16"),
        ({}, {"labels": ("a", "b")}, "3 values for an image, and the task needs 2"),
        ({"output": {"name": "scores"}}, {}, "it does not describe them"),
        ({}, {"scores": "auto"}, "name --scores logits or probabilities"),
        ({"answer": [1.0]}, {}, "gives 1 numbers for"),
        ({"answer": "text"}, {}, "gives 0 numbers for"),
        ({}, {"task": "detection", "decoder": "yolo"}, "not of the task detection; import its"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    server: ModelServer, behaviour: dict[str, Any], changes: dict[str, Any], sentence: str
) -> None:
    for name, value in behaviour.items():
        setattr(server, name, value)
    with pytest.raises(InputError, match=sentence):
        imported(server, **changes)


def test_a_model_that_is_not_there_is_one_sentence(server: ModelServer) -> None:
    with pytest.raises(InputError, match=r"responds 404 to GET .*/v2/models/none"):
        imported(server, file=server.url.replace("thirds", "none"))


def test_what_needs_weights_is_refused(server: ModelServer) -> None:
    from eagleray.models.graph_export import require_graph_outputs
    from eagleray.models.networks.features import features_of

    package = imported(server)
    for needs_weights in (features_of, require_graph_outputs):
        with pytest.raises(PackageError, match="is hosted: another server has its weights"):
            needs_weights(package)
    with pytest.raises(InputError, match="leave --engine out"):
        require_engine("openvino", package.manifest)
    with pytest.raises(InputError, match="leave --precision out"):
        require_engine("auto", package.manifest, precision="bfloat16")


@pytest.mark.parametrize(
    ("file", "hosted"),
    [
        ("https://models.example.com/v2/models/a", True),
        ("http://10.0.0.7:8000/serving/v2/models/a/versions/3/", True),
        ("https://models.example.com/a.onnx", False),
        ("https://models.example.com/v2/models/a?key=1", False),
        ("s3://bucket/v2/models/a", False),
        ("v2/models/a", False),
    ],
)
def test_the_url_of_a_model_is_told_from_a_file(file: str, hosted: bool) -> None:
    assert is_hosted(file) == hosted


def test_nothing_of_the_network_is_said_but_that_a_server_runs_it(
    server: ModelServer, tmp_path: Path
) -> None:
    package = imported(server)
    assert manifest_cost(package.manifest) == ModelCost(None, None)
    latency = measure_latency(package, seconds=0.1)
    assert (latency.engine, latency.precision) == ("hosted", "float32")


def test_a_quantization_is_refused_before_images_are_asked_for(
    server: ModelServer, tmp_path: Path
) -> None:
    registry = registry_in(tmp_path)
    version = registry.register(imported(server))
    with pytest.raises(InputError, match="is run by another server, so its network is not here"):
        open_quantization(QuantizeSpec.make({"model": version.reference}), registry.settings)


def test_a_segmenter_is_not_asked_of_a_server(server: ModelServer) -> None:
    with pytest.raises(InputError, match="not of the task semantic; import its ONNX file"):
        imported(server, task="semantic")
