"""Connections to other gateways through an HTTP proxy that understands CONNECT.

`dialling.py` uses it in place of `plain.dial` where `proxy` in [wan] of the settings names one. What the proxy says is
not trusted: its answer is bounded in size and time, and only its status line is told.
"""

from __future__ import annotations

import re
import socket
from functools import partial

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from scistream import timing
from scistream.protocol.address import Address
from scistream.protocol.errors import printable
from scistream.s2ds.relay.attempt import Attempt
from scistream.s2ds.relay.context import RelayContext
from scistream.s2ds.relay.leg import ConnectionBrokenError, pending_error
from scistream.s2ds.relay.plain import dial
from scistream.s2ds.relay.poller import ENDING

MAX_ANSWER = 8192
"""The longest answer of a proxy, in bytes: status line and headers."""
MAX_STATUS = 120
"""The number of characters of a status line that are told."""
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n]*)?\r?\n")
_RESET = "reset the connection before it answered"
_END = re.compile(rb"\r?\n\r?\n")


class ProxyRefusedError(Exception):
    """A proxy has not connected. The text continues a sentence that begins with its name."""


class NotAProxyError(ProxyRefusedError):
    """The program that answers is not an HTTP proxy."""


def request_for(target: Address) -> bytes:
    """Return the request that asks a proxy to connect to `target`."""
    return f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode()


def length_of_answer(seen: bytes) -> int:
    """Return the length of the answer with which a proxy says that it has connected; 0 while it is incomplete.

    :param seen: what has arrived from the proxy; what follows the answer comes from the target.
    :raises ProxyRefusedError: if it says anything else.
    """
    end = _END.search(seen)
    if end is None or end.end() > MAX_ANSWER:
        if len(seen) >= MAX_ANSWER:
            raise NotAProxyError(f"sent an answer of more than {MAX_ANSWER} bytes")
        return 0
    status = _STATUS.match(seen)
    first = seen.split(b"\n", 1)[0].rstrip(b"\r").decode("utf-8", "replace")
    told = printable(first[:MAX_STATUS])
    if status is None:
        raise NotAProxyError(f'did not answer in HTTP: "{told}"')
    if not status[1].startswith(b"2"):
        raise ProxyRefusedError(f'refused: "{told}"')
    return end.end()


async def dial_through(
    context: RelayContext, proxy: Address, target: Address, name: str, seconds: float
) -> socket.socket:
    """Connect to another gateway through a proxy within `seconds`; return a prepared socket.

    :param name: a readable name of the other gateway.
    :raises ConnectionBrokenError: if the proxy or, as it says, the other gateway cannot be reached.
    """
    deadline = context.reactor.seconds() + seconds
    proxy_name = f"the proxy at {proxy}"
    hosts = [proxy.host] if proxy.numeric is not None else await context.names.hosts(proxy.host)
    problem = ConnectionBrokenError(f"this gateway finds no address for {proxy_name}", "wan")
    for tried, host in enumerate(hosts):
        left = max(timing.SHORTEST_DIAL, deadline - context.reactor.seconds()) / (len(hosts) - tried)
        try:
            sock: socket.socket = await dial(
                context.reactor,
                context.poller,
                Address(host, proxy.port),
                proxy_name,
                left,
                context.wan_timeout,
                context.wan_congestion,
                wan=True,
                multipath=context.multipath,
                mixed=context.mixed_paths,
            )
        except ConnectionBrokenError as broken:
            problem = broken
            continue
        left = max(timing.SHORTEST_DIAL, deadline - context.reactor.seconds())
        await Tunnel(context, sock, target, f"{proxy_name}, asked for {name},", left).opened
        return sock
    raise problem


class Tunnel(Attempt):
    """The request to a proxy and its answer, on a connected socket, which is closed if that fails.

    :param name: a readable name of the proxy and of what it is asked for.
    :ivar opened: fires when the proxy has connected; fails with `ConnectionBrokenError`.
    """

    def __init__(self, context: RelayContext, sock: socket.socket, target: Address, name: str, seconds: float) -> None:
        super().__init__(context.poller, sock)
        self.opened: Deferred[None] = Deferred(lambda _: self.close())
        self._name = name
        request = request_for(target)
        try:
            sent = sock.send(request)
            self.watch(context.reactor, seconds, partial(self._not_answered, seconds))
        except OSError as problem:
            self._fail(f"cannot be used: {problem.strerror}")
            return
        if sent < len(request):  # a new connection has room for some hundred bytes
            self._fail("does not take a request")

    # -- Polled

    def event(self, mask: int) -> None:
        """Look at the answer as far as it has arrived."""
        sock = self._sock
        if sock is None:
            return
        try:
            # What follows the answer is for TLS, so it is left in the socket.
            seen = sock.recv(MAX_ANSWER + 4, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except ConnectionResetError:
            self._fail(_RESET)
            return
        except OSError as problem:
            self._fail(f"cannot be used: {problem.strerror}")
            return
        try:
            length = length_of_answer(seen)
            if length:
                sock.recv(length)
        except ProxyRefusedError as refused:
            self._fail(str(refused))
        except OSError as problem:
            self._fail(f"cannot be used: {problem.strerror}")
        else:
            if length:
                self.detach()
                self.opened.callback(None)
            elif not seen or mask & ENDING:
                self._fail(_RESET if pending_error(sock) else "closed the connection before it answered")

    def _not_answered(self, seconds: float) -> None:
        self._fail(f"did not answer within {max(1, round(seconds))} s")

    def _fail(self, what: str) -> None:
        self.close()
        if not self.opened.called:
            self.opened.errback(Failure(ConnectionBrokenError(f"{self._name} {what}", "wan")))
