"""Messages of the gRPC interface that no client sends by accident, and keys that are not there."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest

from eagleray.core.errors import EaglerayError
from eagleray.registry.registry import Registry
from eagleray.serve.messages import METHODS, message
from eagleray.serving.callers.applications import Applications
from tests.support.mutants import flip_bytes, splice
from tests.support.serving import (
    IMAGE,
    CallContext,
    RunningApp,
    grpc_call,
    registry_with,
    with_service,
)

NUM_MUTANTS = 500


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return registry_with(tmp_path_factory.mktemp("hostile"), "digits")


def infer(**fields: Any) -> Any:
    """Return a request for one image; the fields are those of its input."""
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], **fields}
    if "contents" not in fields:
        tensor["contents"] = {"bytes_contents": [IMAGE]}
    return message("ModelInferRequest")(model_name="digits", inputs=[tensor])


def with_outputs(*outputs: dict[str, Any]) -> Any:
    request = infer()
    for item in outputs:
        request.outputs.add(name=item["name"])
        if "classes" in item:
            request.outputs[-1].parameters["classification"].int64_param = item["classes"]
    return request


ODD = {
    "negative shape": infer(shape=[-1, -1]),
    "a shape beyond all numbers": infer(shape=[2**62] * 8),
    "no contents": infer(contents={}),
    "another type": infer(datatype="FP64"),
    "numbers beyond bytes": infer(
        name="pixels", datatype="UINT8", contents={"uint_contents": [2**32 - 1]}
    ),
    "less than no classes": with_outputs({"name": "probabilities", "classes": -1}),
    "one output often": with_outputs(*[{"name": "probabilities"}] * 1000),
    "classes of labels": with_outputs({"name": "label", "classes": 2}),
    "nothing": message("ModelInferRequest")(),
}


async def call(running: RunningApp, method: str, request: Any, context: CallContext) -> None:
    try:
        await grpc_call(running.service, method, request, context)
    except EaglerayError:
        assert context.code not in (grpc.StatusCode.OK, grpc.StatusCode.INTERNAL)
        assert context.details


def test_odd_messages_are_refused_in_one_sentence(registry: Registry) -> None:
    async def test(running: RunningApp) -> None:
        for name, request in ODD.items():
            context = CallContext()
            await call(running, "ModelInfer", request, context)
            refused = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
            assert context.code in refused, name
        context = CallContext()
        await call(running, "ModelInfer", infer(), context)
        assert context.code is grpc.StatusCode.OK

    with_service(registry, test)


@pytest.mark.filterwarnings("ignore")
def test_damaged_messages_are_predicted_or_refused(registry: Registry) -> None:
    codes: Counter[str] = Counter()

    async def test(running: RunningApp) -> None:
        whole = infer().SerializeToString()
        for number in range(NUM_MUTANTS):
            chance = random.Random(number)
            data = chance.choice((flip_bytes, splice))(whole, chance)
            try:
                request = message("ModelInferRequest").FromString(data)
            except Exception:  # noqa: BLE001 - gRPC itself refuses what is no message
                codes["no message"] += 1
                continue
            context = CallContext()
            await call(running, "ModelInfer", request, context)
            codes[context.code.name] += 1

    with_service(registry, test)
    assert codes["INVALID_ARGUMENT"] > 50
    assert codes["INTERNAL"] == 0


def test_every_method_but_liveness_requires_a_key(tmp_path: Path) -> None:
    registry = registry_with(tmp_path, "digits")
    key = Applications(registry.history.database, actor="tester").create("shop").key

    async def test(running: RunningApp) -> None:
        for method in METHODS:
            request = infer() if method == "ModelInfer" else message(f"{method}Request")()
            if hasattr(request, "name") and method.startswith("Model") and method != "ModelInfer":
                request.name = "digits"
            for metadata in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": ""}):
                context = CallContext(**metadata)
                await call(running, method, request, context)
                live = method == "ServerLive"
                expected = grpc.StatusCode.OK if live else grpc.StatusCode.UNAUTHENTICATED
                assert context.code is expected, (method, metadata)
            context = CallContext(authorization=f"Bearer {key}")
            await call(running, method, request, context)
            assert context.code is grpc.StatusCode.OK, (method, context.details)

    with_service(registry, test)
