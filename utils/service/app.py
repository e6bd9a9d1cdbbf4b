"""The application: which request goes where, and what the service says about it."""

from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse
from starlette.types import ASGIApp

from model.versions import VERSION
from utils.service.answers import ErrorAnswer
from utils.service.config import AccessConfig
from utils.service.endpoints import Service
from utils.service.errors import add_handlers
from utils.service.guard import Guard

IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
            "image/png": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}}}
            },
        },
    }
}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "No image, or one that cannot be read"},
    413: {"model": ErrorAnswer, "description": "Too many bytes"},
    503: {"model": ErrorAnswer, "description": "Too many requests: Retry-After says when to come back"},
}
UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"model": ErrorAnswer, "description": "There is no such image"}}


def create_app(service: Service, access: AccessConfig) -> ASGIApp:
    """The application."""
    app = FastAPI(
        title="SelaVPR++",
        description="Visual place recognition: send an image, and get the images of an index that show its place.",
        version=VERSION,
        lifespan=service.running,
        docs_url=None,  # these pages would load scripts from another server
        redoc_url=None,
    )
    app.add_api_route(
        "/search", service.search, methods=["POST"], openapi_extra=IMAGE_BODY, responses=ERRORS, name="Search"
    )
    shown = {**UNKNOWN, 200: {"content": {"image/jpeg": {}}}}
    app.add_api_route("/images/{id}", service.thumbnail, responses=shown, response_class=Response, name="Thumbnail")
    if service.config.writable:
        app.add_api_route(
            "/images", service.add, methods=["POST"], openapi_extra=IMAGE_BODY, responses=ERRORS, name="Add"
        )
        app.add_api_route(
            "/images/{id}", service.remove, methods=["DELETE"], status_code=204, responses=UNKNOWN, name="Remove"
        )
    app.add_api_route("/", service.page, include_in_schema=False)
    app.add_api_route("/docs", service.programs, include_in_schema=False)
    app.add_api_route("/examples/{i}", service.example, include_in_schema=False)
    app.add_api_route("/examples/{i}/thumbnail", service.example_thumbnail, include_in_schema=False)
    app.add_api_websocket_route("/frames", service.frames)
    app.add_api_route("/healthz", service.health, name="Health")
    app.add_api_route("/metrics", service.show_metrics, response_class=PlainTextResponse, name="Metrics")
    add_handlers(app)
    return Guard(app, config=service.config, access=access, metrics=service.metrics)
