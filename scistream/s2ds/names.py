"""Look-ups of host names without threads, so that a name server that does not answer delays no other stream.

`use_dns` is for the reactors of the initiator and of its elements. It reads /etc/hosts and asks the name servers in
/etc/resolv.conf. Search lists are ignored, since facilities exchange fully qualified names.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IReadDescriptor,
    IResolutionReceiver,
)
from twisted.names import client, dns, hosts, resolve
from twisted.python.failure import Failure
from zope.interface import implementer

from scistream import timing
from scistream.links.resolver import Resolution

DATAGRAM_SIZE = 8192
DATAGRAMS_A_TURN = 16
"""The number of datagrams read from one socket before the reactor serves others."""


def use_dns(reactor: Any, servers: list[tuple[str, int]] | None = None) -> None:
    """Make a reactor look names up with DNS, without threads.

    :param servers: numeric addresses and ports of name servers; None for those of the system.
    """
    system = None if servers else "/etc/resolv.conf"
    name_servers = client.Resolver(system, servers, timing.NAME_SERVER_TRIES, _QuietReactor(reactor))
    reactor.installNameResolver(_DnsResolver(resolve.ResolverChain([hosts.Resolver("/etc/hosts"), name_servers])))


class _QuietReactor:
    """A reactor whose UDP sockets do not log.

    Twisted's UDP ports log four lines for each query, and one for each datagram that is not an answer. Users of streams
    can cause any number of queries.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def listenUDP(self, port: int, protocol: Any, interface: str = "") -> DatagramSocket:
        """Return a socket for one query."""
        return DatagramSocket(self._reactor, port, protocol, interface)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


@implementer(IReadDescriptor)
class DatagramSocket:
    """The socket of one query to a name server, with the part of a UDP transport that Twisted's protocol needs.

    :param protocol: a `DNSDatagramProtocol`.
    :raises CannotListenError: if the system gives no socket, or not this port.
    """

    def __init__(self, reactor: Any, port: int, protocol: Any, interface: str) -> None:
        self._reactor = reactor
        self._protocol = protocol
        try:
            self._sock = socket.socket(socket.AF_INET6 if ":" in interface else socket.AF_INET, socket.SOCK_DGRAM)
        except OSError as problem:
            raise CannotListenError(interface, port, problem) from problem
        try:
            self._sock.bind((interface, port))
        except OSError as problem:
            self._sock.close()
            raise CannotListenError(interface, port, problem) from problem
        self._sock.setblocking(False)
        self._protocol.noisy = False
        self._protocol.makeConnection(self)
        reactor.addReader(self)

    def fileno(self) -> int:
        """Return the descriptor of the socket; -1 after `stopListening`."""
        return self._sock.fileno()

    def logPrefix(self) -> str:
        """Return the prefix of log lines."""
        return "names"

    def doRead(self) -> None:
        """Pass on the answers that have arrived, up to a limit."""
        for _ in range(DATAGRAMS_A_TURN):
            try:
                data, address = self._sock.recvfrom(DATAGRAM_SIZE)
            except OSError:  # no datagram is waiting, or the socket is closed
                return
            if self._is_awaited(data):
                self._protocol.datagramReceived(data, address[:2])

    def _is_awaited(self, data: bytes) -> bool:
        """Return True if this is a complete answer to a query. Twisted would log any other datagram."""
        message = dns.Message()
        try:
            message.fromStr(data)
        except Exception:  # of many kinds: anybody can send anything
            return False
        return message.id in self._protocol.liveMessages

    def write(self, data: bytes, address: tuple[str, int]) -> None:
        """Send a query. If the system does not send it, no answer arrives and the next name server is asked."""
        try:
            self._sock.sendto(data, address)
        except OSError:
            return

    def stopListening(self) -> None:
        """Close the socket. Idempotent."""
        if self._sock.fileno() != -1:
            self._reactor.removeReader(self)
            self._sock.close()
            self._protocol.doStop()

    def connectionLost(self, reason: Failure) -> None:
        """Close the socket, since the reactor ends or found the descriptor bad."""
        self.stopListening()


@implementer(IHostnameResolver)
class _DnsResolver:
    """A host name resolver that asks a resolver of `twisted.names` for IPv4 and IPv6 at once."""

    def __init__(self, chain: Any) -> None:
        self._chain = chain

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """Look up a name and report each address to the receiver, IPv6 addresses first."""
        resolution = Resolution(resolutionReceiver, hostName)

        def report(found: list[str]) -> None:
            kinds = ((IPv6Address if ":" in host else IPv4Address, host) for host in found)
            resolution.complete(
                kind("TCP", host, portNumber) for kind, host in kinds if addressTypes is None or kind in addressTypes
            )

        if _is_numeric(hostName):
            report([hostName])
            return resolution
        if hostName.lower().rstrip(".") == "localhost":  # always this machine (RFC 6761), whatever /etc/hosts says
            report(["::1", "127.0.0.1"])
            return resolution
        try:
            name = hostName.encode("idna")
        except UnicodeError:  # not a possible host name
            report([])
            return resolution
        lookups = [
            Deferred.fromCoroutine(_addresses(look_up, name))
            for look_up in (self._chain.lookupIPV6Address, self._chain.lookupAddress)
        ]
        DeferredList(lookups).addCallback(lambda both: report([host for _, found in both for host in found]))
        return resolution


async def _addresses(look_up: Any, name: bytes) -> list[str]:
    """Return the addresses of one family; none if the look-up fails."""
    try:
        answers, _, _ = await look_up(name, timing.NAME_SERVER_TRIES)
    except Exception:  # of many types, each of which means that no address was found
        return []
    return [_address(answer) for answer in answers if answer.type in (dns.A, dns.AAAA)]


def _address(answer: Any) -> str:
    if answer.type == dns.A:
        return str(answer.payload.dottedQuad())
    return str(ip_address(answer.payload.address))


def _is_numeric(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


@implementer(IResolutionReceiver)
class Lookup:
    """A receiver that collects the addresses of a name.

    :ivar finished: fires with the addresses, which may be none.
    """

    def __init__(self) -> None:
        self.finished: Deferred[list[str]] = Deferred()
        self._hosts: list[str] = []

    def resolutionBegan(self, resolutionInProgress: Any) -> None:
        """Do nothing: the look-up has started."""

    def addressResolved(self, address: Any) -> None:
        """Collect an address."""
        if address.host not in self._hosts and len(self._hosts) < MOST_ADDRESSES:
            self._hosts.append(address.host)

    def resolutionComplete(self) -> None:
        """Fire `finished`."""
        if not self.finished.called:  # it may have timed out
            self.finished.callback(self._hosts)


MOST_ADDRESSES = 16
"""The number of addresses of one name that are used."""


def look_up(reactor: Any, name: str, seconds: float) -> Deferred[list[str]]:
    """Look up the numeric addresses of a name; fire with none if none are found within `seconds`."""
    lookup = Lookup()
    reactor.nameResolver.resolveHostName(lookup, name)
    return lookup.finished.addTimeout(seconds, reactor, _none)


def _none(_outcome: object, _seconds: float) -> list[str]:
    return []
