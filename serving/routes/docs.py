"""The API's documentation as one plain page, made from the OpenAPI document: no scripts, nothing from elsewhere."""

from __future__ import annotations

from html import escape

from fastapi import APIRouter, FastAPI, Response

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Redoubt: HTTP interface</title><link rel="stylesheet" href="ui/docs.css">
<main><h1>HTTP interface</h1>
<p>Version {version}. The machine-readable form is <a href="openapi.json">openapi.json</a>. Where keys are set up, send
one as <code>Authorization: Bearer KEY</code>. Errors are <code>{{"error": "..."}}</code>.</p>
{sections}</main></html>
"""
CSS = (
    ":root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}"
    "main{max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "h2{margin-top:2rem;text-transform:capitalize}h3{margin-bottom:.2rem}code{font-size:.95em}"
    "table{border-collapse:collapse}td,th{text-align:left;padding:.15rem 1rem .15rem 0;vertical-align:top}"
)


def docs_routes(app: FastAPI) -> APIRouter:
    routes = APIRouter(include_in_schema=False)

    @routes.get("/docs")
    def docs() -> Response:
        return Response(page(app.openapi()), media_type="text/html")

    @routes.get("/ui/docs.css")
    def style() -> Response:
        return Response(CSS, media_type="text/css")

    return routes


def page(document: dict) -> str:
    """The OpenAPI document as HTML."""
    groups: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tag = (operation.get("tags") or ["other"])[0]
            groups.setdefault(tag, []).append(_operation(method, path, operation))
    sections = "".join(f"<h2>{escape(tag)}</h2>{''.join(parts)}" for tag, parts in groups.items())
    return _PAGE.format(version=escape(document["info"]["version"]), sections=sections)


def _operation(method: str, path: str, operation: dict) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(one['name'])}</code><td>{one['in']}<td>{escape(one.get('description', ''))}"
        for one in operation.get("parameters", ())
    )
    bodies = ", ".join(operation.get("requestBody", {}).get("content", ()))
    answers = "".join(
        f"<tr><td>{code}<td>{escape(answer.get('description', ''))}" for code, answer in operation["responses"].items()
    )
    return (
        f"<h3><code>{method.upper()} {escape(path)}</code></h3><p>{escape(operation.get('description', ''))}</p>"
        + (f"<table>{rows}</table>" if rows else "") + (f"<p>Body: {escape(bodies)}</p>" if bodies else "")
        + f"<details><summary>Answers</summary><table>{answers}</table></details>"
    )
