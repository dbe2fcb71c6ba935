"""Traces requests with OpenTelemetry: a span for each request, and in it one for each stage.

    request                 child of the caller's span, if it sends `traceparent`
    ├── load                if the request waited for a version
    ├── fetch               for an image that the request only names
    ├── queue, decode, forward
    └── predict             if an image has no outcome, with the reason

Spans of stages are made from times that are measured anyway. Spans are sent to a collector over
OTLP/HTTP in batches, by a separate thread; if it does not keep up, the oldest are dropped and no
request waits. Without a collector OpenTelemetry is not imported, and all requests share one trace
object that does nothing.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Any

from eagleray.core.settings import Settings
from eagleray.serving.prediction.workers import TimedOutcome

if TYPE_CHECKING:  # only where a collector is configured
    from opentelemetry.trace import Span, Tracer

__all__ = ["NO_TRACE", "ONLY_FAILURES", "Trace", "Tracing", "open_tracing"]

ONLY_FAILURES = math.inf
"""For `Trace.stage`: a span only if the stage fails."""

_SECONDS_TO_END = 5.0
_NOTHING = contextlib.nullcontext()


class Trace:
    """The trace of one request. This class records nothing; a subclass sends spans."""

    __slots__ = ()

    @property
    def trace_id(self) -> str:
        """Id of the trace in 32 hex digits; empty if the request is not traced."""
        return ""

    @property
    def is_recording(self) -> bool:
        """Whether spans of this trace are sent."""
        return False

    def note(self, **attributes: str | int) -> None:
        """Set attributes `eagleray.…` of the request's span."""

    def stage(
        self,
        name: str,  # noqa: ARG002
        *,
        image: int | None = None,  # noqa: ARG002
        min_seconds: float = 0.0,  # noqa: ARG002
    ) -> AbstractContextManager[None]:
        """Time a block as a stage, and record the error that ends it.

        Args:
            name: Name of the span.
            image: Number of the image in the request.
            min_seconds: Duration below which a stage that succeeds has no span.
        """
        return _NOTHING

    def record_prediction(self, image: int, timed: TimedOutcome) -> None:
        """Record the stages of an image that a worker predicted."""

    def end(self, name: str, attributes: Mapping[str, Any], *, error: str | None = None) -> None:
        """End the request.

        Args:
            name: Name of the request's span.
            attributes: Attributes by OpenTelemetry's conventions for the protocol.
            error: Kind of the service's own error; None if there is none.
        """


NO_TRACE = Trace()


class _RecordedTrace(Trace):
    __slots__ = ("_ended", "_offset", "_span", "_tracer")

    def __init__(self, tracer: Tracer, carrier: Mapping[str, str]) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # One offset for all moments of a request, so a clock that is set meanwhile does not matter.
        self._offset = time.time_ns() - time.monotonic_ns()
        self._tracer, self._ended = tracer, False
        self._span: Span = tracer.start_span(
            "request",
            context=TraceContextTextMapPropagator().extract(carrier),
            kind=SpanKind.SERVER,
            start_time=self._at(time.monotonic()),
        )

    @property
    def trace_id(self) -> str:
        context = self._span.get_span_context()
        return f"{context.trace_id:032x}" if context.is_valid else ""

    @property
    def is_recording(self) -> bool:
        return not self._ended and self._span.is_recording()

    def note(self, **attributes: str | int) -> None:
        self._span.set_attributes({f"eagleray.{name}": it for name, it in attributes.items()})

    @contextlib.contextmanager
    def _timed(self, name: str, image: int | None, min_seconds: float) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        except BaseException as error:
            kind, words = type(error).__name__, str(error)
            self._add(name, began, time.monotonic(), _of(image), error=(kind, words))
            raise
        ended = time.monotonic()
        if ended - began >= min_seconds:
            self._add(name, began, ended, _of(image))

    def stage(
        self, name: str, *, image: int | None = None, min_seconds: float = 0.0
    ) -> AbstractContextManager[None]:
        return self._timed(name, image, min_seconds)

    def record_prediction(self, image: int, timed: TimedOutcome) -> None:
        began, attributes = timed.began, _of(image)
        decoded = began + timed.decoding
        failure, error = timed.outcome.failure, None
        if failure is not None:
            error = (failure.reason.value, failure.message)
        self._add("queue", began - timed.queued, began, attributes)
        attributes["eagleray.batch_images"] = timed.batch_images
        self._add("decode", began, decoded, attributes, error=error)
        self._add("forward", decoded, decoded + timed.forward, attributes)

    def end(self, name: str, attributes: Mapping[str, Any], *, error: str | None = None) -> None:
        from opentelemetry.trace import StatusCode

        self._span.update_name(name)
        self._span.set_attributes(attributes)
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(StatusCode.ERROR)
        self._span.end(self._at(time.monotonic()))
        self._ended = True

    def _add(
        self,
        name: str,
        began: float,
        ended: float,
        attributes: Mapping[str, Any],
        *,
        error: tuple[str, str] | None = None,
    ) -> None:
        """Add a stage that has ended; stages are not added after the end of their request."""
        from opentelemetry.trace import StatusCode, set_span_in_context

        if not self.is_recording:
            return
        span = self._tracer.start_span(
            name,
            context=set_span_in_context(self._span),
            attributes=attributes,
            start_time=self._at(began),
        )
        if error is not None:
            kind, words = error
            span.set_attribute("error.type", kind)
            span.set_status(StatusCode.ERROR, words)
        span.end(self._at(ended))

    def _at(self, moment: float) -> int:
        """Return a moment of the monotonic clock as nanoseconds since 1970."""
        return int(moment * 1e9) + self._offset


def _of(image: int | None) -> dict[str, Any]:
    return {} if image is None else {"eagleray.image": image}


class Tracing:
    """Begins the traces of requests. This class traces nothing."""

    def begin(self, carrier: Mapping[str, str]) -> Trace:  # noqa: ARG002
        """Begin the trace of a request.

        Args:
            carrier: Headers or metadata of the request, with names in lower case; may hold
                `traceparent`.
        """
        return NO_TRACE

    def close(self) -> None:
        """Send the remaining spans, waiting a few seconds at most."""


class _OtlpTracing(Tracing):
    def __init__(self, endpoint: str, service_name: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        version = version_of("eagleray")
        resource = Resource.create({"service.name": service_name, "service.version": version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("eagleray", version)

    def begin(self, carrier: Mapping[str, str]) -> Trace:
        return _RecordedTrace(self._tracer, carrier)

    def close(self) -> None:
        # The library waits half a minute for a collector that does not answer.
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(_SECONDS_TO_END)


def open_tracing(settings: Settings) -> Tracing:
    """Return the tracing to the collector of the settings; without one nothing is traced."""
    if settings.otlp_endpoint is None:
        return Tracing()
    return _OtlpTracing(settings.otlp_endpoint, settings.otel_service_name)
