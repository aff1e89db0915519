"""The requests and connections of an HTTP listener: who may read, which requests are refused, and all limits.

Only GET and HEAD are answered, and never a request with a body. On loopback there is no login, and the header Host must
name this machine, so that a page of another site cannot reach the listener under a name of its own (DNS rebinding).
Beyond loopback each connection is TLS with a client certificate, which is checked again for each request.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from scistream import timing
from scistream.links.admission import Admission
from scistream.links.tls_links import PLAIN_IDENTITY
from scistream.protocol.address import Address
from scistream.tls.explain import explain
from scistream.tls.files import CertificateError
from scistream.tls.reloadable import ReloadableCredentials
from scistream.tls.verify import Identity, certificate_expiry, certified_client

METHODS = (b"GET", b"HEAD")
MAX_HEADER_BYTES = 16 * 1024
"""The size of the request line and all headers together."""
MAX_HEADERS = 100
STRICT_HEADERS = {
    b"Content-Security-Policy": (
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    b"X-Content-Type-Options": b"nosniff",
    b"Referrer-Policy": b"no-referrer",
    b"Cross-Origin-Resource-Policy": b"same-origin",
    b"Cross-Origin-Opener-Policy": b"same-origin",
    b"Cache-Control": b"no-store",
}
"""The headers of every response. A page may load scripts, styles and images from this site only, and none inline."""

_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::\d{1,5})?")


class RequestRefusedError(Exception):
    """A request that is refused.

    :param status: of the response.
    :param why: a sentence for the reader: the value, the reason and the remedy.
    """

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


def names_this_machine(host: str) -> bool:
    """Return True if the header Host is a name or an address of loopback, with or without a port."""
    match = _HOST.fullmatch(host)
    return match is not None and (match[1].lower() == "localhost" or Address(match[1].strip("[]"), 0).is_on_loopback)


class HttpRequest(Request):
    """A request, which is refused before any resource sees it unless its sender may read.

    :ivar identity: the sender, once it is admitted; `PLAIN_IDENTITY` on loopback.
    """

    identity: Identity = PLAIN_IDENTITY
    channel: HttpChannel

    def process(self) -> None:
        """Answer the request, or refuse it and close the connection."""
        for name, value in STRICT_HEADERS.items():
            self.setHeader(name, value)
        try:
            self._check()
        except RequestRefusedError as refusal:
            self.channel.persistent = False
            self.setResponseCode(refusal.status)
            self.setHeader(b"Connection", b"close")
            self.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
            if refusal.status == HTTPStatus.METHOD_NOT_ALLOWED:
                self.setHeader(b"Allow", b", ".join(METHODS))
            body = f"{refusal}\n".encode()
            self.setHeader(b"Content-Length", b"%d" % len(body))
            self.write(body)
            self.finish()
            return
        super().process()

    def setHeader(self, name: Any, value: Any) -> None:
        """Set a header of the response, except for Server, which would tell everybody the version of Twisted."""
        if name.lower() != b"server":
            super().setHeader(name, value)

    def _check(self) -> None:
        """Check whether the request is answered.

        :raises RequestRefusedError: if not.
        """
        if self.channel.site.credentials is None:
            hosts = self.requestHeaders.getRawHeaders("host") or []
            if len(hosts) != 1 or not names_this_machine(hosts[0]):
                shown = ", ".join(map(repr, hosts)) or "nothing"
                raise RequestRefusedError(
                    HTTPStatus.MISDIRECTED_REQUEST,
                    f"the header Host has {shown}, but this listener answers for loopback only: use http://localhost",
                )
        self.identity = self.channel.admit()
        if self.method not in METHODS:
            raise RequestRefusedError(
                HTTPStatus.METHOD_NOT_ALLOWED, f"{self.method!r}: only GET and HEAD are answered here"
            )


class HttpChannel(HTTPChannel):
    """A connection to an `HttpSite`."""

    site: HttpSite
    admission: Admission
    transport: Any
    totalHeadersSize = MAX_HEADER_BYTES
    maxHeaders = MAX_HEADERS
    abortTimeout: Any = None  # `loseConnection` has a limit of its own, which is not only for timeouts

    def __init__(self) -> None:
        super().__init__()
        self._method = b""
        self._is_refused = False
        self._is_admitted = False
        self._closing: IDelayedCall | None = None
        self._expiring: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Note the connection, whose first request must be complete within `timing.HTTP_REQUEST`."""
        self.site.channels.add(self)
        self.admission.opened(self.abort)
        super().connectionMade()

    def resetTimeout(self) -> None:
        """Do nothing: a request has a limit in all, however often some bytes of it arrive."""

    def lineReceived(self, line: bytes) -> None:
        """Take a line of a request."""
        before = len(self.requests)
        super().lineReceived(line)
        if len(self.requests) > before:
            self._method = line.partition(b" ")[0]

    def allHeadersReceived(self) -> None:
        """Go on with a request whose headers are complete, or refuse it before its body arrives."""
        if self.length == 0:
            super().allHeadersReceived()
            return
        self._is_refused = True
        allowed = self._method in METHODS
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE if allowed else HTTPStatus.METHOD_NOT_ALLOWED
        headers = Headers({name: [value] for name, value in STRICT_HEADERS.items()})
        headers.setRawHeaders(b"Content-Length", [b"0"])
        headers.setRawHeaders(b"Connection", [b"close"])
        if not allowed:
            headers.setRawHeaders(b"Allow", [b", ".join(METHODS)])
        self.writeHeaders(b"HTTP/1.1", b"%d" % status, status.phrase.encode(), headers)
        self.loseConnection()

    def rawDataReceived(self, data: bytes) -> None:
        """Take the data that follow the headers; drop the body of a refused request."""
        if not self._is_refused:
            super().rawDataReceived(data)

    def requestDone(self, request: Any) -> None:
        """Wait for the next request on this connection."""
        super().requestDone(request)
        if self.persistent and not self.requests and self._closing is None:
            self.setTimeout(timing.HTTP_IDLE)

    def timeoutConnection(self) -> None:
        """Close the connection, on which no request has come in time."""
        self.loseConnection()

    def loseConnection(self) -> None:
        """Close the connection when what was written has been read, but do not wait long for that."""
        if self._closing is None:
            self._closing = self.site.reactor.callLater(timing.CLOSE, self.transport.abortConnection)
        super().loseConnection()

    def abort(self, _why: str) -> None:
        """Close the connection at once."""
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Clean up after the connection."""
        if not self._is_admitted:
            why = explain(reason) if isinstance(reason.value, SSL.Error) else "it sent no request that is answered"
            self.admission.failed(why)
            if isinstance(reason.value, SSL.Error):
                self.admission.note("refused a connection", why)
        for timer in (self._closing, self._expiring):
            if timer is not None and timer.active():
                timer.cancel()
        self._closing = self._expiring = None
        self.site.channels.discard(self)
        self.admission.closed()
        super().connectionLost(reason)

    def admit(self) -> Identity:
        """Return who sends requests on this connection.

        :raises RequestRefusedError: if they may not read now, or have sent too many requests.
        """
        identity = self._reader()
        name = str(identity) if self.site.credentials is not None else None
        if not self.admission.mark_proven(name):
            raise RequestRefusedError(
                HTTPStatus.TOO_MANY_REQUESTS, "there are too many connections with this certificate"
            )
        if not self._is_admitted and self.site.credentials is not None:
            self._end_with_certificate()
        self._is_admitted = True
        if self.admission.line_received() > 0:
            raise RequestRefusedError(HTTPStatus.TOO_MANY_REQUESTS, "these are too many requests: ask less often")
        return identity

    def check_again(self) -> None:
        """Close the connection if whoever has opened it may not read any more."""
        if not self._is_admitted:
            return
        try:
            self._reader()
        except RequestRefusedError as refusal:
            self.admission.note("closed a connection", str(refusal))
            self.abort(str(refusal))

    def _reader(self) -> Identity:
        """Return the identity of the other end.

        :raises RequestRefusedError: if it may not read.
        """
        credentials = self.site.credentials
        if credentials is None:
            return PLAIN_IDENTITY
        connection = self.transport.getHandle()
        try:
            identity = certified_client(connection)
            credentials.check(connection)
        except CertificateError as wrong:
            self.admission.failed(str(wrong))
            raise RequestRefusedError(HTTPStatus.UNAUTHORIZED, str(wrong)) from None
        if not self.site.is_reader(identity):
            why = f"{identity.name} is not an administrator here"
            self.admission.failed(why)
            self.admission.note("refused a reader", str(identity))
            raise RequestRefusedError(HTTPStatus.FORBIDDEN, f"{why}: {self.site.remedy}")
        return identity

    def _end_with_certificate(self) -> None:
        """Close the connection when the certificate of the other end expires."""
        left, why = certificate_expiry(self.transport.getHandle())
        if left <= 0:
            self.abort(why)
        else:
            self._expiring = self.site.reactor.callLater(min(left, timing.LONGEST_TIMER), self._end_with_certificate)


class HttpSite(Site):
    """The factory of the connections of one listener.

    :param root: the resource of ``/``.
    :param credentials: the certificates of the server; None: plain HTTP on loopback.
    :param is_reader: whether a verified identity may read.
    :param remedy: what somebody does who may not read, for messages.
    :param admission: returns the admission of the connection that is being built.
    """

    protocol = HttpChannel  # type: ignore[assignment]
    noisy = False
    reactor: Any

    def __init__(
        self,
        reactor: Any,
        root: IResource,
        credentials: ReloadableCredentials | None,
        is_reader: Callable[[Identity], bool],
        remedy: str,
        admission: Callable[[], Admission],
    ) -> None:
        super().__init__(root, requestFactory=HttpRequest, timeout=timing.HTTP_REQUEST, reactor=reactor)
        self.credentials = credentials
        self.is_reader = is_reader
        self.remedy = remedy
        self._admission = admission
        self.channels: set[HttpChannel] = set()
        """The open connections."""

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Return the protocol of a new connection."""
        channel = super().buildProtocol(addr)
        channel.admission = self._admission()
        return channel

    def startFactory(self) -> None:
        """Do nothing: Twisted would write a log of every request, and set a timer for its time."""

    def stopFactory(self) -> None:
        """Do nothing; see `startFactory`."""

    def log(self, request: Any) -> None:
        """Do nothing: who reads how often is not logged."""

    def check_again(self) -> None:
        """Close the connections of those who may not read any more."""
        for channel in list(self.channels):
            channel.check_again()

    def abort_all(self) -> None:
        """Close all connections at once."""
        for channel in list(self.channels):
            channel.abort("the listener is closed")
