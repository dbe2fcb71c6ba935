"""Exports to runtimes that are installed into environments of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eagleray.core.errors import InputError
from eagleray.core.settings import Settings
from eagleray.exports.base import EXPORTERS
from eagleray.exports.environment import make_environment
from eagleray.models.package import write_package
from tests.support.models import small_package

pytestmark = pytest.mark.long


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.mark.parametrize("name", ["onnx", "executorch", "litert", "coreml"])
def test_a_model_predicts_the_same_in_the_runtime(name: str, home: Path, tmp_path: Path) -> None:
    exporter = EXPORTERS.get(name)
    assert exporter.requirements is not None
    try:
        make_environment(exporter.requirements, Settings(home=home).cache_folder)
    except InputError as error:
        pytest.skip(str(error))
    write_package(small_package(), str(tmp_path / "model"))
    words = [str(tmp_path / "model"), "--format", name, "--output", str(tmp_path / "output")]
    done = subprocess.run(
        [sys.executable, "-m", "eagleray", "models", "export", *words, "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "EAGLERAY_HOME": str(home)},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    files = {path.name for path in (tmp_path / "output").iterdir()}
    assert {exporter.file, "README.md", "comparison.json", "predict.py", "runtime.py"} <= files
    if exporter.cannot_run is None:
        assert told["comparison"]["max_difference"] < 1e-5
        assert told["comparison"]["images"] == 3
        assert told["milliseconds"] > 0
    else:
        assert told["comparison"] is None
        assert "2 conv" in told["inspected"]["operations"]
        assert told["not_compared"] == "runs on macOS only"
        assert "**not** compared" in (tmp_path / "output" / "README.md").read_text()
        assert "Predict.swift" in files
