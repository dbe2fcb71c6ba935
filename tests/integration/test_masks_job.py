"""Instance and panoptic models in a batch job and in the service, on a real Ray."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco

from eagleray.batch.run import run_job as run_batch
from eagleray.batch.spec import PredictSpec
from eagleray.cli.console import Console
from eagleray.core.errors import InputError
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import read_settings
from eagleray.models.package import ModelPackage, write_package
from eagleray.training.registration.packaging import finish_model
from tests.support.job_folder import open_predict
from tests.support.models import registry_in
from tests.support.regions import region_package
from tests.support.segmented import nucleus_spec, write_nuclei
from tests.support.service import running_service
from tests.support.training import plan_for, train_in_process

QUIET = Console(json_output=True)


def trained(task: str, folder: Path) -> ModelPackage:
    """Return a model that has learned nuclei for a few seconds."""
    table = write_nuclei(folder / "nuclei")
    spec = nucleus_spec(
        table, task=task, name="nuclei", architecture="panoptic/resnet20", epochs=25
    )
    plan, _ = plan_for(spec, folder / "run")
    train_in_process(spec, folder / "run", plan=plan)
    return finish_model(plan, plan.module, cache_folder=folder / "cache", mlflow_run=None).package


def predicted(folder: Path, cluster: Cluster, **fields: Any) -> list[dict[str, Any]]:
    """Return the rows of a job over six images."""
    request = PredictSpec(
        inputs=(str(folder / "nuclei/0[0-5].png"),),
        model=str(folder / "model"),
        output=str(folder / "found"),
        engine="eager",
        precision="float32",
        **fields,
    )
    run_batch(open_predict(request, read_settings(), QUIET), lambda: cluster, QUIET)
    (file,) = (folder / "found").glob("*.parquet")
    return pq.read_table(file).to_pylist()  # type: ignore[no-any-return]


def posted(url: str, image: bytes, **headers: str) -> httpx.Response:
    response = httpx.post(
        f"{url}/v1/models/nuclei/predict", content=image, headers=headers, timeout=60
    )
    assert response.status_code == 200, response.text
    return response


def tensors_of(url: str, image: bytes) -> dict[str, Any]:
    """Return the outputs of the Open Inference Protocol by name."""
    content = base64.b64encode(image).decode()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [content]}
    response = httpx.post(f"{url}/v2/models/nuclei/infer", json={"inputs": [tensor]}, timeout=60)
    assert response.status_code == 200, response.text
    return {one["name"]: one for one in response.json()["outputs"]}


def test_masks_are_the_same_in_a_table_and_in_the_service(cluster: Cluster, tmp_path: Path) -> None:
    package = trained("instance", tmp_path)
    write_package(package, str(tmp_path / "model"))
    rows = predicted(tmp_path, cluster, masks=True, limit=("nucleus>1",))
    assert [row["count"] for row in rows] == [1, 2, 3, 1, 2, 3]
    assert [row["exceeds"] for row in rows] == [[], ["nucleus>1"], ["nucleus>1"]] * 2
    for row in rows:
        for one, mask in zip(row["objects"], row["masks"], strict=True):
            rle = {"size": mask["size"], "counts": mask["counts"].encode()}
            assert coco.toBbox(rle).tolist() == [one["x"], one["y"], one["width"], one["height"]]
    registry = registry_in(tmp_path)
    registry.register(package)
    registry.set_alias("nuclei", "production", 1)
    image = (tmp_path / "nuclei/02.png").read_bytes()
    words = ["nuclei", "--engine", "eager", "--precision", "float32"]
    with running_service(tmp_path / "home", *words) as service:
        (found,) = posted(service.url, image).json()["results"]
        assert [one["mask"] for one in found["objects"]] == rows[2]["masks"]
        drawn = posted(service.url, image, accept="image/png")
        pixels = np.asarray(Image.open(io.BytesIO(drawn.content))).astype(int)
        assert pixels.shape == (32, 40, 3)
        assert np.ptp(pixels, axis=2).max() > 50  # the image itself is nearly gray
        tensors = tensors_of(service.url, image)
        counts = [one["counts"] for one in rows[2]["masks"]]
        assert tensors["masks"]["data"][:4] == [*counts, ""]


@pytest.mark.long
def test_boxes_with_masks_are_the_same_in_a_table_and_in_the_service(
    cluster: Cluster, tmp_path: Path
) -> None:
    write_nuclei(tmp_path / "nuclei", 6)
    package = region_package()
    write_package(package, str(tmp_path / "model"))
    rows = predicted(tmp_path, cluster, masks=True)
    assert all(row["count"] == len(row["masks"]) > 0 for row in rows)
    for row in rows:
        for one, mask in zip(row["objects"], row["masks"], strict=True):
            assert mask["size"] == [32, 40]
            rle = {"size": mask["size"], "counts": mask["counts"].encode()}
            x, y, width, height = coco.toBbox(rle).tolist()
            assert x >= one["x"] - 0.5
            assert y >= one["y"] - 0.5
            assert x + width <= one["x"] + one["width"] + 0.5
            assert y + height <= one["y"] + one["height"] + 0.5
    registry = registry_in(tmp_path)
    registry.register(package)
    registry.set_alias("nuclei", "production", 1)
    image = (tmp_path / "nuclei/02.png").read_bytes()
    words = ["nuclei", "--engine", "eager", "--precision", "float32"]
    with running_service(tmp_path / "home", *words) as service:
        (found,) = posted(service.url, image).json()["results"]
        assert [one["mask"] for one in found["objects"]] == rows[2]["masks"]
        drawn = posted(service.url, image, accept="image/png")
        pixels = np.asarray(Image.open(io.BytesIO(drawn.content))).astype(int)
        assert np.ptp(pixels, axis=2).max() > 50  # the image itself is nearly gray
        counts = [one["counts"] for one in rows[2]["masks"]]
        assert tensors_of(service.url, image)["masks"]["data"][: len(counts)] == counts


def test_segments_are_the_same_in_a_table_and_in_the_service(
    cluster: Cluster, tmp_path: Path
) -> None:
    package = trained("panoptic", tmp_path)
    write_package(package, str(tmp_path / "model"))
    with pytest.raises(InputError, match="masks is for instance models, and this is a panoptic"):
        predicted(tmp_path, cluster, masks=True)
    rows = predicted(tmp_path, cluster, limit=("nucleus>1",))
    assert [row["count_nucleus"] for row in rows] == [1, 2, 3, 1, 2, 3]
    for row in rows:
        ids = np.asarray(Image.open(io.BytesIO(row["segment_map"])))
        assert ids.shape == (32, 40)
        assert [(ids == one["id"]).sum() for one in row["segments"]] == [
            one["area"] for one in row["segments"]
        ]
    registry = registry_in(tmp_path)
    registry.register(package)
    registry.set_alias("nuclei", "production", 1)
    image = (tmp_path / "nuclei/02.png").read_bytes()
    words = ["nuclei", "--engine", "eager", "--precision", "float32"]
    with running_service(tmp_path / "home", *words) as service:
        (found,) = posted(service.url, image).json()["results"]
        assert base64.b64decode(found["segment_map"]) == rows[2]["segment_map"]
        assert [one["id"] for one in found["segments"]] == [1, 2, 3]
        assert found["counts"] == {"nucleus": 3}
        posted(service.url, image, accept="image/png")
        tensors = tensors_of(service.url, image)
        assert json.loads(tensors["segments"]["data"][0]) == found["segments"]
        assert tensors["segment_map"]["data"] == [found["segment_map"]]
