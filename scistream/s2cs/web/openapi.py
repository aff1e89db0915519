"""Make `openapi.json`, the description of the API, from its types: ``python -m scistream.s2cs.web.openapi``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from scistream import __version__
from scistream.s2cs.web.api_types import (
    ApiError,
    ChangeEvent,
    GatewayList,
    HistoryList,
    RecentList,
    ServerView,
    StreamList,
    StreamSides,
)
from scistream.s2cs.web.monitor import MOST_HISTORIES, MOST_LISTED
from scistream.s2cs.web.resources import USUAL_LISTED

FILE = Path(__file__).with_name("openapi.json")


def document() -> dict[str, Any]:
    """Return the description, as OpenAPI 3.1."""
    kinds = [StreamList, StreamSides, HistoryList, GatewayList, RecentList, ServerView, ChangeEvent, ApiError]
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "SciStream control server",
            "version": __version__,
            "summary": "What an S2CS knows about its streams and gateways. Read-only.",
            "description": (
                "Served at the address `listen` of `[http]` in the settings of an S2CS. On loopback there is no login; "
                "beyond it, a client certificate of an administrator is needed. Answers may get more fields in later "
                "versions: ignore those that you do not know."
            ),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "the S2CS that serves this file"}],
        "paths": _paths(),
        "components": {"schemas": schemas},
    }


def _paths() -> dict[str, Any]:
    uid = _parameter("uid", "the uid of the stream", where="path", required=True, format="uuid")
    return {
        "/api/v1/server": _get("The server itself", "getServer", ServerView),
        "/api/v1/streams": _get(
            "A page of the live streams",
            "listStreams",
            StreamList,
            _parameter("after", "the key after which the page begins: `more` of the page before"),
            {
                "name": "limit",
                "in": "query",
                "description": "streams on the page",
                "schema": {"type": "integer", "minimum": 1, "maximum": MOST_LISTED, "default": USUAL_LISTED},
            },
            _parameter("owner", "only streams of owners with this name in their certificates"),
            _parameter("state", "only streams in this state"),
        ),
        "/api/v1/streams/{uid}": _get(
            "One stream, with its channels, resets and the last minutes",
            "getStream",
            StreamSides,
            uid,
            missing="This server has no such stream, or it was released more than a day ago",
        ),
        "/api/v1/history": _get(
            "The rates of several live streams in the last minutes",
            "getHistory",
            HistoryList,
            {
                "name": "stream",
                "in": "query",
                "required": True,
                "description": "the key of a stream, such as UID/PROD; repeated for several",
                "style": "form",
                "explode": True,
                "schema": {
                    "type": "array",
                    "items": {"type": "string", "pattern": "^.+/(PROD|CONS)$"},
                    "minItems": 1,
                    "maxItems": MOST_HISTORIES,
                },
            },
        ),
        "/api/v1/gateways": _get("The gateways of the pool", "listGateways", GatewayList),
        "/api/v1/recent": _get("The latest refusals and ends of streams", "listRecent", RecentList),
        "/events": {
            "get": {
                "summary": "What changes, as server-sent events",
                "description": (
                    "At most one event a second. Without `stream` each event is named `change`, and its data is a "
                    "ChangeEvent; with it, each is named `stream`, and its data is a StreamSides. First open this "
                    "stream of events, then fetch the lists, and apply each event whose `change` is higher than the "
                    "one of the list. After a lost connection fetch the lists again."
                ),
                "operationId": "watch",
                "parameters": [_parameter("stream", "the uid of the only stream to watch", format="uuid")],
                "responses": {
                    "200": {
                        "description": "Events, until the connection is closed",
                        "content": {"text/event-stream": {"schema": {"type": "string"}}},
                    },
                    "400": _failure("A field of the query is wrong"),
                    "404": _failure("This server has no such stream"),
                    "503": _failure("Too many readers: try again later"),
                },
            }
        },
    }


def _get(
    summary: str, operation: str, kind: type[Any], *parameters: dict[str, Any], missing: str = ""
) -> dict[str, Any]:
    """Return the description of a resource that answers GET with JSON."""
    responses = {"200": {"description": summary, "content": _content(kind)}}
    responses["400"] = _failure("A field of the query is wrong")
    if missing:
        responses["404"] = _failure(missing)
    get: dict[str, Any] = {"summary": summary, "operationId": operation, "responses": responses}
    if parameters:
        get["parameters"] = list(parameters)
    return {"get": get}


def _failure(description: str) -> dict[str, Any]:
    return {"description": description, "content": _content(ApiError)}


def _content(kind: type[Any]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}


def _parameter(name: str, description: str, where: str = "query", *, required: bool = False, **schema: Any) -> Any:
    parameter: dict[str, Any] = {"name": name, "in": where, "description": description}
    if required:
        parameter["required"] = True
    return {**parameter, "schema": {"type": "string", **schema}}


def text() -> str:
    """Return the contents of `openapi.json`."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
