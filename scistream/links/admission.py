"""Decide who may come in at a control port, before anything is made for a connection.

An `AdmissionController` counts the links of one listener: by address (an IPv6 /64 counts as one), in all, and by
identity. A link is *unproven* until its owner knows who is there. Failures make an address wait before it is let in
again, longer each time; a link that proves itself clears its address. To admit costs a look into a table, and the
table is bounded.

Whoever shares an address with an attacker (NAT) shares its waits: each is at most `longest_refusal`, fades within
minutes, and touches no link that is up. At an address where somebody has proved who they are before, it is at most
`known_refusal`. A full listener makes room at the expense of the address that holds most of it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any

from twisted.internet.interfaces import IAddress, IProtocolFactory, IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from scistream import timing
from scistream.logs import Tally
from scistream.protocol.address import Address, Network, inside

SHARE = 4
"""Unproven links of one address for which a full listener makes room at the expense of others."""
MOST_PLACES = 10_000

_MOST_DOUBLINGS = 16


@dataclass(frozen=True)
class Bounds:
    """How many links, lines and failures a listener for control links accepts.

    :param links: links in all; `links_per_address` of them from one address.
    :param unproven: links that have not shown yet who they are; `unproven_per_address` of them from one address.
    :param links_per_identity: links under one certificate's name.
    :param commands_per_second: of one identity, or one application's link; more are read later.
    :param failures: so many in a short time make an address wait.
    :param longest_refusal: seconds that it waits at most.
    """

    links: int = 4096
    links_per_address: int = 512
    unproven: int = 512
    unproven_per_address: int = 32
    links_per_identity: int = 64
    commands_per_second: float = 200.0
    failures: int = 20
    longest_refusal: float = 30.0


@lru_cache(1024)
def place_of(host: str) -> str:
    """What counts as one address: an IPv4 address, an IPv6 /64; an IPv4 address mapped into IPv6 is one of IPv4."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:  # no number: some other kind of transport
        return host
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((address, 64), strict=False))


class DecayingCounter:
    """A count that halves every `timing.REFUSALS_HALVE` seconds."""

    __slots__ = ("_at", "_count")

    def __init__(self) -> None:
        self._count = 0.0
        self._at = 0.0

    def at(self, now: float) -> float:
        """How much of it is left."""
        return self._count * math.exp2(-max(0.0, now - self._at) / timing.REFUSALS_HALVE)

    def add(self, now: float, most: float) -> float:
        """One more, up to `most`; gives what it is then."""
        self._count, self._at = min(self.at(now) + 1.0, most), now
        return self._count

    def clear(self) -> None:
        """Nothing is left."""
        self._count = 0.0


def doubling(first: float, times: float, longest: float) -> float:
    """`first` seconds, doubled so many times, `longest` at most; nothing for a negative number of times."""
    return min(longest, first * 2.0 ** min(times, _MOST_DOUBLINGS)) if times >= 0 else 0.0


class _Source:
    """What an admission controller remembers about one address."""

    __slots__ = ("failures", "host", "links", "name", "proved", "refused", "refused_until", "unproven")

    def __init__(self, name: str, host: str) -> None:
        self.name = name
        self.host = host
        self.links = 0
        self.unproven: OrderedDict[Admission, None] = OrderedDict()  # the oldest first
        self.failures = DecayingCounter()
        self.refused_until = 0.0
        self.refused = 0
        self.proved = False


class _CommandBudget:
    """How many commands may still come in now; below zero, how many came too early."""

    __slots__ = ("_at", "_left", "links")

    def __init__(self, rate: float, now: float) -> None:
        self._left = rate * timing.COMMAND_BURST
        self._at = now
        self.links = 0

    def take(self, now: float, rate: float) -> float:
        """One comes in, of `rate` a second; seconds to wait before the next is read."""
        self._left = min(rate * timing.COMMAND_BURST, self._left + (now - self._at) * rate) - 1.0
        self._at = now
        return max(0.0, -self._left / rate)


class AdmissionController:
    """Decides which connections one listener accepts, and for how long.

    :param clock: tells the time.
    :param listener: the name of the listener in logs.
    :param known_refusal: seconds that an address waits at most where somebody has proved himself before.
    :param known: networks that count as such from the beginning.
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
        self._places: OrderedDict[str, _Source] = OrderedDict()  # the longest unused first
        self._waited_for: dict[_Source, None] = {}  # those with unproven links
        self._identities: dict[str, _CommandBudget] = {}
        self.links = 0
        self.unproven = 0
        self.refused = 0
        self.moved = 0
        others = "refused others, or ended or delayed their links"
        self._tally: Tally[tuple[str, str]] = Tally(clock, self._log, (others, ""))

    def set_bounds(self, bounds: Bounds, known: tuple[Network, ...] = ()) -> None:
        """Hold whoever comes from now on to other bounds; the links that are there stay.

        :param known: takes the place of the networks that were given before.
        """
        self._bounds = bounds
        self._known = known

    def admit(self, host: str) -> Admission | None:
        """Somebody has connected from there: what the link may do, or None if it must be closed at once."""
        now = self._clock.seconds()
        place = self._place(host)
        refusal = self._why_not(place, now)
        if refusal is not None:
            self._refuse(place, *refusal)
            return None
        return Admission(self, place, now)

    def _place(self, host: str) -> _Source:
        name = place_of(host)
        place = self._places.get(name)
        if place is None:
            place = self._places[name] = _Source(name, host)
            self._forget_some()
        else:
            self._places.move_to_end(name)
        return place

    def _is_known(self, place: _Source) -> bool:
        address = Address(place.host.partition("%")[0], 0).numeric
        return place.proved or (address is not None and inside(address, self._known))

    def _forget_some(self) -> None:
        """Keep the table bounded. An address with links stays: links are bounded on their own."""
        while len(self._places) > MOST_PLACES + self.links:
            for name, place in self._places.items():
                if not place.links:
                    del self._places[name]
                    break

    def _why_not(self, place: _Source, now: float) -> tuple[str, str] | None:
        """Why no link from there is taken now: by what it is counted, and a sentence with numbers."""
        bounds = self._bounds
        if place.refused_until > now:
            return "failures", f"it has failed too often, and waits {place.refused_until - now:.0f} s more"
        if self.links >= bounds.links:
            return "links", f"there are {self.links} links already (`links`)"
        if place.links >= bounds.links_per_address:
            return "links_per_address", f"it has {place.links} links already (`links_per_address`)"
        if len(place.unproven) >= bounds.unproven_per_address and not self._replace(place, now):
            why = f"{len(place.unproven)} of its links have not shown who they are (`unproven_per_address`)"
            return "unproven_per_address", why
        if self.unproven >= bounds.unproven and not self._make_room(place, now):
            why = f"{self.unproven} links have not shown who they are (`unproven`), and it has its share of them"
            return "unproven", why
        return None

    def _replace(self, place: _Source, now: float) -> bool:
        """End the oldest unproven link of an address, if it has had its time."""
        oldest = next(iter(place.unproven))
        if now - oldest.since < timing.UNPROVEN_GRACE:
            return False
        oldest.make_way()
        return True

    def _make_room(self, newcomer: _Source, now: float) -> bool:
        """End the oldest unproven link of the address that has most of them."""
        most = max(self._waited_for, key=_claim)
        if len(newcomer.unproven) >= min(len(most.unproven), SHARE):
            return self._replace(newcomer, now)
        next(iter(most.unproven)).make_way()
        self.moved += 1
        self.note(
            "is full of links that have not shown who they are, and ended one for another",
            f"one from {most.name}, which has {len(most.unproven)} of them, for one from {newcomer.name}",
        )
        return True

    def _refuse(self, place: _Source, reason: str, why: str) -> None:
        self.refused += 1
        place.refused += 1
        self.note(f"refused a link from {place.name}", why, reason)

    def note(self, what: str, detail: str, reason: str = "") -> None:
        """Log something that others can cause without end: it is counted by `what` and `reason`, and told by count.

        :param reason: why, in the same words each time; another reason is told at once.
        """
        self._tally.add((what, reason), last=detail)

    def stop(self) -> None:
        """Log what is not logged yet; the listener has been closed."""
        self._tally.stop()

    def _log(self, key: tuple[str, str], count: int, last: str) -> None:
        what, _reason = key
        self.log.warn(
            "{listener} {what}; so far {count}, the last time: {last}",
            listener=self._listener,
            what=what,
            count=count,
            last=last,
        )

    # -- called by the admitted links

    def came(self, admission: Admission, place: _Source) -> None:
        """A link is there."""
        self.links += 1
        self.unproven += 1
        place.links += 1
        place.unproven[admission] = None
        self._waited_for[place] = None

    def no_longer_unproven(self, admission: Admission, place: _Source) -> None:
        """It has shown who it is, or is gone. Idempotent."""
        if admission in place.unproven:
            del place.unproven[admission]
            self.unproven -= 1
            if not place.unproven:
                del self._waited_for[place]

    def went(self, place: _Source) -> None:
        """A link is gone."""
        self.links -= 1
        place.links -= 1

    def failed(self, place: _Source, why: str) -> None:
        """Hold it against the address."""
        now, bounds = self._clock.seconds(), self._bounds
        count = place.failures.add(now, bounds.failures + _MOST_DOUBLINGS)
        # The count that fades makes up for what is lost between two failures: the limit is met, not only neared.
        seconds = doubling(timing.FIRST_REFUSAL, round(count) - bounds.failures, bounds.longest_refusal)
        if self._is_known(place):
            seconds = min(seconds, self._known_refusal)
        if seconds:
            place.refused_until = max(place.refused_until, now + seconds)
            self.note(
                f"lets {place.name} wait", f"for {seconds:g} s, after {round(count)} failures, the last one: {why}"
            )

    def allowance(self, who: str | None, place: _Source) -> _CommandBudget | None:
        """Somebody has proved himself: his allowance, which all his links share; None if he has too many links."""
        place.proved = True
        place.failures.clear()
        place.refused_until = 0.0
        now = self._clock.seconds()
        if who is None:
            return _CommandBudget(self._bounds.commands_per_second, now)
        mine = self._identities.get(who)
        if mine is None:
            mine = self._identities[who] = _CommandBudget(self._bounds.commands_per_second, now)
        if mine.links >= self._bounds.links_per_identity:
            return None
        mine.links += 1
        return mine

    def released(self, who: str) -> None:
        """One link of an identity is gone."""
        mine = self._identities[who]
        mine.links -= 1
        if not mine.links:
            del self._identities[who]

    def take(self, allowance: _CommandBudget) -> float:
        """A command comes in on this allowance; seconds to wait before the next is read."""
        return allowance.take(self._clock.seconds(), self._bounds.commands_per_second)


class Admission:
    """One accepted link, as its admission controller counts it. `scistream.links.link.Link` reports its events."""

    __slots__ = ("_admission_controller", "_allowance", "_cut", "_failed", "_over", "_place", "_who", "since")

    def __init__(self, admission_controller: AdmissionController, place: _Source, now: float) -> None:
        self._admission_controller = admission_controller
        self._place = place
        self._cut: Callable[[str], None] = _ignore
        self._allowance: _CommandBudget | None = None
        self._who: str | None = None
        self._failed = False
        self._over = False
        self.since = now
        admission_controller.came(self, place)

    def arrived(self, cut: Callable[[str], None]) -> None:
        """The link is there; `cut` ends it at once, for a reason."""
        self._cut = cut

    def proven(self, who: str | None) -> bool:
        """It is known who is there; False if that one has too many links.

        :param who: the name of an identity whose links are counted together; None for others.
        """
        self._admission_controller.no_longer_unproven(self, self._place)
        if self._allowance is None:
            self._allowance = self._admission_controller.allowance(who, self._place)
            self._who = who if self._allowance is not None else None
        return self._allowance is not None

    def failed(self, why: str) -> None:
        """It did what it should not. Counts once, and only while nobody knows who it is."""
        if self._allowance is None and not self._failed:
            self._failed = True
            self._admission_controller.failed(self._place, why)

    def line(self) -> float:
        """It has said a line; seconds to wait before the next is read."""
        return 0.0 if self._allowance is None else self._admission_controller.take(self._allowance)

    def make_way(self) -> None:
        """Another one gets its place."""
        self.failed("it has not shown who it is, and others wait")
        self.over()
        self._cut("it has not shown who it is, and others wait")

    def note(self, what: str, detail: str, reason: str = "") -> None:
        """Log something of this link; see `AdmissionController.note`."""
        self._admission_controller.note(what, detail, reason)

    def over(self) -> None:
        """The link is gone. Idempotent."""
        if self._over:
            return
        self._over = True
        self._admission_controller.no_longer_unproven(self, self._place)
        self._admission_controller.went(self._place)
        if self._who is not None:
            self._admission_controller.released(self._who)


class Entrance(Factory):
    """Ask the admission controller about each connection before any part of a link is made for it.

    :param link_factory: makes the factory of links, given a function that returns the admission
        of the link that is being made.
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
        admission = self._admission_controller.admit(str(getattr(addr, "host", addr)))
        if admission is None:
            return None
        self._admission = admission
        return self._inner.buildProtocol(addr)  # type: ignore[arg-type]

    def doStart(self) -> None:
        self._inner.doStart()

    def doStop(self) -> None:
        self._inner.doStop()

    def _current(self) -> Admission:
        admission, self._admission = self._admission, None
        assert admission is not None, "one link is made for each connection"
        return admission


def _claim(place: _Source) -> tuple[int, float]:
    """How soon an address has to make room: it holds more, or has held it longer."""
    return len(place.unproven), -next(iter(place.unproven)).since


def _ignore(_why: str) -> None:
    """The link is not made yet."""
