"""The addresses of the targets of an element: looked up when a target is dialled, and cached for a short time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence, Set
from typing import Any

from twisted.internet.defer import Deferred

from scistream import timing
from scistream.protocol.address import Address
from scistream.s2ds.names import look_up

MOST_KEPT = 1024
"""The number of names whose addresses are cached."""


class Names:
    """The cache of names that the relays of one element dial.

    :param reactor: a reactor with a `nameResolver`.
    :param may_dial: returns whether a numeric address may be dialled, given the ports of this gateway that the stream
        may have as targets.
    """

    def __init__(self, reactor: Any, may_dial: Callable[[Address, Set[int]], bool]) -> None:
        self._reactor = reactor
        self._may_dial = may_dial
        self._known: OrderedDict[str, tuple[float, list[str]]] = OrderedDict()
        self._preferred: OrderedDict[Address, Address] = OrderedDict()
        """For numeric targets with other addresses: the address that was last connected to."""
        self._lookups: dict[str, list[Deferred[None]]] = {}

    async def addresses(
        self, target: Address, own: Set[int] = frozenset(), others: Sequence[Address] = (), *, wan: bool = True
    ) -> list[Address]:
        """Return the addresses of a target that may be dialled, the best one first.

        If the look-up of a name fails, use its last known addresses.

        :param own: ports of this gateway that are allowed as targets.
        :param others: other addresses of a numeric target.
        :param wan: True if the target is a gateway: the networks in which gateways may be dialled can have changed
            since the target was set.
        """
        if target.numeric is not None:
            preferred = self._preferred.get(target, target)
            known = sorted((target, *others), key=lambda address: address != preferred)
            return [address for address in known if not wan or self._may_dial(address, own)]
        found = [Address(host, target.port) for host in await self.hosts(target.host)]
        return [address for address in found if self._may_dial(address, own)]

    async def hosts(self, name: str) -> list[str]:
        """Return the numeric addresses of a name, whether they may be dialled or not."""
        until, _ = self._known.get(name, (0.0, []))
        if until <= self._reactor.seconds():
            await self._refresh(name)
        return self._known.get(name, (0.0, []))[1]

    def prefer(self, target: Address, address: Address) -> None:
        """Try this address first next time, since a connection to it succeeded."""
        if target.numeric is not None:
            self._preferred.pop(target, None)
            if address != target:
                self._preferred[target] = address
            if len(self._preferred) > MOST_KEPT:
                self._preferred.popitem(last=False)
            return
        until, hosts = self._known.get(target.host, (0.0, []))
        if address.host in hosts[1:]:
            hosts = [address.host, *(host for host in hosts if host != address.host)]
            self._known[target.host] = until, hosts

    def _refresh(self, name: str) -> Deferred[None]:
        """Look up a name, once for all callers that wait for it."""
        answered: Deferred[None] = Deferred()
        waiting = self._lookups.setdefault(name, [])
        waiting.append(answered)
        if len(waiting) == 1:
            look_up(self._reactor, name, timing.NAME_LOOKUP).addCallback(self._note, name)
        return answered

    def _note(self, hosts: list[str], name: str) -> None:
        _, before = self._known.pop(name, (0.0, []))
        # Known addresses keep their order, so that the best one stays first.
        kept = [host for host in before if host in hosts]
        ordered = [*kept, *(host for host in hosts if host not in kept)] if hosts else before
        self._known[name] = self._reactor.seconds() + timing.NAME_KEPT, ordered
        if len(self._known) > MOST_KEPT:
            self._known.popitem(last=False)
        for answered in self._lookups.pop(name):
            answered.callback(None)
