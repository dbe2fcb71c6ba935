"""A package outside Eagleray adds a task, an architecture, a source and a sink to the commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.feather
import pytest
from PIL import Image

from eagleray.core.extensions import ENTRY_POINT_GROUP
from tests.support.mlflow_database import prepare_home
from tests.support.service import running_service

NAMES = ("2", "10", "100")  # in another order than the alphabetical one
EXTENSION = Path(__file__).parents[1] / "extension"

Command = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("extension")


@pytest.fixture(scope="module")
def path(folder: Path) -> str:
    """Install the extension beside the product: an entry point, and its module on the path."""
    info = folder / "site/levels-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: levels\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\nlevels = ordinal_levels\n")
    return os.pathsep.join([str(EXTENSION), str(folder / "site"), *filter(None, sys.path)])


@pytest.fixture(scope="module")
def command(folder: Path, path: str) -> Command:
    home = folder / "home"
    prepare_home(home)

    def run(*words: str) -> dict[str, Any]:
        answer = subprocess.run(
            [sys.executable, "-P", "-m", "eagleray", *words, "--json"],
            cwd=folder,
            env={**os.environ, "EAGLERAY_HOME": str(home), "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
        assert answer.returncode == 0, answer.stderr
        said: dict[str, Any] = json.loads(answer.stdout)
        return said

    return run


@pytest.fixture(scope="module")
def catalog(folder: Path) -> str:
    """Images whose brightness is their level; names say which."""
    draw = np.random.default_rng(0)
    (folder / "images").mkdir()
    for index in range(90):
        level = index % 3
        pixels = draw.integers(90 * level, 90 * level + 60, (32, 32)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{NAMES[level]}-{index}.png")
    return f"catalog://{folder}/images"


@pytest.fixture(scope="module")
def trained(command: Command, catalog: str) -> dict[str, Any]:
    return command(
        *("train", catalog, "--name", "levels", "--task", "ordinal"),
        *("--architecture", "brightness_net", "--epochs", "30", "--batch-size", "16"),
        *("--learning-rate", "0.02"),
    )


def test_it_is_trained_and_registered(trained: dict[str, Any]) -> None:
    assert trained["model"] == "levels/1"
    assert trained["test"]["accuracy"] >= 0.9
    assert trained["test"]["mean_level_error"] <= 0.1
    assert (trained["aliases"], trained["did_not_learn"]) == (["candidate"], [])


def test_it_is_evaluated_with_a_metric_and_a_fact_of_its_own(
    command: Command, trained: dict[str, Any], folder: Path
) -> None:
    page = folder / "page.html"
    (folder / "kpi.txt").write_text("mean_level_error < 0.1\naccuracy > 0.9\n")
    said = command(
        *("evaluate", "levels/1", f"{trained['folder']}/split.parquet", "--split", "test"),
        *("--output", str(page)),
        *("--kpi", str(folder / "kpi.txt")),
    )
    assert said["images"] == 18
    assert said["passed"] is True
    assert set(said["intervals"]["mean_level_error"]) == {"low", "high"}
    text = page.read_text()
    assert "Confusion matrix" in text
    assert "2 &lt; 10 &lt; 100" in text


@pytest.mark.usefixtures("trained")
def test_batch_and_service_predict_with_it(
    command: Command, catalog: str, folder: Path, path: str
) -> None:
    output = folder / "results"
    said = command(
        *("predict", catalog, "--model", "levels/1", "--output", str(output)),
        *("--format", "feather"),
    )
    assert (said["images"], said["failed"]) == (90, 0)
    rows = pyarrow.feather.read_table(output / "part-00000.feather").to_pylist()
    assert len(rows) == 90
    right = [Path(row["uri"]).name.partition("-")[0] == row["label"] for row in rows]
    assert np.mean(right) >= 0.9
    assert all(0 <= row["expected_level"] <= 2 for row in rows)
    row = rows[0]
    image = Path(row["uri"].removeprefix("file://")).read_bytes()
    home = folder / "home"
    command("models", "alias", "levels", "production", "1")
    with running_service(home, "levels", "--engine", "eager", PYTHONPATH=path) as service:
        response = httpx.post(f"{service.url}/v1/models/levels/predict", content=image)
        assert response.status_code == 200, response.text
        result = response.json()["results"][0]
        assert result["label"] == row["label"]
        assert result["expected_level"] == pytest.approx(row["expected_level"], abs=0.03)
        model = httpx.get(f"{service.url}/v2/models/levels").json()
        assert "expected_level" in [tensor["name"] for tensor in model["outputs"]]
