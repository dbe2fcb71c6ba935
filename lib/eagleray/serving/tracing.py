"""Traces of requests, as OpenTelemetry knows them: a span for each, and in it one for each stage.

    request                 parent: the caller's span, where it sends `traceparent`
    ├── load                only where the request waited for a version
    ├── fetch               of an image that the request only names
    ├── queue, decode, forward
    └── lanes               only where an image came to no answer: why

Stages have the times that were measured anyway. Spans go to a collector over OTLP/HTTP, in batches,
from a thread of its own; when that does not keep up the oldest are dropped, and no request waits.
Without a collector nothing of OpenTelemetry is imported, and one object is every request's trace.
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
from eagleray.serving.workers import Answered

if TYPE_CHECKING:  # only where a collector is configured
    from opentelemetry.trace import Span, Tracer

__all__ = ["NO_TRACE", "ONLY_FAILURES", "Trace", "Tracing", "open_tracing"]

ONLY_FAILURES = math.inf
"""For `Trace.stage`: a span only where the stage fails."""

_SECONDS_TO_END = 5.0
_NOTHING = contextlib.nullcontext()


class Trace:
    """What is told of one request. This one forgets it; a subclass sends it away."""

    __slots__ = ()

    @property
    def trace_id(self) -> str:
        """The trace in 32 hex digits; empty where nobody traces."""
        return ""

    @property
    def is_recording(self) -> bool:
        """Whether what is told here goes anywhere."""
        return False

    def note(self, **attributes: str | int) -> None:
        """Note what Eagleray knows of the request, as attributes `eagleray.…`."""

    def stage(
        self,
        name: str,  # noqa: ARG002
        *,
        image: int | None = None,  # noqa: ARG002
        least: float = 0.0,  # noqa: ARG002
    ) -> AbstractContextManager[None]:
        """Time a block as a stage, and note the error that ends it.

        Args:
            name: Of the span.
            image: Number of the image in the request.
            least: Seconds below which there is no span, unless it fails.
        """
        return _NOTHING

    def saw_answer(self, image: int, answered: Answered) -> None:
        """Note where the time of an image went that a lane answered."""

    def end(self, name: str, attributes: Mapping[str, Any], *, error: str | None = None) -> None:
        """End the request.

        Args:
            name: Of its span.
            attributes: By OpenTelemetry's conventions for its protocol.
            error: Kind of the service's own fault; None where it has none.
        """


NO_TRACE = Trace()


class _RecordedTrace(Trace):
    __slots__ = ("_ended", "_offset", "_span", "_tracer")

    def __init__(self, tracer: Tracer, carrier: Mapping[str, str]) -> None:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # One offset for all moments of a request: no clock that is set meanwhile parts them.
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
    def _timed(self, name: str, image: int | None, least: float) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        except BaseException as error:
            kind, words = type(error).__name__, str(error)
            self._add(name, began, time.monotonic(), _of(image), error=(kind, words))
            raise
        ended = time.monotonic()
        if ended - began >= least:
            self._add(name, began, ended, _of(image))

    def stage(
        self, name: str, *, image: int | None = None, least: float = 0.0
    ) -> AbstractContextManager[None]:
        return self._timed(name, image, least)

    def saw_answer(self, image: int, answered: Answered) -> None:
        began, attributes = answered.began, _of(image)
        decoded = began + answered.decoding
        failure, error = answered.outcome.failure, None
        if failure is not None:
            error = (failure.reason.value, failure.message)
        self._add("queue", began - answered.queued, began, attributes)
        attributes["eagleray.batch_images"] = answered.batch_images
        self._add("decode", began, decoded, attributes, error=error)
        self._add("forward", decoded, decoded + answered.forward, attributes)

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
        """Add a stage, of which all is known; after the end of its request it is not added."""
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
    """Begins the traces of requests. This one begins none."""

    def begin(self, carrier: Mapping[str, str]) -> Trace:  # noqa: ARG002
        """Begin the trace of a request.

        Args:
            carrier: Its headers or metadata, names in lower case; may hold `traceparent`.
        """
        return NO_TRACE

    def close(self) -> None:
        """Send what is left, as long as that takes no more than seconds."""


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
        # The library waits half a minute for a collector that is away.
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(_SECONDS_TO_END)


def open_tracing(settings: Settings) -> Tracing:
    """Return what begins traces: to the collector of the settings, or none without one."""
    if settings.otlp_endpoint is None:
        return Tracing()
    return _OtlpTracing(settings.otlp_endpoint, settings.otel_service_name)
