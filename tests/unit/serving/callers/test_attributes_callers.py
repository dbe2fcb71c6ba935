"""Attributes on their way to a model: through a batch job's list, and through the service."""

from __future__ import annotations

import asyncio
import base64
import csv
import json
import struct
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from eagleray.batch.context import JobContext, WorkerOptions
from eagleray.batch.shard_decoder import ShardDecoder
from eagleray.batch.shard_predictor import ShardPredictor
from eagleray.batch.shard_summary import decode_shard
from eagleray.batch.spec import PredictSpec
from eagleray.cli.console import Console
from eagleray.client.requests import request_body
from eagleray.core.errors import InputError
from eagleray.inference.predictor import Predictor
from eagleray.io.http import UrlPolicy
from eagleray.io.storage import S3Options, read_bytes
from eagleray.models.package import write_package
from eagleray.registry.registry import Registry
from eagleray.serve.messages import message
from eagleray.serving.prediction.shadows import ShadowComparison
from eagleray.serving.versions.routes import Routes
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.manifest import ManifestReader
from tests.support.attributes import package_with_attributes
from tests.support.job_folder import open_predict
from tests.support.models import golden_png, registry_in, settings_in
from tests.support.serving import CallContext, RunningApp, grpc_call, registry_with, with_service

pytestmark = pytest.mark.numerical

KNOWN: list[dict[str, object]] = [
    {"age": 41, "site": "north"},
    {"age": None, "site": "south"},
    {"age": 70, "site": "elsewhere"},
    {"age": 20.5, "site": None},
]


def predictor() -> Predictor:
    return Predictor(package_with_attributes(), engine="eager", precision="float32", device="cpu")


def expected_scores(known: list[dict[str, object]]) -> list[float]:
    """Ask the predictor itself about the one image of these tests."""
    outcomes = predictor().predict([golden_png(0)] * len(known), known)
    return [one.prediction.score for one in outcomes if one.prediction is not None]  # type: ignore[misc]


# --- batch ------------------------------------------------------------------------------------


def write_list(folder: Path, columns: list[str], rows: list[list[object]]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "image.png").write_bytes(golden_png(0))
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return str(folder / "list.csv")


def request_for(tmp_path: Path, inputs: str) -> PredictSpec:
    write_package(package_with_attributes(), str(tmp_path / "model"))
    return PredictSpec(
        inputs=(inputs,),
        model=str(tmp_path / "model"),
        output=str(tmp_path / "out"),
        precision="float32",
    )


@pytest.mark.parametrize(
    ("columns", "row", "sentence"),
    [
        (["path", "age"], ["image.png", 4], "The list of inputs has no column 'site' for the "),
        (["path"], ["image.png"], "no column 'age' for the attribute; it has no others"),
        (
            ["path", "age", "site"],
            ["image.png", "old", "north"],
            "image.png is 'old', and the model was trained with numbers;",
        ),
    ],
)
def test_a_job_is_refused_before_it_begins(
    tmp_path: Path, columns: list[str], row: list[object], sentence: str
) -> None:
    request = request_for(tmp_path, write_list(tmp_path / "in", columns, [row]))
    with pytest.raises(InputError) as refused:
        open_predict(request, settings_in(tmp_path), Console(json_output=True))
    assert sentence in str(refused.value)


def test_a_shard_is_predicted_with_the_users_own_columns(tmp_path: Path) -> None:
    rows: list[list[object]] = [["image.png", one["age"], one["site"], "x"] for one in KNOWN]
    rows.insert(1, ["gone.png", 1, "north", "x"])
    listed = write_list(tmp_path / "in", ["path", "age", "site", "note"], rows)
    job = open_predict(
        request_for(tmp_path, listed), settings_in(tmp_path), Console(json_output=True)
    )
    options = WorkerOptions(3, "cpu", "float32", "eager", 1, 1, 1, 60.0, 5, str(tmp_path))
    folder = job.layout.manifest(job.plan.manifest)
    context = JobContext(
        job.model, job.layout.location, folder, 1, options, UrlPolicy(), S3Options()
    )
    shard = ManifestReader(folder, 1).shard(0)
    # As they are decoded in another order than they are listed in, too.
    decoded = reversed(list(ShardDecoder(context).decode(shard, sandboxed=False)))
    ShardPredictor(context).predict(0, shard, decoded, 0.0)
    table, _ = decode_shard(read_bytes(OutputLayout(job.layout.location).shard(0)))
    scores = table.column("score").to_pylist()
    assert scores.pop(1) is None
    np.testing.assert_allclose(scores, expected_scores(KNOWN), atol=1e-6)


# --- service ----------------------------------------------------------------------------------

IMAGE = golden_png(0)
TEXT = base64.b64encode(IMAGE).decode()
PATH = "/v1/models/digits/predict"
JSON = json.dumps(KNOWN[0])


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = registry_in(tmp_path)
    registry.register(package_with_attributes())
    registry.set_alias("digits", "production", 1)
    return registry


def test_every_interface_returns_the_predictors_result(registry: Registry) -> None:
    forms: list[dict[str, Any]] = [
        {"json": {"image": {"base64": TEXT, "attributes": KNOWN[0]}}},
        {"content": IMAGE, "params": {"attributes": JSON}},
        {"files": {"image": IMAGE}, "data": {"attributes": JSON}},
        {"files": {"image": IMAGE}, "params": {"attributes": JSON}},
        request_body([IMAGE], {"attributes": KNOWN[0], "top_k": 2}),
    ]
    several: list[dict[str, Any]] = [
        {"json": {"images": [{"base64": TEXT, "attributes": one} for one in KNOWN]}},
        {"files": [("image", IMAGE)] * 4, "data": {"attributes": json.dumps(KNOWN)}},
        request_body([IMAGE] * 4, {"attributes": KNOWN}),
    ]

    async def test(running: RunningApp) -> None:
        for form in forms:
            response = await running.client.post(PATH, **form)
            assert response.status_code == 200, response.text
            (result,) = response.json()["results"]
            assert result["score"] == pytest.approx(expected_scores(KNOWN[:1])[0], abs=1e-5)
        for form in several:
            response = await running.client.post(PATH, **form)
            scores = [result["score"] for result in response.json()["results"]]
            assert scores == pytest.approx(expected_scores(KNOWN), abs=1e-5)
        records = [{"image": TEXT, **one} for one in KNOWN]
        split = {"columns": [*records[0]], "data": [list(record.values()) for record in records]}
        bodies: list[Any] = [{"dataframe_records": records}, {"dataframe_split": split}]
        for body in bodies:
            rows = (await running.client.post("/invocations", json=body)).json()["predictions"]
            scores = [row["score"] for row in rows]
            assert scores == pytest.approx(expected_scores(KNOWN), abs=1e-5)
        told = (await running.client.get("/v2/models/digits")).json()["inputs"][2:]
        assert [(item["name"], item["datatype"]) for item in told] == [
            ("age", "FP32"),
            ("site", "BYTES"),
        ]
        response = await running.client.post("/v2/models/digits/infer", json=oip(KNOWN))
        scores = response.json()["outputs"][2]["data"]
        assert scores == pytest.approx(expected_scores(KNOWN), abs=1e-5)

    with_service(registry, test, precision="float32")


def test_grpc_takes_them_too(registry: Registry) -> None:
    numbers = {"FP32": ("fp32_contents", 41.0), "FP64": ("fp64_contents", 41.0)}
    numbers |= {"INT32": ("int_contents", 41), "INT64": ("int64_contents", 41)}

    async def test(running: RunningApp) -> None:
        for datatype, (field, age) in numbers.items():
            columns = {
                "image": ("BYTES", {"bytes_contents": [IMAGE]}),
                "age": (datatype, {field: [age]}),
                "site": ("BYTES", {"bytes_contents": [b"north"]}),
            }
            request = message("ModelInferRequest")(model_name="digits")
            for name, (kind, contents) in columns.items():
                request.inputs.add(name=name, datatype=kind, shape=[1], contents=contents)
            response = await grpc_call(running.service, "ModelInfer", request, CallContext())
            (score,) = struct.unpack("<f", response.raw_output_contents[2])
            assert score == pytest.approx(expected_scores(KNOWN[:1])[0], abs=1e-5)

    with_service(registry, test, precision="float32")


def oip(known: list[dict[str, object]]) -> dict[str, Any]:
    """Ask about the one image as often as something is known of it."""
    columns: dict[str, tuple[str, list[object]]] = {"image": ("BYTES", [TEXT] * len(known))}
    if "age" in known[0]:
        columns["age"] = ("FP64", [one["age"] for one in known])
    if "site" in known[0]:
        columns["site"] = ("BYTES", [one["site"] or "" for one in known])
    return {
        "inputs": [
            {"name": name, "datatype": datatype, "shape": [len(data)], "data": data}
            for name, (datatype, data) in columns.items()
        ]
    }


@pytest.mark.parametrize(
    ("path", "form", "sentence"),
    [
        (PATH, {"content": IMAGE}, "the attributes age, site of every image"),
        (PATH, {"json": {"image": {"base64": TEXT}}}, "attributes age, site of every image"),
        (PATH, {"content": IMAGE, "params": {"attributes": '{"age": 4}'}}, "'site' of an image is"),
        (PATH, {"content": IMAGE, "params": {"attributes": "age=4"}}, "attributes are not JSON"),
        (PATH, {"content": IMAGE, "params": {"attributes": "4"}}, "attributes must be an object"),
        (
            PATH,
            {"content": IMAGE, "params": {"attributes": '{"age": "old", "site": ""}'}},
            "'age' is 'old'",
        ),
        (
            PATH,
            {"files": [("image", IMAGE)] * 2, "data": {"attributes": JSON}},
            "attributes of 1 images, and 2 images",
        ),
        ("/invocations", {"json": {"inputs": [TEXT]}}, "age, site of every image"),
        ("/v2/models/digits/infer", {"json": oip([{}])}, "age, site of every image"),
        ("/v2/models/digits/infer", {"json": oip([{"age": 4}])}, "'site' of an image is"),
    ],
)
def test_requests_without_the_attributes_are_refused(
    registry: Registry, path: str, form: dict[str, Any], sentence: str
) -> None:
    async def test(running: RunningApp) -> None:
        response: httpx.Response = await running.client.post(path, **form)
        assert response.status_code == 422, response.text
        assert sentence in response.text

    with_service(registry, test)


def test_versions_with_and_without_attributes_predict_the_same_requests(tmp_path: Path) -> None:
    """So that a version which takes them can follow one that does not, or be its shadow."""
    registry = registry_with(tmp_path, "digits")
    registry.register(package_with_attributes())
    routes = Routes(registry.history.database, actor="tester")
    routes.set("digits", shadow="2", shadow_share=1.0)

    async def test(running: RunningApp) -> None:
        for version in ("1", "2"):
            form: dict[str, Any] = {"content": IMAGE}
            form["params"] = {"attributes": JSON, "version": version}
            response = (await running.client.post(PATH, **form)).json()
            assert response["version"] == int(version)
            assert response["results"][0]["status"] == "ok"

        await running.service.wait_until_loaded(patience=20)
        found = running.service.shadows.comparisons.setdefault("digits", ShadowComparison())
        async with asyncio.timeout(20):
            while not found.same + found.different:  # it looks at nothing while there is work
                await running.client.post(PATH, content=IMAGE, params={"attributes": JSON})
                await asyncio.sleep(0.05)
        before = found.skipped
        assert (await running.client.post(PATH, content=IMAGE)).is_success
        await running.until(lambda: found.skipped > before)  # it cannot answer that

    with_service(registry, test)


def test_a_client_says_which_attributes_belong_to_which_image() -> None:
    links = ["https://example.org/a.png", "https://example.org/b.png"]
    question = request_body(links, {"attributes": KNOWN[:2]})
    assert [one["attributes"] for one in question["json"]["images"]] == KNOWN[:2]
    with pytest.raises(ValueError, match="2 images have 1 attributes"):
        request_body([IMAGE] * 2, {"attributes": KNOWN[0]})
    assert "data" not in request_body([IMAGE], {"top_k": 1})
