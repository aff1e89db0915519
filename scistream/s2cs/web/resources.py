"""The resources that an S2CS serves besides its health: the JSON API, the events, and the files of the status page."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from http import HTTPStatus
from importlib import resources
from typing import Any

import msgspec
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from scistream.http.resources import JSON, TextResource, answer
from scistream.s2cs.web.api_types import ApiError, StreamSides
from scistream.s2cs.web.events import EventHub, EventListener
from scistream.s2cs.web.monitor import MOST_HISTORIES, MOST_LISTED, Monitor, key_of

_log = Logger()
_encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode

USUAL_LISTED = 100
"""Streams on a page of the list if the request does not say."""

_PAGES = {b"": "index.html"}
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "json": JSON,
}


def add_pages(root: Resource, monitor: Monitor, hub: EventHub) -> None:
    """Add the status page, the API and the events to the resource of ``/``."""
    root.putChild(b"api", _branch({b"v1": ApiResource(monitor)}))
    root.putChild(b"events", EventsResource(hub, monitor))
    files = {file.name: file.read_bytes() for file in resources.files(__package__).joinpath("static").iterdir()}
    root.putChild(b"", FileResource("index.html", files["index.html"]))
    root.putChild(b"streams", StreamPages(FileResource("stream.html", files["stream.html"])))
    root.putChild(b"static", _branch({name.encode(): FileResource(name, data) for name, data in files.items()}))


def _branch(children: Mapping[bytes, Resource]) -> Resource:
    branch = TextResource()
    for name, child in children.items():
        branch.putChild(name, child)
    return branch


class FileResource(Resource):
    """A file of the package, which a browser keeps and asks for again only if it has changed.

    :param name: with the ending that tells its type.
    """

    isLeaf = True

    def __init__(self, name: str, data: bytes) -> None:
        super().__init__()
        self._data = data
        self._type = _TYPES[name.rpartition(".")[2]]
        self._tag = b'"%s"' % hashlib.sha256(data).hexdigest()[:24].encode()

    def render_GET(self, request: Request) -> bytes:
        """Answer."""
        if request.postpath:
            return _error(request, HTTPStatus.NOT_FOUND, "not-found", "there is no such page here")
        request.setHeader(b"Cache-Control", b"no-cache")
        request.setETag(self._tag)
        if request.code == HTTPStatus.NOT_MODIFIED:
            return b""
        return answer(request, self._data, self._type)


class StreamPages(TextResource):
    """The pages of all streams are one file, whose script reads the uid from the address.

    :param page: the file.
    """

    def __init__(self, page: Resource) -> None:
        super().__init__()
        self._page = page

    def getChild(self, path: bytes, request: Request) -> Resource:
        """Return the page of a stream."""
        return self._page


class ApiResource(Resource):
    """``/api/v1``: answers in JSON, also about errors."""

    isLeaf = True

    def __init__(self, monitor: Monitor) -> None:
        super().__init__()
        self._monitor = monitor
        self._openapi = resources.files(__package__).joinpath("openapi.json").read_bytes()

    def render_GET(self, request: Request) -> bytes | int:
        """Answer."""
        path = [part.decode("utf-8", "replace") for part in request.postpath or []]
        try:
            return self._answer(request, path)
        except _BadRequestError as bad:
            return _error(request, HTTPStatus.BAD_REQUEST, "bad-request", str(bad))

    def _answer(self, request: Request, path: list[str]) -> bytes | int:
        monitor = self._monitor
        match path:
            case ["streams"]:
                fields = _fields(request, "after", "limit", "owner", "state")
                limit = _limit(fields)
                return _json(
                    request, monitor.streams(fields.get("after", ""), limit, fields.get("owner"), fields.get("state"))
                )
            case ["streams", uid]:
                _fields(request)
                return self._sides(request, uid)
            case ["history"]:
                keys = [key_of(text) for text in _values(request, "stream")]
                if not keys or None in keys or len(keys) > MOST_HISTORIES:
                    raise _BadRequestError(f"give 1 to {MOST_HISTORIES} fields stream=UID/PROD or stream=UID/CONS")
                return _json(request, monitor.histories(key for key in keys if key is not None))
            case ["gateways"]:
                _fields(request)
                return _json(request, monitor.gateway_list())
            case ["recent"]:
                _fields(request)
                return _json(request, monitor.recent())
            case ["server"]:
                _fields(request)
                return _json(request, monitor.server())
            case ["openapi.json"]:
                return answer(request, self._openapi, JSON)
        return _error(request, HTTPStatus.NOT_FOUND, "not-found", "see /api/v1/openapi.json for what is here")

    def _sides(self, request: Request, uid: str) -> int:
        """Answer with the sides of a stream, when its gateways have reported or are too slow."""
        is_over: list[Failure] = []
        request.notifyFinish().addErrback(is_over.append)

        def finish(sides: StreamSides | None) -> None:
            if is_over:
                return
            if sides is None:
                body = _error(
                    request,
                    HTTPStatus.NOT_FOUND,
                    "unknown-uid",
                    "this server has no such stream, or it was released more than a day ago",
                )
            else:
                body = _json(request, sides)
            request.write(body)
            request.finish()

        def fail(failure: Failure) -> None:
            _log.failure("cannot answer about a stream", failure=failure)
            if not is_over:
                reason = "internal error of this S2CS: look into its log"
                request.write(_error(request, HTTPStatus.INTERNAL_SERVER_ERROR, "internal", reason))
                request.finish()

        self._monitor.sides(uid).addCallback(finish).addErrback(fail)
        return NOT_DONE_YET


class EventsResource(Resource):
    """``/events``: server-sent events about all streams, or with ``?stream=UID`` about one."""

    isLeaf = True

    def __init__(self, hub: EventHub, monitor: Monitor) -> None:
        super().__init__()
        self._hub = hub
        self._monitor = monitor

    def render_GET(self, request: Request) -> bytes | int:
        """Answer until the other end closes the connection."""
        try:
            uid = _fields(request, "stream").get("stream")
        except _BadRequestError as bad:
            return _error(request, HTTPStatus.BAD_REQUEST, "bad-request", str(bad))
        if uid is not None and self._monitor.sides_now(uid) is None:
            return _error(request, HTTPStatus.NOT_FOUND, "unknown-uid", "this server has no such stream")
        if self._hub.is_full:
            request.setHeader(b"Retry-After", b"60")
            reason = "too many pages are open: close some, or try again later"
            return _error(request, HTTPStatus.SERVICE_UNAVAILABLE, "no-capacity", reason)
        request.setHeader(b"Content-Type", b"text/event-stream; charset=utf-8")
        if request.method == b"HEAD":
            return b""
        listener = EventListener(_Response(request), uid)
        request.registerProducer(listener, True)
        request.notifyFinish().addBoth(lambda _: self._hub.remove(listener))
        self._hub.add(listener)
        return NOT_DONE_YET


class _Response:
    """A response that goes on."""

    def __init__(self, request: Any) -> None:
        self._request = request

    def write(self, data: bytes) -> None:
        self._request.write(data)

    def abort(self, why: str) -> None:
        self._request.channel.abort(why)


class _BadRequestError(Exception):
    """The fields of a request are wrong."""


def _values(request: Request, name: str) -> list[str]:
    return [value.decode("utf-8", "replace") for value in (request.args or {}).get(name.encode(), [])]


def _fields(request: Request, *known: str) -> dict[str, str]:
    """Return the fields of a query.

    :raises _BadRequestError: if there are others, or one is there twice.
    """
    for name, values in (request.args or {}).items():
        if name.decode("utf-8", "replace") not in known:
            allowed = f"use {', '.join(known)}" if known else "there are none here"
            raise _BadRequestError(f"the field {name.decode('utf-8', 'replace')[:40]!r} is not known: {allowed}")
        if len(values) > 1:
            raise _BadRequestError(
                f"the field {name.decode('utf-8', 'replace')!r} is there {len(values)} times: give it once"
            )
    return {name: values[0] for name in known if (values := _values(request, name))}


def _limit(fields: Mapping[str, str]) -> int:
    text = fields.get("limit", str(USUAL_LISTED))
    if not (text.isascii() and text.isdecimal() and len(text) < 5 and 1 <= int(text) <= MOST_LISTED):
        raise _BadRequestError(f"limit: {text[:40]!r} is not a number from 1 to {MOST_LISTED}")
    return int(text)


def _json(request: Request, body: Any, status: HTTPStatus = HTTPStatus.OK) -> bytes:
    return answer(request, _encode(body), JSON, status)


def _error(request: Request, status: HTTPStatus, code: str, reason: str) -> bytes:
    return _json(request, ApiError(code=code, reason=reason), status)
