"""The operator's actions. Each takes the role `operate` and leaves a line in the audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from serving.routes.schemas import BODY_PROBLEMS
from serving.server import Server

_Why = Annotated[str, Field(max_length=500)]


class Why(BaseModel):
    """The reason, for those who come later."""

    model_config = ConfigDict(extra="forbid")

    why: _Why = ""


class CampaignName(BaseModel):
    model_config = ConfigDict(extra="forbid")

    campaign: Annotated[str, Field(min_length=1, max_length=200)]


class VersionNumber(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Annotated[str, Field(min_length=1, max_length=20)]


class Done(BaseModel):
    """What was done, in words."""

    done: str


def operation_routes(server: Server) -> APIRouter:
    routes = APIRouter(prefix="/operations", responses=BODY_PROBLEMS, tags=["operations"])
    operations = server.operations

    def by(request: Request, **details) -> str:
        request.scope["state"]["audit"] = details
        return request.scope["state"]["principal"].name

    @routes.post("/pause")
    def pause(request: Request, body: Why) -> Done:
        """Start no retraining run until `resume`; one that is under way goes on."""
        operations.pause(by(request, why=body.why), body.why)
        return Done(done="retraining is paused")

    @routes.post("/resume")
    def resume(request: Request) -> Done:
        """Retraining runs may start again."""
        by(request)
        operations.resume()
        server.retrainer.wake()
        return Done(done="retraining goes on")

    @routes.post("/acknowledge")
    def acknowledge(request: Request, body: CampaignName) -> Done:
        """A person has seen this campaign."""
        known = {row["id"] for row in server.watch.campaigns_status()}
        operations.acknowledge(body.campaign, by(request, campaign=body.campaign), known)
        return Done(done=f"campaign {body.campaign} is acknowledged")

    @routes.post("/rollback")
    def rollback(request: Request, body: Why) -> Done:
        """Put the champion before this one back into service."""
        version = operations.rollback(by(request, why=body.why), body.why)
        request.scope["state"]["audit"] |= {"version": version}
        return Done(done=f"version {version} is champion again")

    @routes.post("/promote", status_code=202)
    def promote(request: Request, body: VersionNumber) -> Done:
        """Have the gate judge a version, and make it champion if it passes; `/status` says how it ended."""
        operations.promote(body.version, by(request, version=body.version))
        return Done(done=f"the gate is judging version {body.version}")

    return routes
