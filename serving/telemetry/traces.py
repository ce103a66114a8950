"""OpenTelemetry spans, when the settings ask for them: one a request, which continues the caller's trace."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from redoubt import __version__
from redoubt.errors import InvalidInput


class Traces:
    """Makes spans, or nothing.

    Args:
        on: whether to make any.
        exporter: where they go; None for OTLP over HTTP as OTEL_EXPORTER_OTLP_ENDPOINT says.

    Raises:
        InvalidInput: when OpenTelemetry is not installed.
    """

    def __init__(self, on: bool, exporter=None):
        self._tracer = self._provider = None
        if not on:
            return
        try:
            from opentelemetry import propagate, trace
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            if exporter is None:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

                exporter = OTLPSpanExporter()
        except ImportError as error:
            raise InvalidInput(f"REDOUBT_TRACES needs OpenTelemetry ({error}): pip install 'redoubt[traces]'") from None
        self._extract, self._kind = propagate.extract, trace.SpanKind.SERVER
        resource = Resource.create({"service.name": "redoubt", "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("redoubt.serving")

    def request(self, method: str, path: str, headers: dict[bytes, bytes]) -> AbstractContextManager:
        """A span round one request; yields None where none is made."""
        if self._tracer is None:
            return nullcontext()
        carrier = {
            name: headers[name.encode()].decode("latin-1")
            for name in ("traceparent", "tracestate") if name.encode() in headers
        }
        attributes = {"http.request.method": method, "url.path": path[:200]}
        return self._tracer.start_as_current_span(
            f"{method} {path.split('/versions/')[0][:100]}", context=self._extract(carrier), kind=self._kind,
            attributes=attributes,
        )

    def flush(self) -> bool:
        """Send what waits; whether that worked."""
        return self._provider is None or self._provider.force_flush(5000)

    def stop(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()
