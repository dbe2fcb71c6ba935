"""The Open Inference Protocol, version 2, over gRPC: methods that the replica answers."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version as version_of
from typing import Any

import grpc

from eagleray.core.errors import EaglerayError, InputError
from eagleray.serve.messages import PACKAGE, SERVICE, message
from eagleray.serving import protocol
from eagleray.serving.logs import log_access
from eagleray.serving.problems import problem_of
from eagleray.serving.protocol import InferRequest, TensorIn, WantedOutput
from eagleray.serving.requests import PredictRequest
from eagleray.serving.service import ImageService
from eagleray.serving.tracing import Trace

__all__ = ["METHODS", "GrpcInterface"]

log = logging.getLogger(__name__)

METHODS = (
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelInfer",
)

_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_OUR_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""What OpenTelemetry counts as an error of a server."""

_CONTENTS = {
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Where a tensor's numbers are, if not with those of UINT8."""


class GrpcInterface:
    """Answers calls.

    Args:
        service: Predicts.
    """

    def __init__(self, service: ImageService) -> None:
        self._service = service

    async def call(
        self, method: str, read: Callable[[str], Awaitable[Any]], context: Any, caller: str | None
    ) -> Any:
        """Answer one call, and set its status, whatever becomes of it.

        Args:
            method: One of `METHODS`.
            read: Reads the request, for an application; nothing of it is read before its key is
                found good.
            context: The call's, of gRPC.
            caller: Address that the call comes from.

        Raises:
            EaglerayError: The call is refused.
        """
        began = time.monotonic()
        metadata = {key.lower(): value for key, value in context.invocation_metadata()}
        request_id = str(metadata.get("x-request-id") or uuid.uuid4().hex)
        code, model, version, application = grpc.StatusCode.OK, "", "", ""
        trace = self._service.tracing.begin(metadata)
        try:
            application = "" if method == "ServerLive" else self._identify(metadata, caller)
            request = await read(application)
            model = getattr(request, "name", "") or getattr(request, "model_name", "")
            answer = await self._answer(method, request, application, request_id, context, trace)
            version = getattr(answer, "model_version", "")
            return answer
        except EaglerayError as error:
            problem = problem_of(error)
            code = _STATUS.get(problem.status, grpc.StatusCode.INTERNAL)
            self._service.telemetry.rejections.labels(problem.kind).inc()
            context.set_code(code)
            reason = f"{problem.reason}: " if problem.reason else ""
            context.set_details(reason + problem.detail)
            raise
        except asyncio.CancelledError:  # the caller has gone
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception:
            code = grpc.StatusCode.INTERNAL
            log.exception("call %s failed", request_id)
            context.set_code(code)
            context.set_details(f"The service has a defect; its log has it under {request_id}.")
            raise
        finally:
            milliseconds = round((time.monotonic() - began) * 1000, 2)
            if method == "ModelInfer" and model in self._service.snapshot.aliases:
                labels = (model, version, application or "nobody")
                self._service.telemetry.requests.labels(*labels, code.name).inc()
            log_access(
                method=f"gRPC {method}",
                status=code.name,
                milliseconds=milliseconds,
                request_id=request_id,
                application=application,
                model=model,
                version=version,
                **({"trace_id": trace.trace_id} if trace.trace_id else {}),
            )
            if trace.is_recording:
                trace.note(request_id=request_id, application=application)
                _end(trace, method, code)

    def _identify(self, metadata: dict[str, Any], caller: str | None) -> str:
        kind, _, key = str(metadata.get("authorization", "")).partition(" ")
        given = key.strip() if kind.lower() == "bearer" else metadata.get("x-api-key")
        return self._service.identify(given, caller)

    async def _answer(
        self,
        method: str,
        request: Any,
        application: str,
        request_id: str,
        context: Any,
        trace: Trace,
    ) -> Any:
        response = message(f"{method}Response")
        service = self._service
        if method == "ServerLive":
            return response(live=True)
        if method == "ServerReady":
            return response(ready=not service.waiting_for)
        if method == "ServerMetadata":
            extensions = ["classification"]
            return response(name="eagleray", version=version_of("eagleray"), extensions=extensions)
        if method == "ModelInfer":
            return await self._infer(request, application, request_id, context, trace)
        loaded = await service.version_of(request.name, request.version or None)
        if method == "ModelReady":
            return response(ready=True)
        return response(**protocol.metadata(request.name, [loaded.version], loaded.manifest))

    async def _infer(
        self, request: Any, application: str, request_id: str, context: Any, trace: Trace
    ) -> Any:
        service = self._service
        limit = service.config.timeout_s
        left = context.time_remaining() if hasattr(context, "time_remaining") else None
        seconds = limit if left is None else min(limit, left)
        answers, outputs = await service.infer(
            _read(request),
            PredictRequest(
                model=request.model_name,
                images=(),
                application=application,
                request_id=request_id,
                deadline=time.monotonic() + seconds,
                asked=request.model_version or None,
                trace=trace,
            ),
        )
        response = message("ModelInferResponse")(
            model_name=request.model_name,
            model_version=str(answers.loaded.version),
            id=request.id or request_id,
            outputs=[
                {"name": item.name, "datatype": item.datatype, "shape": item.shape}
                for item in outputs
            ],
            raw_output_contents=[protocol.as_raw(item) for item in outputs],
        )
        digest = answers.loaded.manifest.contract_digest
        response.parameters["contract_digest"].string_param = digest
        return response


def _end(trace: Trace, method: str, code: grpc.StatusCode) -> None:
    """End a trace by OpenTelemetry's conventions for RPC servers."""
    name = f"{PACKAGE}.{SERVICE}/{method}"
    attributes = {
        "rpc.system.name": "grpc",
        "rpc.method": name,
        "rpc.response.status_code": code.name,
    }
    trace.end(name, attributes, error=code.name if code in _OUR_FAULTS else None)


def _read(request: Any) -> InferRequest:
    """Read a request's tensors.

    Raises:
        InputError: They are not what the protocol says.
    """
    raw: Sequence[bytes] = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InputError(f"{len(request.inputs)} inputs have {len(raw)} raw contents.")
    inputs = []
    for number, item in enumerate(request.inputs):
        if raw:
            elements = protocol.raw_elements(item.name, item.datatype, raw[number])
        elif item.datatype == "BYTES":
            elements = list(item.contents.bytes_contents)
        else:
            values = getattr(item.contents, _CONTENTS.get(item.datatype, "uint_contents"))
            elements = protocol.numbers(item.name, item.datatype, values)
        inputs.append(TensorIn(item.name, item.datatype, tuple(item.shape), elements))
    return InferRequest(request.id, inputs, [_wanted(item) for item in request.outputs])


def _wanted(item: Any) -> WantedOutput:
    if "classification" not in item.parameters:
        return WantedOutput(item.name)
    classes = int(item.parameters["classification"].int64_param)
    if classes < 0:
        raise InputError("classification is a number of classes.")
    return WantedOutput(item.name, classes=classes)
