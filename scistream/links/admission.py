"""Limit the connections to a control port, before any state is created for them.

An `AdmissionController` counts the links of one listener: by address (an IPv6 /64 counts as one), in total, and by
identity. A link is *unproven* until its owner has authenticated the peer. After too many failures an address is refused
for a while, longer each time; a link that is proven clears its address. Admission costs one lookup in a bounded table.

Users who share an address with an attacker (NAT) share its refusals: each lasts at most `longest_refusal`, is over
within minutes, and never affects an established link. At an address with a proven link before, it lasts at most
`known_refusal`. A full listener makes room by closing an unproven link of the address that has most of them.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.interfaces import IAddress, IProtocolFactory, IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from scistream import timing
from scistream.logs import Tally
from scistream.protocol.address import Address, Network, address_group, inside

SHARE = 4
"""A full listener evicts unproven links of other addresses only for an address with fewer unproven links than this."""
MAX_SOURCES = 10_000

_MOST_DOUBLINGS = 16


@dataclass(frozen=True)
class Bounds:
    """Limits on links, commands and failures at a listener for control links.

    :param links: links in total; at most `links_per_address` of them from one address.
    :param unproven: links whose peer is not authenticated yet; at most `unproven_per_address` from one address.
    :param links_per_identity: links under the name in one certificate.
    :param commands_per_second: of one identity, or of one application's link; further commands are read later.
    :param failures: how many failures within a short time make an address wait.
    :param longest_refusal: the longest time that an address is refused, in seconds.
    """

    links: int = 4096
    links_per_address: int = 512
    unproven: int = 512
    unproven_per_address: int = 32
    links_per_identity: int = 64
    commands_per_second: float = 200.0
    failures: int = 20
    longest_refusal: float = 30.0


class DecayingCounter:
    """A count that halves every `timing.REFUSALS_HALVE` seconds."""

    __slots__ = ("_changed_at", "_count")

    def __init__(self) -> None:
        self._count = 0.0
        self._changed_at = 0.0

    def value_at(self, now: float) -> float:
        """Return the count at the time `now`, in seconds."""
        return self._count * math.exp2(-max(0.0, now - self._changed_at) / timing.REFUSALS_HALVE)

    def add(self, now: float, most: float) -> float:
        """Add one, up to `most`, and return the new count."""
        self._count, self._changed_at = min(self.value_at(now) + 1.0, most), now
        return self._count

    def clear(self) -> None:
        """Reset the count to zero."""
        self._count = 0.0


def doubling(first: float, times: float, longest: float) -> float:
    """Return `first` seconds doubled `times` times, at most `longest`; 0 if `times` is negative."""
    return min(longest, first * 2.0 ** min(times, _MOST_DOUBLINGS)) if times >= 0 else 0.0


class _Source:
    """What an admission controller remembers about one address."""

    __slots__ = ("failures", "host", "is_proven", "links", "name", "refused", "refused_until", "unproven")

    def __init__(self, name: str, host: str) -> None:
        self.name = name
        self.host = host
        self.links = 0
        self.unproven: OrderedDict[Admission, None] = OrderedDict()  # the oldest first
        self.failures = DecayingCounter()
        self.refused_until = 0.0
        self.refused = 0
        self.is_proven = False


class _CommandBudget:
    """A token bucket of commands; a negative balance is the number of commands that came too early."""

    __slots__ = ("_at", "_left", "links")

    def __init__(self, rate: float, now: float) -> None:
        self._left = rate * timing.COMMAND_BURST
        self._at = now
        self.links = 0

    def take(self, now: float, rate: float) -> float:
        """Take one command of `rate` per second; return how many seconds to wait before reading the next."""
        self._left = min(rate * timing.COMMAND_BURST, self._left + (now - self._at) * rate) - 1.0
        self._at = now
        return max(0.0, -self._left / rate)


class AdmissionController:
    """Decides which connections one listener accepts.

    :param clock: the source of the time.
    :param listener: the name of the listener in logs.
    :param known_refusal: the longest refusal of an address that has had a proven link, in seconds.
    :param known: networks whose addresses are treated like that from the start.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        bounds: Bounds,
        listener: str,
        *,
        known_refusal: float,
        known: tuple[Network, ...] = (),
    ) -> None:
        self._clock = clock
        self._bounds = bounds
        self._listener = listener
        self._known_refusal = known_refusal
        self._known = known
        self._sources: OrderedDict[str, _Source] = OrderedDict()  # the longest unused first
        self._unproven_sources: dict[_Source, None] = {}  # those with unproven links
        self._identities: dict[str, _CommandBudget] = {}
        self.links = 0
        self.unproven = 0
        self.refused = 0
        self.evicted = 0
        others = "refused others, or ended or delayed their links"
        self._tally: Tally[tuple[str, str]] = Tally(clock, self._log, (others, ""))

    def set_bounds(self, bounds: Bounds, known: tuple[Network, ...] = ()) -> None:
        """Apply new bounds to new connections; established links stay.

        :param known: replaces the known networks.
        """
        self._bounds = bounds
        self._known = known

    def admit(self, host: str) -> Admission | None:
        """Return the admission of a new connection from `host`, or None if it must be closed at once."""
        now = self._clock.seconds()
        source = self._source_of(host)
        exceeded = self._check_limits(source, now)
        if exceeded is not None:
            self._refuse(source, *exceeded)
            return None
        return Admission(self, source, now)

    def _source_of(self, host: str) -> _Source:
        name = address_group(host)
        source = self._sources.get(name)
        if source is None:
            source = self._sources[name] = _Source(name, host)
            self._forget_some()
        else:
            self._sources.move_to_end(name)
        return source

    def _is_known(self, source: _Source) -> bool:
        address = Address(source.host.partition("%")[0], 0).numeric
        return source.is_proven or (address is not None and inside(address, self._known))

    def _forget_some(self) -> None:
        """Drop the longest unused addresses without links if the table is full."""
        while len(self._sources) > MAX_SOURCES + self.links:
            for name, source in self._sources.items():
                if not source.links:
                    del self._sources[name]
                    break

    def _check_limits(self, source: _Source, now: float) -> tuple[str, str] | None:
        """Close an older unproven link if a limit is reached and that makes room.

        :returns: the name of the limit that is still exceeded and a sentence with its numbers; None to admit the link.
        """
        bounds = self._bounds
        if source.refused_until > now:
            return "failures", f"too many failures; it is refused for {source.refused_until - now:.0f} s more"
        if self.links >= bounds.links:
            return "links", f"there are already {self.links} links (limit `links`)"
        if source.links >= bounds.links_per_address:
            return "links_per_address", f"it already has {source.links} links (limit `links_per_address`)"
        if len(source.unproven) >= bounds.unproven_per_address and not self._replace(source, now):
            why = f"{len(source.unproven)} of its links are not authenticated yet (limit `unproven_per_address`)"
            return "unproven_per_address", why
        if self.unproven >= bounds.unproven and not self._make_room(source, now):
            why = f"{self.unproven} links are not authenticated yet (limit `unproven`), and it has its share of them"
            return "unproven", why
        return None

    def _replace(self, source: _Source, now: float) -> bool:
        """Evict the oldest unproven link of an address; return False if that link is still within its grace time."""
        oldest = next(iter(source.unproven))
        if now - oldest.since < timing.UNPROVEN_GRACE:
            return False
        oldest.evict()
        return True

    def _make_room(self, newcomer: _Source, now: float) -> bool:
        """Evict the oldest unproven link of the address that has most of them; return False if none may be evicted."""
        most = max(self._unproven_sources, key=_eviction_order)
        if len(newcomer.unproven) >= min(len(most.unproven), SHARE):
            return self._replace(newcomer, now)
        next(iter(most.unproven)).evict()
        self.evicted += 1
        self.note(
            "has too many links that are not authenticated yet, and closed one to make room",
            f"one from {most.name}, which has {len(most.unproven)} of them, for one from {newcomer.name}",
        )
        return True

    def _refuse(self, source: _Source, reason: str, why: str) -> None:
        self.refused += 1
        source.refused += 1
        self.note(f"refused a link from {source.name}", why, reason)

    def note(self, what: str, detail: str, reason: str = "") -> None:
        """Log an event that peers can cause without limit: repeated events are counted, and logged as a count.

        :param what: the event; like `reason` it has the same wording each time.
        :param detail: details of this event.
        :param reason: why it happened. The first event of each reason is logged at once.
        """
        self._tally.add((what, reason), last=detail)

    def stop(self) -> None:
        """Log what has been counted and not logged yet. Called when the listener is closed."""
        self._tally.stop()

    def _log(self, key: tuple[str, str], count: int, last: str) -> None:
        what, _reason = key
        self.log.warn(
            "{listener} {what}; {count} so far, the last one: {last}",
            listener=self._listener,
            what=what,
            count=count,
            last=last,
        )

    # -- called by admissions

    def link_opened(self, admission: Admission, source: _Source) -> None:
        """Count a new link."""
        self.links += 1
        self.unproven += 1
        source.links += 1
        source.unproven[admission] = None
        self._unproven_sources[source] = None

    def remove_unproven(self, admission: Admission, source: _Source) -> None:
        """Stop counting a link as unproven: it is proven or closed. Idempotent."""
        if admission in source.unproven:
            del source.unproven[admission]
            self.unproven -= 1
            if not source.unproven:
                del self._unproven_sources[source]

    def link_closed(self, source: _Source) -> None:
        """Stop counting a link."""
        self.links -= 1
        source.links -= 1

    def record_failure(self, source: _Source, why: str) -> None:
        """Count a failure against the address, and refuse the address for a while if there are too many."""
        now, bounds = self._clock.seconds(), self._bounds
        count = source.failures.add(now, bounds.failures + _MOST_DOUBLINGS)
        # Rounded, since the count decays a little between two failures and would never quite reach the limit.
        seconds = doubling(timing.FIRST_REFUSAL, round(count) - bounds.failures, bounds.longest_refusal)
        if self._is_known(source):
            seconds = min(seconds, self._known_refusal)
        if seconds:
            source.refused_until = max(source.refused_until, now + seconds)
            self.note(
                f"refuses links from {source.name}",
                f"for {seconds:g} s, after {round(count)} failures, the last one: {why}",
            )

    def link_proven(self, identity: str | None, source: _Source) -> _CommandBudget | None:
        """Forget the failures of the address of a proven peer.

        :returns: the command budget of the peer, or None if its identity has too many links. All links of an
            identity share one budget; a peer without an identity gets its own.
        """
        source.is_proven = True
        source.failures.clear()
        source.refused_until = 0.0
        now = self._clock.seconds()
        if identity is None:
            return _CommandBudget(self._bounds.commands_per_second, now)
        budget = self._identities.get(identity)
        if budget is None:
            budget = self._identities[identity] = _CommandBudget(self._bounds.commands_per_second, now)
        if budget.links >= self._bounds.links_per_identity:
            return None
        budget.links += 1
        return budget

    def release_identity(self, identity: str) -> None:
        """Stop counting one link of an identity."""
        budget = self._identities[identity]
        budget.links -= 1
        if not budget.links:
            del self._identities[identity]

    def take_command(self, budget: _CommandBudget) -> float:
        """Take one command from `budget`; return how many seconds to wait before reading the next."""
        return budget.take(self._clock.seconds(), self._bounds.commands_per_second)


class Admission:
    """An accepted link, as its admission controller counts it. A `scistream.links.link.Link` reports its events."""

    __slots__ = ("_abort", "_admission_controller", "_budget", "_failed", "_identity", "_is_closed", "_source", "since")

    def __init__(self, admission_controller: AdmissionController, source: _Source, now: float) -> None:
        self._admission_controller = admission_controller
        self._source = source
        self._abort: Callable[[str], None] = _ignore
        self._budget: _CommandBudget | None = None
        self._identity: str | None = None
        self._failed = False
        self._is_closed = False
        self.since = now
        admission_controller.link_opened(self, source)

    def opened(self, abort: Callable[[str], None]) -> None:
        """Keep `abort`, which closes the link at once, for a reason."""
        self._abort = abort

    def mark_proven(self, identity: str | None) -> bool:
        """Record that the peer is authenticated; return False if its identity has too many links.

        :param identity: the name of an identity whose links are counted together; None for a peer without one.
        """
        self._admission_controller.remove_unproven(self, self._source)
        if self._budget is None:
            self._budget = self._admission_controller.link_proven(identity, self._source)
            self._identity = identity if self._budget is not None else None
        return self._budget is not None

    def failed(self, why: str) -> None:
        """Count a failure against the peer's address; only the first one, and only while the link is unproven."""
        if self._budget is None and not self._failed:
            self._failed = True
            self._admission_controller.record_failure(self._source, why)

    def line_received(self) -> float:
        """Count a line; return how many seconds to wait before reading the next."""
        return 0.0 if self._budget is None else self._admission_controller.take_command(self._budget)

    def evict(self) -> None:
        """Close the link to make room for another."""
        why = "it had not authenticated yet when another link needed its place"
        self.failed(why)
        self.closed()
        self._abort(why)

    def note(self, what: str, detail: str, reason: str = "") -> None:
        """Log an event of this link; see `AdmissionController.note`."""
        self._admission_controller.note(what, detail, reason)

    def closed(self) -> None:
        """Stop counting the link. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._admission_controller.remove_unproven(self, self._source)
        self._admission_controller.link_closed(self._source)
        if self._identity is not None:
            self._admission_controller.release_identity(self._identity)


class AdmissionFactory(Factory):
    """A protocol factory that asks the admission controller before it builds anything for a connection.

    :param link_factory: makes the factory of links, given a function that returns the admission of the link being
        built.
    """

    noisy = False

    def __init__(
        self,
        admission_controller: AdmissionController,
        link_factory: Callable[[Callable[[], Admission]], IProtocolFactory],
    ) -> None:
        self._admission_controller = admission_controller
        self._admission: Admission | None = None
        self._inner = link_factory(self._current)

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Build a link, or return None to close the connection."""
        admission = self._admission_controller.admit(str(getattr(addr, "host", addr)))
        if admission is None:
            return None
        self._admission = admission
        return self._inner.buildProtocol(addr)  # type: ignore[arg-type]

    def doStart(self) -> None:
        """Start the factory of links, too."""
        self._inner.doStart()

    def doStop(self) -> None:
        """Stop the factory of links, too."""
        self._inner.doStop()

    def _current(self) -> Admission:
        admission, self._admission = self._admission, None
        assert admission is not None, "one link is made for each connection"
        return admission


def _eviction_order(source: _Source) -> tuple[int, float]:
    """Return a sort key: an address with more unproven links, or with an older one, is evicted from first."""
    return len(source.unproven), -next(iter(source.unproven)).since


def _ignore(_why: str) -> None:
    """Do nothing: the link has not been built yet."""
