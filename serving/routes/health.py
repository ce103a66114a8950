"""Health, server and model metadata of the Open Inference Protocol."""

from __future__ import annotations

from fastapi import APIRouter

from redoubt import __version__
from serving import protocol
from serving.routes.schemas import PROBLEMS, ModelMetadata, ModelReady, ServerLive, ServerMetadata, ServerReady
from serving.server import Server


def health_routes(server: Server) -> APIRouter:
    routes = APIRouter(responses=PROBLEMS)

    @routes.get("/v2/health/live", tags=["health"])
    async def live() -> ServerLive:
        """The process answers."""
        return ServerLive(live=True)

    @routes.get("/v2/health/ready", tags=["health"])
    async def ready() -> ServerReady:
        """A model is loaded and warm; 503 with the reason while none is, and while the server drains."""
        server.check_ready()
        return ServerReady(ready=True)

    @routes.get("/v2", tags=["metadata"])
    async def about() -> ServerMetadata:
        """Name, version and extensions of the server."""
        return ServerMetadata(name="redoubt", version=__version__, extensions=["binary_tensor_data"])

    def card(name: str, version: str | None) -> ModelMetadata:
        server.check_name(name)
        loaded = server.engine.find(version)
        return ModelMetadata(**protocol.metadata(
            loaded.bundle, model_name=name, versions=server.engine.versions(), detail=server.told(),
        ))

    def loaded(name: str, version: str | None) -> ModelReady:
        server.check_name(name)
        server.engine.find(version)
        return ModelReady(name=name, ready=True)

    @routes.get("/v2/models/{name}", tags=["metadata"])
    async def describe(name: str) -> ModelMetadata:
        """Inputs and outputs of the model."""
        return card(name, None)

    @routes.get("/v2/models/{name}/versions/{version}", tags=["metadata"])
    async def describe_version(name: str, version: str) -> ModelMetadata:
        """Inputs and outputs of one version."""
        return card(name, version)

    @routes.get("/v2/models/{name}/ready", tags=["health"])
    async def model_ready(name: str) -> ModelReady:
        """The model is loaded and warm."""
        return loaded(name, None)

    @routes.get("/v2/models/{name}/versions/{version}/ready", tags=["health"])
    async def version_ready(name: str, version: str) -> ModelReady:
        """This version is loaded and warm."""
        return loaded(name, version)

    return routes
