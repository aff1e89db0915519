"""The resources that both daemons serve, and how to add others.

A daemon makes its tree with `make_root`, which has ``/health/live`` and ``/health/ready``, and adds its own with
``root.putChild(b"metrics", resource)``. `ControlServer` does so in `scistream.s2cs.http`, and `DataServer` in
`scistream.s2ds.http`.

What a resource can rely on:

- `scistream.http.site.HttpRequest` has checked the sender, the method (GET or HEAD) and the header Host, so a resource
  sees only requests that are to be answered. ``request.identity`` is the sender.
- Every response has the headers of `scistream.http.site.STRICT_HEADERS`. In particular nothing inline runs in a page:
  scripts and styles are files of the same site. A resource may replace one of these headers with ``setHeader``.
- A request has no body. ``request.args`` has the fields of the query, as far as 16 KiB of headers hold them.
- `answer` ends a response; it takes care of HEAD and of the length.

A resource that goes on writing, such as server-sent events, returns `NOT_DONE_YET`, writes only while its consumer
reads (``request.registerProducer(self, True)``), and stops when ``request.notifyFinish()`` fails. Its connection is one
of `scistream.http.listener.BOUNDS`. It is closed when its sender may not read any more, and when the daemon stops.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import msgspec
from twisted.web.resource import Resource
from twisted.web.server import Request

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


class TextResource(Resource):
    """A leaf or branch of the tree whose missing children are answered in one line of text."""

    def getChild(self, path: bytes, request: Request) -> Resource:
        """Return the resource for a path that is not there."""
        return NotFound()


class NotFound(TextResource):
    """The answer for a path that is not there."""

    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        """Answer."""
        shown = request.path.decode("ascii", "replace")
        return answer(request, f"{shown!r} is not here\n", TEXT, HTTPStatus.NOT_FOUND)


def answer(request: Request, body: str | bytes, content_type: str, status: HTTPStatus = HTTPStatus.OK) -> bytes:
    """Set the status and the headers of a response, and return its body."""
    encoded = body.encode() if isinstance(body, str) else body
    request.setResponseCode(status)
    request.setHeader(b"Content-Type", content_type.encode())
    request.setHeader(b"Content-Length", b"%d" % len(encoded))
    return encoded


def wants_json(request: Request) -> bool:
    """Return True if the sender accepts JSON and does not prefer text."""
    accepted = ",".join(request.requestHeaders.getRawHeaders("accept") or []).lower()
    return JSON in accepted and not accepted.startswith("text/plain")


class HealthResource(TextResource):
    """Whether the daemon is well: status 200, or 503 with the reasons, as text or (with ``Accept``) as JSON.

    :param word: what it is if it is well: "live" or "ready".
    :param problems: returns why it is not, a sentence for each reason.
    """

    isLeaf = True

    def __init__(self, word: str, problems: Callable[[], list[str]]) -> None:
        super().__init__()
        self._word = word
        self._problems = problems

    def render_GET(self, request: Request) -> bytes:
        """Answer."""
        problems = self._problems()
        status = HTTPStatus.SERVICE_UNAVAILABLE if problems else HTTPStatus.OK
        if wants_json(request):
            body: dict[str, Any] = {self._word: not problems, "reasons": problems}
            return answer(request, msgspec.json.encode(body) + b"\n", JSON, status)
        lines = [f"not {self._word}: {problem}" for problem in problems] or [self._word]
        return answer(request, "".join(f"{line}\n" for line in lines), TEXT, status)


def make_root(unready: Callable[[], list[str]]) -> Resource:
    """Return the resource of ``/``, with the health of a daemon.

    :param unready: returns why the daemon is not ready, a sentence for each reason; empty if it is ready.
    """
    root, health = TextResource(), TextResource()
    health.putChild(b"live", HealthResource("live", list))
    health.putChild(b"ready", HealthResource("ready", unready))
    root.putChild(b"health", health)
    return root
