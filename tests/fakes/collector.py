"""An OpenTelemetry collector: receives OTLP over HTTP as protobuf, and decodes it.

It runs in a thread, because the exporter's requests block theirs.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import HistogramDataPoint
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Status


@dataclass(frozen=True)
class ReceivedSpan:
    """A span with its attributes, and those of its resource. Ids are hexadecimal."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    failed: bool
    attributes: dict[str, Any]
    resource: dict[str, Any]


class CollectorFake:
    """The server; use it as a context manager."""

    def __init__(self) -> None:
        self.spans: list[ReceivedSpan] = []
        self.points: dict[str, list[HistogramDataPoint]] = {}  # the newest of each metric
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._create_handler())

    @property
    def url(self) -> str:
        """The value for OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def find_spans(self, name: str) -> list[ReceivedSpan]:
        """The spans whose name begins with this operation, in the order of their ends."""
        return [span for span in self.spans if span.name.split(" ")[0] == name]

    @property
    def answers(self) -> list[ReceivedSpan]:
        """The spans of answers."""
        return self.find_spans("invoke_workflow")

    def find_children(self, parent: ReceivedSpan) -> list[ReceivedSpan]:
        """The spans directly below this one."""
        return [span for span in self.spans if span.parent_id == parent.span_id]

    def _create_handler(self) -> type[BaseHTTPRequestHandler]:
        receive = {"/v1/traces": self._receive_spans, "/v1/metrics": self._receive_metrics}

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.headers["Content-Type"] == "application/x-protobuf"
                receive[self.path](self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _receive_spans(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            attributes = _read_attributes(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [_read_span(span, attributes) for span in scope.spans]

    def _receive_metrics(self, body: bytes) -> None:
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    self.points[metric.name] = list(metric.histogram.data_points)


def read_point_attributes(point: HistogramDataPoint) -> dict[str, Any]:
    """The attributes of a point of a metric."""
    return _read_attributes(point.attributes)


def _read_span(span: SpanMessage, resource: dict[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        attributes=_read_attributes(span.attributes),
        resource=resource,
    )


def _read_attributes(attributes: Any) -> dict[str, Any]:
    read: dict[str, Any] = {}
    item: KeyValue
    for item in attributes:
        kind = item.value.WhichOneof("value")
        value = getattr(item.value, str(kind))
        if kind == "array_value":
            value = [element.string_value for element in value.values]
        read[item.key] = value
    return read
