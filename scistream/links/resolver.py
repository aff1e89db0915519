"""Looking host names up where nobody waits for a name server that does not answer.

The system's `getaddrinfo` blocks, and cannot be interrupted. Twisted calls it in threads that the end of the process
waits for; here they are daemon threads, which it does not wait for.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IHostnameResolver, IHostResolution, IResolutionReceiver
from zope.interface import implementer

MAX_LOOKUPS = 32
"""Lookups at a time; another one is told that there is no such name. Each takes a thread until it is answered."""


def use_daemon_threads(reactor: Any) -> None:
    """Let a reactor look names up in threads that the end of the process does not wait for."""
    reactor.installNameResolver(_Resolver(reactor))


@implementer(IHostResolution)
class _Resolution:
    """One lookup."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cancelled = False

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.cancelled = True


@implementer(IHostnameResolver)
class _Resolver:
    """Calls the system's resolver."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._running = 0

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """Called by Twisted's endpoints."""
        resolution = _Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        kind = socket.SOCK_STREAM if transportSemantics == "TCP" else socket.SOCK_DGRAM
        wanted = tuple(addressTypes or (IPv4Address, IPv6Address))

        def found(results: list[Any]) -> None:
            if resolution.cancelled:
                return
            for family, _kind, _protocol, _name, where in results:
                made = {socket.AF_INET: IPv4Address, socket.AF_INET6: IPv6Address}.get(family)
                if made is not None and made in wanted:
                    resolutionReceiver.addressResolved(made(transportSemantics, *where))
            resolutionReceiver.resolutionComplete()

        def looked_up(results: list[Any]) -> None:
            self._running -= 1
            found(results)

        def look_up() -> None:
            results = _addresses(hostName, portNumber, kind, 0)
            try:
                self._reactor.callFromThread(looked_up, results)
            except (OSError, AttributeError):
                return  # the reactor is gone

        numeric = _addresses(hostName, portNumber, kind, socket.AI_NUMERICHOST)
        if numeric or self._running >= MAX_LOOKUPS:
            found(numeric)
        else:
            self._running += 1
            threading.Thread(target=look_up, name=f"looks up {hostName}", daemon=True).start()
        return resolution


def _addresses(host: str, port: int, kind: int, flags: int) -> list[Any]:
    try:
        return socket.getaddrinfo(host, port, socket.AF_UNSPEC, kind, 0, flags)
    except (OSError, UnicodeError):
        return []
