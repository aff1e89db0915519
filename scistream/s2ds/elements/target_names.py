"""Where an element dials: the addresses of a target, looked up when it is dialled and kept for a little while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence, Set
from typing import Any

from twisted.internet.defer import Deferred

from scistream import timing
from scistream.protocol.address import Address
from scistream.s2ds.names import look_up

MOST_KEPT = 1024
"""Names whose addresses are kept."""


class Names:
    """The names that the relays of one element dial.

    :param reactor: has a `nameResolver`.
    :param may_dial: whether a numeric address may be dialled, for a stream that has these ports of this gateway as its
        own; what may not is left out.
    """

    def __init__(self, reactor: Any, may_dial: Callable[[Address, Set[int]], bool]) -> None:
        self._reactor = reactor
        self._may_dial = may_dial
        self._known: OrderedDict[str, tuple[float, list[str]]] = OrderedDict()
        self._best: OrderedDict[Address, Address] = OrderedDict()
        """Of numeric targets that stand for a name: where a connection came about last."""
        self._asking: dict[str, list[Deferred[None]]] = {}

    async def addresses(
        self, target: Address, own: Set[int] = frozenset(), others: Sequence[Address] = ()
    ) -> list[Address]:
        """Those to dial, the best first; a numeric target at once, with the others of the name that it stands for.
        Where nobody answers for a name, what was known of it last has to do."""
        if target.numeric is not None:
            best = self._best.get(target, target)
            return sorted((target, *others), key=lambda address: address != best)
        until, _ = self._known.get(target.host, (0.0, []))
        if until <= self._reactor.seconds():
            await self._ask(target.host)
        _, hosts = self._known.get(target.host, (0.0, []))
        found = [Address(host, target.port) for host in hosts]
        return [address for address in found if self._may_dial(address, own)]

    def prefer(self, target: Address, address: Address) -> None:
        """A connection to this address came about: try it first the next time."""
        if target.numeric is not None:
            self._best.pop(target, None)
            if address != target:
                self._best[target] = address
            if len(self._best) > MOST_KEPT:
                self._best.popitem(last=False)
            return
        until, hosts = self._known.get(target.host, (0.0, []))
        if address.host in hosts[1:]:
            hosts = [address.host, *(host for host in hosts if host != address.host)]
            self._known[target.host] = until, hosts

    def _ask(self, name: str) -> Deferred[None]:
        """Look a name up, for all who want to know it now."""
        answered: Deferred[None] = Deferred()
        waiting = self._asking.setdefault(name, [])
        waiting.append(answered)
        if len(waiting) == 1:
            look_up(self._reactor, name, timing.NAME_LOOK_UP).addCallback(self._note, name)
        return answered

    def _note(self, hosts: list[str], name: str) -> None:
        _, before = self._known.pop(name, (0.0, []))
        # Those that did last time keep their order, so that the best stays the first.
        kept = [host for host in before if host in hosts]
        ordered = [*kept, *(host for host in hosts if host not in kept)] if hosts else before
        self._known[name] = self._reactor.seconds() + timing.NAME_KEPT, ordered
        if len(self._known) > MOST_KEPT:
            self._known.popitem(last=False)
        for answered in self._asking.pop(name):
            answered.callback(None)
