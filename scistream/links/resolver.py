"""Resolve host names without ever delaying the end of the process.

The system's `getaddrinfo` blocks and cannot be interrupted. Twisted calls it in pool threads, which the process joins
when it ends; this resolver uses daemon threads, which it does not join.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IHostnameResolver, IHostResolution, IResolutionReceiver
from zope.interface import implementer

MAX_LOOKUPS = 32
"""Concurrent lookups, each of which has a thread until it is answered; a further lookup finds no address."""


def use_daemon_threads(reactor: Any) -> None:
    """Make a reactor resolve names in daemon threads."""
    reactor.installNameResolver(_Resolver(reactor))


@implementer(IHostResolution)
class Resolution:
    """A lookup in progress, which reports addresses to its receiver unless it is cancelled."""

    def __init__(self, receiver: IResolutionReceiver, name: str) -> None:
        self.name = name
        self._receiver = receiver
        self._is_cancelled = False
        receiver.resolutionBegan(self)

    def cancel(self) -> None:
        """Ignore the result of the lookup."""
        self._is_cancelled = True

    def complete(self, addresses: Iterable[IAddress]) -> None:
        """Report the addresses that were found, and the end of the lookup."""
        if self._is_cancelled:
            return
        for address in addresses:
            self._receiver.addressResolved(address)
        self._receiver.resolutionComplete()


@implementer(IHostnameResolver)
class _Resolver:
    """Calls the system's resolver in daemon threads."""

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
        """Look up a name, and report its addresses to `resolutionReceiver`; see `IHostnameResolver`."""
        resolution = Resolution(resolutionReceiver, hostName)
        kind = socket.SOCK_STREAM if transportSemantics == "TCP" else socket.SOCK_DGRAM
        wanted = tuple(addressTypes or (IPv4Address, IPv6Address))

        def found(results: list[Any]) -> None:
            made = ((_ADDRESS_TYPES.get(family), where) for family, _kind, _protocol, _name, where in results)
            resolution.complete(
                address_type(transportSemantics, *where) for address_type, where in made if address_type in wanted
            )

        def looked_up(results: list[Any]) -> None:
            self._running -= 1
            found(results)

        def look_up() -> None:
            results = _addresses(hostName, portNumber, kind, 0)
            try:
                self._reactor.callFromThread(looked_up, results)
            except (OSError, AttributeError):
                return  # the reactor has stopped

        numeric = _addresses(hostName, portNumber, kind, socket.AI_NUMERICHOST)
        if numeric or self._running >= MAX_LOOKUPS:
            found(numeric)
        else:
            self._running += 1
            threading.Thread(target=look_up, name=f"lookup of {hostName}", daemon=True).start()
        return resolution


_ADDRESS_TYPES: dict[int, Any] = {socket.AF_INET: IPv4Address, socket.AF_INET6: IPv6Address}


def _addresses(host: str, port: int, kind: int, flags: int) -> list[Any]:
    try:
        return socket.getaddrinfo(host, port, socket.AF_UNSPEC, kind, 0, flags)
    except (OSError, UnicodeError):
        return []
