"""Exports from the command line: written when they are proven, and not a file otherwise."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import tests.support.own_exporters
from eagleray.cli import main as cli
from eagleray.core import extensions
from eagleray.core.errors import ExitCode, InputError
from eagleray.exports.base import EXPORTERS
from eagleray.exports.files import ExportFacts, render_files
from eagleray.exports.job import open_export
from eagleray.exports.spec import ExportSpec
from eagleray.imaging import decode, named_contract
from eagleray.models.architectures import Architecture
from eagleray.models.building import build
from eagleray.models.manifest import Quantization
from eagleray.models.package import ModelPackage, write_package
from eagleray.registry.references import LoadedModel
from tests.support.attributes import package_with_attributes
from tests.support.models import golden_png, settings_in, small_package

runner = CliRunner()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EAGLERAY_EXTENSIONS", tests.support.own_exporters.__name__)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # conversions import it as well
    monkeypatch.setattr(extensions, "_failures", [])  # of modules that other tests have named


def export(tmp_path: Path, package: ModelPackage, *words: str) -> Result:
    write_package(package, str(tmp_path / "model"))
    output = ["--output", str(tmp_path / "output")]
    return runner.invoke(cli.app, ["models", "export", str(tmp_path / "model"), *output, *words])


def sentence(result: Result) -> str:
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def assert_nothing_written(tmp_path: Path) -> None:
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "model"]


def test_an_export_has_its_proof_and_an_example_that_predicts_the_same(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(10, 14):
        (images / f"{seed}.png").write_bytes(golden_png(seed, side=50))
    (images / "broken.png").write_bytes(golden_png(1)[:90])
    result = export(
        tmp_path, small_package(), "--format", "openvino", "--data", str(images), "--json"
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    output = tmp_path / "output"
    kept = json.loads((output / "comparison.json").read_text())
    assert {**kept, "folder": str(output)} == told
    assert told["comparison"]["images"] == 7
    assert told["golden_images"] == 3
    assert told["comparison"]["max_difference"] < 1e-5
    assert told["bytes"] > 200_000
    assert "1 of 5 evaluation images could not be read." in told["notes"]
    assert (output / "labels.txt").read_text() == "zero\none\ntwo\n"
    assert json.loads((output / "model.json").read_text())["output"]["name"] == "probabilities"
    assert "| same prediction | 100.00% |" in (output / "README.md").read_text()
    found = subprocess.run(
        [sys.executable, "-P", str(output / "predict.py"), str(images / "10.png")],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(output)},
    ).stdout.split()
    first = told["comparison"]["each"][3]
    assert first["uri"].endswith("10.png")
    assert found[1] == first["original"]


def test_a_broken_exporter_is_caught_and_writes_nothing(tmp_path: Path) -> None:
    result = export(tmp_path, small_package(), "--format", "unnormalised")
    assert result.exit_code == ExitCode.JOB_FAILED
    assert "OpenVINO model differs by" in sentence(result)
    assert "nothing is written. The worst image is golden/0" in sentence(result)
    assert_nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["crashing"], "died of SIGABRT"),
        (["slow", "--max-seconds", "1"], "took longer than 1 s"),
        (["greedy", "--max-memory-gb", "2"], "took more than 2 GB"),
    ],
)
def test_a_conversion_has_bounds(tmp_path: Path, words: list[str], fault: str) -> None:
    result = export(tmp_path, small_package(), "--format", *words)
    assert result.exit_code == ExitCode.JOB_FAILED
    assert f"The process of the conversion {fault}" in sentence(result)
    assert_nothing_written(tmp_path)


def test_an_unknown_format_is_refused_with_the_nearest(tmp_path: Path) -> None:
    result = export(tmp_path, small_package(), "--format", "onx")
    assert result.exit_code == ExitCode.USER
    assert "No export format is named 'onx'. Nearest: onnx" in sentence(result)


def test_an_output_that_is_not_empty_is_kept(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "mine.txt").write_text("mine")
    result = export(tmp_path, small_package(), "--format", "openvino")
    assert result.exit_code == ExitCode.USER
    assert "output exists and is not empty; name a new folder." in sentence(result)
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["mine.txt"]


def test_an_output_is_local(tmp_path: Path) -> None:
    result = export(
        tmp_path, small_package(), "--format", "openvino", "--output", "s3://bucket/model"
    )
    assert "s3://bucket/model is a URI; export to a local folder" in sentence(result)


def test_without_an_image_nothing_can_be_proven(tmp_path: Path) -> None:
    result = export(tmp_path, small_package(golden_images=[]), "--format", "openvino")
    assert result.exit_code == ExitCode.USER
    assert "has no golden images" in sentence(result)
    assert "name images by --data." in sentence(result)


def test_attributes_are_not_carried(tmp_path: Path) -> None:
    result = export(tmp_path, package_with_attributes(), "--format", "openvino")
    assert result.exit_code == ExitCode.USER
    assert "takes the attributes age, site beside images" in sentence(result)


def test_a_quantized_model_is_refused_where_it_cannot_be_carried(tmp_path: Path) -> None:
    package = small_package()
    quantization = Quantization(method="static", calibration_digest="0" * 64, num_images=8)
    manifest = package.manifest.model_copy(update={"quantization": quantization})
    model = LoadedModel("digits/2", ModelPackage(manifest, package.files))
    spec = ExportSpec(model="digits/2", format="litert", output=str(tmp_path / "output"))
    with pytest.raises(InputError, match="or to onnx or openvino") as caught:
        open_export(spec, model, settings_in(tmp_path))
    assert "LiteRT exports are made from float models" in str(caught.value)


@pytest.mark.parametrize("name", ["fast", "torchvision-reference", "whole-image"])
@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize("size", [(90, 70), (33, 120), (64, 64)])
def test_the_example_reads_images_as_the_contract_says(
    tmp_path: Path, name: str, color: Any, size: tuple[int, int]
) -> None:
    contract = named_contract(name, size=48, color=color)
    architecture = Architecture(name="lenet5", in_channels=contract.channels, num_outputs=3)
    package = small_package(
        contract=contract,
        architecture=architecture,
        golden_images=[],
        module=build(architecture),
    )
    facts = ExportFacts("digits/1", package, EXPORTERS.get("onnx"), 1, None, 0, "", None, {}, ())
    for file, text in render_files(facts).items():
        (tmp_path / file).write_text(text)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    example = load_example(tmp_path)
    expected = decode((tmp_path / "image.png").read_bytes(), contract).pixels
    read = example.read_image(str(tmp_path / "image.png"))
    assert read.dtype == np.uint8
    assert np.array_equal(read[0], expected)


def load_example(folder: Path) -> ModuleType:
    (folder / "runtime.py").write_text("def load(path): ...\n")
    spec = importlib.util.spec_from_file_location("predict", folder / "predict.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("runtime", None)
    return module
