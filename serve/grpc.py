"""Serves the Open Inference Protocol, version 2, over gRPC."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version as version_of
from typing import Any

import grpc

from eagleray.core.errors import EaglerayError, InputError
from eagleray.serve.messages import SERVICE, message
from eagleray.serving import protocol
from eagleray.serving.logs import log_access
from eagleray.serving.prediction.requests import PredictRequest
from eagleray.serving.prediction.tracing import Trace
from eagleray.serving.problems import problem_from_error
from eagleray.serving.protocol import InferRequest, InputTensor, RequestedOutput
from eagleray.serving.service import ImageService

__all__ = ["GrpcInterface"]

log = logging.getLogger(__name__)

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
_SERVER_ERRORS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""The codes that OpenTelemetry counts as errors of a server."""

_CONTENTS = {
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""The field that holds a tensor's numbers, by datatype; others are with those of UINT8."""


@dataclass(slots=True)
class _Call:
    method: str
    request_id: str
    application: str = ""
    model: str = ""
    version: str = ""
    code: grpc.StatusCode = grpc.StatusCode.OK


class GrpcInterface:
    """Handles the calls of the protocol.

    Args:
        service: The service that predicts.
    """

    def __init__(self, service: ImageService) -> None:
        self._service = service

    async def call(
        self, method: str, read: Callable[[str], Awaitable[Any]], context: Any, caller: str | None
    ) -> Any:
        """Handle one call, and set its status in every case.

        Args:
            method: Name of the method.
            read: Reads the request on behalf of an application; called once the key is accepted.
            context: The call's context, from gRPC.
            caller: Network address of the caller; None if it is unknown.

        Raises:
            EaglerayError: If the call is refused.
        """
        began = time.monotonic()
        metadata = {key.lower(): value for key, value in context.invocation_metadata()}
        call = _Call(method, str(metadata.get("x-request-id") or uuid.uuid4().hex))
        trace = self._service.tracing.begin(metadata)
        try:
            if method != "ServerLive":
                call.application = self._authenticate(metadata, caller)
            request = await read(call.application)
            call.model = getattr(request, "name", "") or getattr(request, "model_name", "")
            response = await self._respond(request, call, context, trace)
            call.version = getattr(response, "model_version", "")
            return response
        except EaglerayError as error:
            problem = problem_from_error(error)
            call.code = _STATUS.get(problem.status, grpc.StatusCode.INTERNAL)
            self._service.telemetry.rejections.labels(problem.kind).inc()
            context.set_code(call.code)
            reason = f"{problem.reason}: " if problem.reason else ""
            context.set_details(reason + problem.detail)
            raise
        except asyncio.CancelledError:  # the caller has disconnected
            call.code = grpc.StatusCode.CANCELLED
            raise
        except Exception:
            call.code = grpc.StatusCode.INTERNAL
            log.exception("call %s failed", call.request_id)
            context.set_code(call.code)
            context.set_details(
                f"The service has a defect; its log has the details under {call.request_id}."
            )
            raise
        finally:
            self._record(call, trace, time.monotonic() - began)

    def _record(self, call: _Call, trace: Trace, seconds: float) -> None:
        """Count, log and trace a call that has ended."""
        if call.method == "ModelInfer" and call.model in self._service.snapshot.aliases:
            labels = (call.model, call.version, call.application or "anonymous")
            self._service.telemetry.requests.labels(*labels, call.code.name).inc()
        log_access(
            method=f"gRPC {call.method}",
            status=call.code.name,
            milliseconds=round(seconds * 1000, 2),
            request_id=call.request_id,
            application=call.application,
            model=call.model,
            version=call.version,
            **({"trace_id": trace.trace_id} if trace.trace_id else {}),
        )
        if trace.is_recording:
            trace.note(request_id=call.request_id, application=call.application)
            _end(trace, call.method, call.code)

    def _authenticate(self, metadata: dict[str, Any], caller: str | None) -> str:
        kind, _, key = str(metadata.get("authorization", "")).partition(" ")
        given = key.strip() if kind.lower() == "bearer" else metadata.get("x-api-key")
        return self._service.authenticator.authenticate(given, caller)

    async def _respond(self, request: Any, call: _Call, context: Any, trace: Trace) -> Any:
        response, service = message(f"{call.method}Response"), self._service
        match call.method:
            case "ServerLive":
                return response(live=True)
            case "ServerReady":
                return response(ready=not service.unready_reasons)
            case "ServerMetadata":
                return response(
                    name="eagleray",
                    version=version_of("eagleray"),
                    extensions=["classification"],
                )
            case "ModelInfer":
                return await self._infer(request, call, context, trace)
        loaded = await service.version_of(request.name, request.version or None)
        if call.method == "ModelReady":
            return response(ready=True)
        return response(**protocol.model_metadata(request.name, [loaded.version], loaded.manifest))

    async def _infer(self, request: Any, call: _Call, context: Any, trace: Trace) -> Any:
        service = self._service
        limit = service.config.timeout_s
        left = context.time_remaining() if hasattr(context, "time_remaining") else None
        seconds = limit if left is None else min(limit, left)
        result, outputs = await service.infer(
            _read(request),
            PredictRequest(
                model=request.model_name,
                images=(),
                application=call.application,
                request_id=call.request_id,
                deadline=time.monotonic() + seconds,
                version=request.model_version or None,
                trace=trace,
            ),
        )
        response = message("ModelInferResponse")(
            model_name=request.model_name,
            model_version=str(result.loaded.version),
            id=request.id or call.request_id,
            outputs=[
                {"name": item.name, "datatype": item.datatype, "shape": item.shape}
                for item in outputs
            ],
            raw_output_contents=[protocol.to_raw(item) for item in outputs],
        )
        loaded = result.loaded
        response.parameters["contract_digest"].string_param = loaded.manifest.contract_digest
        response.parameters["engine"].string_param = loaded.predictor.engine_name
        return response


def _end(trace: Trace, method: str, code: grpc.StatusCode) -> None:
    """End a trace with the attributes of OpenTelemetry's conventions for RPC servers."""
    name = f"{SERVICE}/{method}"
    attributes = {
        "rpc.system.name": "grpc",
        "rpc.method": name,
        "rpc.response.status_code": code.name,
    }
    trace.end(name, attributes, error=code.name if code in _SERVER_ERRORS else None)


def _read(request: Any) -> InferRequest:
    """Read the tensors of a request.

    Raises:
        InputError: If they violate the protocol.
    """
    raw: Sequence[bytes] = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InputError(
            f"The request has {len(request.inputs)} inputs, but {len(raw)} raw contents; send one "
            "for each input, or none."
        )
    inputs = []
    for number, item in enumerate(request.inputs):
        if raw:
            elements = protocol.parse_raw_elements(item.name, item.datatype, raw[number])
        elif item.datatype == "BYTES":
            elements = list(item.contents.bytes_contents)
        else:
            values = getattr(item.contents, _CONTENTS.get(item.datatype, "uint_contents"))
            elements = protocol.parse_numbers(item.name, item.datatype, values)
        inputs.append(InputTensor(item.name, item.datatype, tuple(item.shape), elements))
    return InferRequest(request.id, inputs, [_requested_output(item) for item in request.outputs])


def _requested_output(item: Any) -> RequestedOutput:
    if "classification" not in item.parameters:
        return RequestedOutput(item.name)
    classes = int(item.parameters["classification"].int64_param)
    if classes < 0:
        raise InputError("classification must be a number of classes.")
    return RequestedOutput(item.name, classes=classes)
