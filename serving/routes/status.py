"""What the server says about itself: status, metrics, history, the audit log, and the quarantine's entries."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from serving.problems import NotFound
from serving.routes.schemas import PROBLEMS
from serving.server import Server
from serving.telemetry.metrics import CONTENT_TYPE, render


def status_routes(server: Server) -> APIRouter:
    routes = APIRouter(responses=PROBLEMS, tags=["status"])

    @routes.get("/status")
    def status() -> dict:
        """Champion, monitor, campaigns, retraining requests, swaps and requests, as they stand."""
        return server.status()

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics() -> Response:
        """Prometheus metrics."""
        return Response(render({server.settings.model_name: server.metrics}), media_type=CONTENT_TYPE)

    @routes.get("/history")
    def history() -> dict:
        """Traffic, flagged inputs and the monitor's statistic: a quarter of an hour by the second, a day by the
        minute."""
        return server.feed.history.rows()

    @routes.get("/audit")
    def audit(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[dict]:
        """What operators did, newest first."""
        return server.audit.tail(limit)

    @routes.get("/quarantine")
    def quarantine(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[dict]:
        """Flagged inputs that are kept, newest first; empty while the quarantine is off."""
        return server.quarantine.entries(limit) if server.quarantine else []

    @routes.get(
        "/quarantine/{identity}", response_class=Response, responses={200: {"content": {"image/png": {}}}}
    )
    def picture(identity: str) -> Response:
        """One of them as PNG."""
        found = server.quarantine.png(identity) if server.quarantine else None
        if found is None:
            raise NotFound("there is no such input in the quarantine")
        return Response(found, media_type="image/png")

    return routes
