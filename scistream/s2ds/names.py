"""Looking the names of other gateways up, without a thread: whoever names a server that does not answer keeps nobody
else waiting.

`use_dns` is for the reactors of the initiator and of its elements. It asks /etc/hosts and the name servers of
/etc/resolv.conf; search lists there are not used, since facilities tell each other whole names.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IAddress, IHostnameResolver, IHostResolution, IResolutionReceiver
from twisted.names import client, dns, hosts, resolve
from zope.interface import implementer

TIMEOUTS = (1, 2, 4)
"""Seconds after which a name server is asked again, and at last given up."""


def use_dns(reactor: Any, servers: list[tuple[str, int]] | None = None) -> None:
    """Let a reactor look names up by itself.

    :param servers: name servers, numeric; None for those of the system.
    """
    asked = client.Resolver(None if servers else "/etc/resolv.conf", servers, TIMEOUTS, reactor)
    reactor.installNameResolver(_Resolver(resolve.ResolverChain([hosts.Resolver("/etc/hosts"), asked])))


@implementer(IHostResolution)
class _Resolution:
    """One lookup."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_cancelled = False

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.is_cancelled = True


@implementer(IHostnameResolver)
class _Resolver:
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
        resolution = _Resolution(hostName)
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
        answers, _, _ = await look_up(name, TIMEOUTS)
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
