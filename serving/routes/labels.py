"""Labels that come back after the answer."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from serving.routes.schemas import BODY_PROBLEMS
from serving.server import Server

_Class = Annotated[int, Field(ge=0, lt=65536, strict=True)]


class Labels(BaseModel):
    """The true classes of one request's inputs, in its order; null where one is not known."""

    model_config = ConfigDict(extra="forbid")

    request_id: Annotated[str, Field(min_length=1, max_length=512)]
    labels: Annotated[list[_Class | None], Field(min_length=1, max_length=4096)]


class FeedbackBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    feedback: Annotated[list[Labels], Field(min_length=1, max_length=4096)]


class FeedbackAnswer(BaseModel):
    """How many requests were counted, not known (any more), or answered by a version that no longer serves."""

    counted: int
    unknown: int
    stale: int


def label_routes(server: Server) -> APIRouter:
    routes = APIRouter(responses=BODY_PROBLEMS, tags=["feedback"])

    @routes.post("/v2/models/{name}/feedback")
    def feedback(request: Request, name: str, body: FeedbackBody) -> FeedbackAnswer:
        """Delayed labels by request id: the answer's header X-Request-Id, or its `id`. An id that the request's body
        chose is found for the client that asked, and for keys without the role `predict`."""
        server.check_name(name)
        principal = request.scope["state"]["principal"]
        by = principal.name if "predict" in principal.roles else None
        results = {"counted": 0, "unknown": 0, "stale": 0}
        for row in body.feedback:
            result = server.feedback.take(row.request_id, row.labels, by)
            results[result] += 1
            server.metrics.feedback.labels(result).inc()
        return FeedbackAnswer(**results)

    return routes
