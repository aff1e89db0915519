"""Looking the names of other gateways up, without a thread: whoever names a server that does not answer keeps nobody
else waiting.

`use_dns` is for the reactors of the initiator and of its elements. It asks /etc/hosts and the name servers of
/etc/resolv.conf; search lists there are not used, since facilities tell each other whole names.
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

DATAGRAM_SIZE = 8192
DATAGRAMS_A_TURN = 16
"""Datagrams that are read from one socket before the reactor turns to other things."""


def use_dns(reactor: Any, servers: list[tuple[str, int]] | None = None) -> None:
    """Let a reactor look names up by itself.

    :param servers: name servers, numeric; None for those of the system.
    """
    asked = client.Resolver(None if servers else "/etc/resolv.conf", servers, timing.NAME_SERVER_TRIES, _Quiet(reactor))
    reactor.installNameResolver(_DnsResolver(resolve.ResolverChain([hosts.Resolver("/etc/hosts"), asked])))


class _Quiet:
    """A reactor whose UDP sockets leave no lines in the log. Twisted's own log four lines for each question, and one
    for each datagram that is no answer, and users of streams can cause any number of questions."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def listenUDP(self, port: int, protocol: Any, interface: str = "") -> DatagramSocket:
        return DatagramSocket(self._reactor, port, protocol, interface)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


@implementer(IReadDescriptor)
class DatagramSocket:
    """The socket of one question to a name server: as much of a transport as Twisted's protocol for that needs.

    :param protocol: a `DNSDatagramProtocol`.
    :raises CannotListenError: the system gives no socket, or not this port.
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
        return self._sock.fileno()

    def logPrefix(self) -> str:
        return "names"

    def doRead(self) -> None:
        for _ in range(DATAGRAMS_A_TURN):
            try:
                data, address = self._sock.recvfrom(DATAGRAM_SIZE)
            except OSError:  # nothing has come, or the question is over
                return
            if self._is_awaited(data):
                self._protocol.datagramReceived(data, address[:2])

    def _is_awaited(self, data: bytes) -> bool:
        """Return whether this is a whole answer to a question. Twisted would log each datagram that is not."""
        message = dns.Message()
        try:
            message.fromStr(data)
        except Exception:  # of many kinds: anybody can send anything
            return False
        return message.id in self._protocol.liveMessages

    def write(self, data: bytes, address: tuple[str, int]) -> None:
        """Send a question. One that the system does not send gets no answer, and the next name server is asked."""
        try:
            self._sock.sendto(data, address)
        except OSError:
            return

    def stopListening(self) -> None:
        """The question is over."""
        if self._sock.fileno() != -1:
            self._reactor.removeReader(self)
            self._sock.close()
            self._protocol.doStop()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor ends, or found the descriptor bad."""
        self.stopListening()


@implementer(IHostResolution)
class _DnsResolution:
    """One lookup."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_cancelled = False

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.is_cancelled = True


@implementer(IHostnameResolver)
class _DnsResolver:
    """Asks a resolver of `twisted.names` for both families at once."""

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
        """Tell the receiver each address; those of IPv6 come first, as usual."""
        resolution = _DnsResolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)

        def tell(found: list[str]) -> None:
            if resolution.is_cancelled:
                return
            for host in found:
                kind = IPv6Address if ":" in host else IPv4Address
                if addressTypes is None or kind in addressTypes:
                    resolutionReceiver.addressResolved(kind("TCP", host, portNumber))
            resolutionReceiver.resolutionComplete()

        if _is_numeric(hostName):
            tell([hostName])
            return resolution
        if hostName.lower().rstrip(".") == "localhost":  # always this machine (RFC 6761), whatever the file says
            tell(["::1", "127.0.0.1"])
            return resolution
        try:
            name = hostName.encode("idna")
        except UnicodeError:  # no name that there could be
            tell([])
            return resolution
        asking = [
            Deferred.fromCoroutine(_asked(look_up, name))
            for look_up in (self._chain.lookupIPV6Address, self._chain.lookupAddress)
        ]
        DeferredList(asking).addCallback(lambda both: tell([host for _, found in both for host in found]))
        return resolution


async def _asked(look_up: Any, name: bytes) -> list[str]:
    """The addresses of one family; none if there are none, or nobody answers."""
    try:
        answers, _, _ = await look_up(name, timing.NAME_SERVER_TRIES)
    except Exception:  # of many kinds, and each means that there is no address
        return []
    return [one.payload.dottedQuad() if one.type == dns.A else _sixfold(one) for one in answers if _has_address(one)]


def _has_address(answer: Any) -> bool:
    return answer.type in (dns.A, dns.AAAA)


def _sixfold(answer: Any) -> str:
    return str(ip_address(answer.payload.address))


def _is_numeric(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


@implementer(IResolutionReceiver)
class Lookup:
    """Gathers the addresses of a name; `finished` fires with them, or with none if there are none."""

    def __init__(self) -> None:
        self.finished: Deferred[list[str]] = Deferred()
        self._hosts: list[str] = []

    def resolutionBegan(self, resolutionInProgress: Any) -> None:
        """The resolver has started."""

    def addressResolved(self, address: Any) -> None:
        if address.host not in self._hosts and len(self._hosts) < MOST_ADDRESSES:
            self._hosts.append(address.host)

    def resolutionComplete(self) -> None:
        if not self.finished.called:  # nobody waits any more
            self.finished.callback(self._hosts)


MOST_ADDRESSES = 16
"""Addresses of one name that are looked at."""


def look_up(reactor: Any, name: str, seconds: float) -> Deferred[list[str]]:
    """The addresses of a name, numeric; none if there are none, or if nobody knows within that time."""
    lookup = Lookup()
    reactor.nameResolver.resolveHostName(lookup, name)
    return lookup.finished.addTimeout(seconds, reactor, _none)


def _none(_outcome: object, _seconds: float) -> list[str]:
    return []
