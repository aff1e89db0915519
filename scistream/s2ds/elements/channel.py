"""One channel at an element: its connections, its ready connections and its figures."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream import timing
from scistream.protocol.address import Address
from scistream.protocol.connect import Connect
from scistream.protocol.messages import CONS, PROD, StreamKey
from scistream.s2ds.elements import shared_figures
from scistream.s2ds.elements.path_sampler import PathSampler
from scistream.s2ds.elements.places import Claims, Places
from scistream.s2ds.elements.ready import ReadyBudget, ReadyDemand, ReadySetting, share_of_element
from scistream.s2ds.elements.shared_figures import SharedFigures
from scistream.s2ds.relay.context import ChannelTarget, ConnectionEnding, RelayContext
from scistream.s2ds.relay.flow import Flow
from scistream.s2ds.relay.leg import ConnectionBrokenError, prepare
from scistream.s2ds.relay.receive_windows import StreamWindows
from scistream.s2ds.relay.relay import Relay
from scistream.s2ds.relay.throttle import Throttle
from scistream.s2ds.relay.turns import Turn, Turns
from scistream.s2ds.relay.wan import OUTSIDE, WanConnection

MOST_PROVEN = 256
"""The number of verified peer addresses that a channel remembers."""
MOST_HELD = 64
"""The ready connections from the other gateway that a channel holds at one element: an honest gateway opens fewer."""
SAMPLES = 200
"""The number of connections of one channel in a sample, from which its sums are estimated."""

NOT_ARMED = "the channel has no target yet"
REPLACED = "the stream has got new targets while the connection waited for its place: connect again"
TOO_MANY_READY = "the other gateway keeps more connections ready than this one has places for"


class ElementChannel:
    """One channel at this element, with its open connections and its row of figures.

    :param key: the uid and role of the stream.
    :param ready: how many connections to keep ready, over all elements, if this gateway dials the other.
    :param note: called with each connection that was reset.
    :param note_use: called when a relay starts.
    """

    log = Logger()

    def __init__(
        self,
        context: RelayContext,
        figures: SharedFigures,
        element: int,
        key: StreamKey,
        channel: int,
        slot: int,
        to_consumer: Throttle,
        to_producer: Throttle,
        windows: StreamWindows,
        budget: ReadyBudget,
        places: Places,
        ready: ReadySetting,
        note: Callable[[ConnectionEnding], None],
        note_use: Callable[[], None],
    ) -> None:
        self._context = context
        self._note_use = note_use
        self._note = note
        self._key = key
        self._channel = channel
        self._words = figures.words
        self._row = row = figures.row(slot, element)
        self._ended_at = figures.ended(element)
        self._kept_ready_at = figures.kept_ready(element)
        self._to_consumer = Flow(to_consumer, windows, self._words, row + shared_figures.TO_CONSUMER)
        self._to_producer = Flow(to_producer, windows, self._words, row + shared_figures.TO_PRODUCER)
        self._turns = Turns(context.reactor, self._words, figures.turns(slot))
        self._budget = budget
        self._setting = ready
        self._element, self._elements = element, figures.elements
        self._demand: ReadyDemand | None = None
        self._target: ChannelTarget | None = None
        self.relays: dict[Relay, tuple[int, int]] = {}
        """The open relays, with the retransmits and moved bytes of each at the last sample."""
        self._joining: set[Relay] = set()
        self._placed: set[Relay] = set()
        """The relays on connections that this gateway has dialled for the producer; each has a place."""
        self._claims = Claims(
            context.reactor,
            places,
            key,
            channel,
            lambda: max(1, share_of_element(places.half_open, channel, element, figures.elements)),
            lambda: len(self._joining),
            context.dial_timeout,
            self._place_answered,
            self._give_back_place,
        )
        self._arriving: dict[WanConnection, None] = {}
        """The connections from the WAN that are not verified."""
        self._opening: set[WanConnection] = set()
        """The connections that are being dialled to be ready."""
        self._ready: dict[WanConnection, None] = {}
        """The ready connections, the oldest first."""
        self._idle_timer: IDelayedCall | None = None
        self._unserved: dict[Deferred[WanConnection], IDelayedCall] = {}
        self._proven: dict[str, None] = {}
        self._ready_delay = 0.0
        self._ready_timer: IDelayedCall | None = None
        self._is_old = False  # the other gateway does not know Connect
        self.paths = PathSampler(key, channel, element)

    @property
    def is_used(self) -> bool:
        """True if the channel has connections, or figures of ended ones that a sample has to clear."""
        return bool(self.relays or self._words[self._row + shared_figures.RTT_US])

    def set_target(self, target: ChannelTarget) -> None:
        """Set the target of new connections. Open ones keep their old target; others, ready ones among them, end."""
        self._target = target
        self._drop_ready()
        self._is_old, self._ready_delay = False, 0.0
        self._demand = None
        for wan in list(self._claims):
            wan.refuse("target-refused", REPLACED, "gateway")
        if target.dials_wan and target.tls_context is not None:
            self._demand = ReadyDemand(
                self._context.reactor,
                self._setting,
                grows=target.role == PROD,
                channel=self._channel,
                element=self._element,
                elements=self._elements,
            )
        self._replenish()

    def carry(self, sock: socket.socket, number: int) -> None:
        """Start a relay for a connection from ConsApp, or reset it if the channel has no target.

        :param number: its number among the connections of the channel; 0 if their order does not matter.
        """
        words, row = self._words, self._row
        turn = Turn(self._turns, number)
        words[row + shared_figures.TAKEN] += 1
        words[row + shared_figures.ACCEPTED] += 1
        if self._target is None:
            turn.finish()
            self._refuse(sock)
            return
        relay = Relay(
            self._context,
            self._target,
            self._to_producer,
            self._to_consumer,
            self._relay_ended,
            self._relay_joined,
            turn,
            number,
            sock=sock,
            source=self,
        )
        self._begin(relay)

    def carry_wan(self, sock: socket.socket) -> None:
        """Verify a connection from the WAN, or reset it if the channel has no target."""
        words, row = self._words, self._row
        for_producer = self._key[1] == PROD
        words[row + (shared_figures.TAKEN if for_producer else shared_figures.ARRIVED)] += 1
        if self._target is None:
            words[row + shared_figures.ACCEPTED] += for_producer
            self._refuse(sock)
            return
        self._count_arriving(1)
        wan = WanConnection(self._context, self._target, self)
        self._arriving[wan] = None
        wan.accept(sock)

    def _refuse(self, sock: socket.socket) -> None:
        self._words[self._row + shared_figures.RESET] += 1
        self._words[self._ended_at] += 1
        refuse(sock)
        self._note(ConnectionEnding(False, NOT_ARMED))

    def _count_arriving(self, change: int) -> None:
        """Count a connection from the WAN that is not verified; for a producer it may be an application's."""
        words, row = self._words, self._row
        if self._key[1] == CONS:
            words[row + shared_figures.ARRIVING] += change
            return
        words[row + shared_figures.OPEN] += change
        words[row + shared_figures.JOINING] += change
        words[row + shared_figures.ACTIVE] = max(0, words[row + shared_figures.ACTIVE] + change)

    def count_lost(self, number: int, *, wan: bool) -> None:
        """Count a connection that was handed over and lost."""
        Turn(self._turns, number).finish()
        is_application = not wan or self._key[1] == PROD
        words, row = self._words, self._row
        words[row + (shared_figures.TAKEN if is_application else shared_figures.ARRIVED)] += 1
        words[row + shared_figures.ACCEPTED] += is_application
        words[row + shared_figures.RESET] += is_application
        words[self._ended_at] += 1

    def make_room(self, now: float, count: int, share: int) -> None:
        """Reset connections that are slow in their handshake.

        Begin with the address that has the most of them, and end with addresses of verified gateways.

        :param now: the time in seconds.
        :param count: the number of connections to reset, at most.
        :param share: the number of connections in a handshake beyond which an address has less time for each.
        """
        by_address: dict[str, list[WanConnection]] = {}
        for wan in self._arriving:
            by_address.setdefault(wan.source, []).append(wan)
        addresses = sorted(by_address, key=lambda address: (address in self._proven, -len(by_address[address])))
        slow = []
        for address in addresses:
            arriving = by_address[address]
            is_suspect = address not in self._proven
            for left, wan in zip(range(len(arriving), 0, -1), arriving, strict=True):
                grace = timing.WAN_GRACE
                if is_suspect and left > share:
                    grace = timing.WAN_SHARE_GRACE if wan.has_received() else timing.WAN_SILENT_GRACE
                if now - wan.opened_at >= grace:
                    slow.append(wan)
        for wan in slow[:count]:
            wan.reset("its TLS handshake was not complete while other connections waited", "stranger")

    def sample(self) -> None:
        """Write TCP's figures of the connections over the WAN into the row, estimated from some if there are many."""
        words, row = self._words, self._row
        chosen = [relay for relay in self.relays if relay not in self._joining]
        share = max(1.0, len(chosen) / SAMPLES)
        if share > 1.0:
            chosen = random.sample(chosen, SAMPLES)
        rtt = delivery = waiting = unread = active = held = 0.0
        for relay in chosen:
            one = relay.sample()
            rtt += one.rtt
            delivery += one.delivery_rate
            waiting += one.waiting
            unread += one.unread
            held += one.is_held
            self.paths.look(relay, one.paths, share)
            retransmits, moved = self.relays[relay]
            active += one.moved != moved
            words[row + shared_figures.RETRANSMITS] += max(0, one.retransmits - retransmits)
            self.relays[relay] = one.retransmits, one.moved
        words[row + shared_figures.RTT_US] = int(rtt * share * 1e6)
        words[row + shared_figures.DELIVERY] = int(delivery * share)
        words[row + shared_figures.WAITING] = int(waiting * share)
        words[row + shared_figures.UNREAD] = int(unread * share)
        words[row + shared_figures.HELD] = int(held * share)
        unverified = len(self._arriving) if self._key[1] == PROD else 0
        words[row + shared_figures.ACTIVE] = int(active * share) + len(self._joining) + unverified

    def close(self) -> int:
        """Reset all connections, and return how many of applications there were."""
        self._target = self._demand = None
        for waiting in list(self._unserved):
            waiting.cancel()
        for wan in list(self._claims):  # before the relays, whose end would let some go on
            wan.abort()
            self._forget_claim(wan)
        self._claims.close()
        relays = list(self.relays)
        for relay in relays:
            relay.cut()
        for wan in list(self._arriving):
            wan.abort()
            self._forget_arriving(wan)
        self._drop_ready()
        return len(relays)

    def drop_outside(self, allowed: Callable[[Address], bool]) -> None:
        """End what is ready or being opened, to or from addresses that are not allowed any more; relays go on."""
        unused = *self._ready, *self._opening, *self._arriving, *self._claims
        for wan in [wan for wan in unused if not wan.is_inside(allowed)]:
            wan.reset(OUTSIDE, "gateway")
        for relay in list(self._joining):
            relay.drop_outside(allowed)

    # -- relays

    def _begin(self, relay: Relay) -> None:
        words, row = self._words, self._row
        words[row + shared_figures.OPEN] += 1
        words[row + shared_figures.JOINING] += 1
        words[row + shared_figures.ACTIVE] += 1
        self.relays[relay] = 0, 0
        self._joining.add(relay)
        self._note_use()
        relay.start()

    def _relay_joined(self, relay: Relay) -> None:
        self._words[self._row + shared_figures.JOINED] += 1
        if relay in self._joining and relay not in self._placed:
            self._count_used(1)
        self._mark_joined(relay)
        self.serve_claims()

    def _mark_joined(self, relay: Relay) -> None:
        if relay in self._joining:
            self._joining.discard(relay)
            self._words[self._row + shared_figures.JOINING] -= 1

    def _count_used(self, change: int) -> None:
        """Count an accepted connection against the share of a producer's stream."""
        if self._key[1] == PROD:
            self._words[self._row + shared_figures.ACCEPTED_USED] += change

    def _relay_ended(self, relay: Relay, ending: ConnectionEnding) -> None:
        if relay not in self._joining and relay not in self._placed:
            self._count_used(-1)
        self._mark_joined(relay)
        self.relays.pop(relay, None)
        self.paths.ended(relay, relay.last_paths)
        words, row = self._words, self._row
        words[row + shared_figures.OPEN] -= 1
        words[row + shared_figures.RESET] += not ending.clean
        if relay in self._placed:
            self._placed.discard(relay)
            self._give_back_place()
        else:
            words[self._ended_at] += 1
        if ending.reason:
            self._note(ending)
        self.serve_claims()

    # -- WanSource: for the relays of the consumer's side

    def claim(self) -> WanConnection | None:
        """Return the oldest ready connection that is alive, which is the caller's now; None if there is none."""
        while self._ready:
            wan = next(iter(self._ready))
            self._forget_ready(wan)
            if wan.is_alive():
                self._note_claim(wan)
                return wan
            wan.abort()
        self._note_claim(None)
        return None

    def wait_for_ready(self) -> Deferred[WanConnection]:
        """Fire with the next ready connection; fail with `ConnectionBrokenError` if there is none within the time."""
        found: Deferred[WanConnection] = Deferred(self._stop_waiting)
        timeout = self._context.dial_timeout
        self._unserved[found] = self._context.reactor.callLater(timeout, self._not_served, found, timeout)
        self._words[self._row + shared_figures.UNSERVED] += 1
        return found

    def _not_served(self, found: Deferred[WanConnection], timeout: float) -> None:
        self._stop_waiting(found)
        reason = f"the producer's gateway opened no connection for it within {timeout:g} s"
        found.errback(Failure(ConnectionBrokenError(reason, "wan")))

    def _stop_waiting(self, found: Deferred[WanConnection]) -> None:
        timer = self._unserved.pop(found, None)
        if timer is not None:
            self._words[self._row + shared_figures.UNSERVED] -= 1
            if timer.active():
                timer.cancel()

    # -- WanOwner

    def wan_opened(self, wan: WanConnection) -> None:
        """Hold a connection that is verified until Connect, or start a relay if the other gateway does not know it."""
        if wan in self._arriving:
            self._prove(wan.source)
        elif wan in self._opening:
            self._opening.discard(wan)
            self._ready_delay = 0.0
            self._hold(wan)
            self._budget.opened()
            return
        if self._key[1] == PROD and not wan.speaks_connect:
            self._forget_arriving(wan)
            self._relay_to_program(wan, 0)
        elif not wan.speaks_connect:
            wan.reset("the other gateway dials, but does not know Connect", "far-side")
        elif self._key[1] == PROD:
            wan.wait_for_connect()
            if wan in self._arriving:  # Connect has not come with the handshake
                self._forget_arriving(wan, ends=False)
                self._hold(wan)
        else:
            self._forget_arriving(wan, ends=False)
            self._hold(wan)

    def _hold(self, wan: WanConnection) -> None:
        """Make a verified connection a ready one."""
        if wan.target is not self._target:  # verified under credentials that are replaced
            wan.abort()
            self._words[self._ended_at] += 1
            return
        if not wan.is_dialled and (len(self._ready) >= MOST_HELD or not self._budget.hold(self._key)):
            self._words[self._ended_at] += 1
            found = next(iter(self._unserved), None)
            if found is not None:
                self._stop_waiting(found)
                found.callback(wan)
                return
            wan.abort()
            self._note(ConnectionEnding(False, TOO_MANY_READY, "far-side"))
            return
        self._ready[wan] = None
        self._words[self._row + shared_figures.READY] += 1
        if not wan.is_dialled:
            self._count_used(1)
        if self._is_kept_for_here(wan):
            self._words[self._kept_ready_at] += 1
            self._words[self._ended_at] += 1
        wan.note_ready()
        if self._key[1] == PROD:
            wan.wait_for_connect()
            return
        wan.wait_to_be_claimed()
        if wan in self._ready and self._unserved:
            found = next(iter(self._unserved))
            self._stop_waiting(found)
            self._forget_ready(wan)
            found.callback(wan)
        if not wan.is_dialled and self._idle_timer is None:
            self._retire_idle()

    def _retire_idle(self) -> None:
        """End ready connections of a producer's gateway that were not needed for long, except the last one.

        Only this side claims them, so it can tell that none is about to be used. The other one opens those that it
        wants to keep.
        """
        self._idle_timer = None
        now = self._context.reactor.seconds()
        while len(self._ready) > 1:
            oldest = next(iter(self._ready))
            left = oldest.opened_at + timing.READY_IDLE - now
            if left > 0:
                self._idle_timer = self._context.reactor.callLater(left, self._retire_idle)
                return
            oldest.abort()
            self._forget_ready(oldest)

    def wan_connects(self, wan: WanConnection, connect: Connect) -> None:
        """Connect an application's connection to ProdApp."""
        if wan.is_dialled:  # it counts as dialled early until it has a place
            del self._ready[wan]
            self._words[self._row + shared_figures.READY] -= 1
            self._claims.add(wan, connect.number)
            return
        if wan in self._ready:
            self._forget_ready(wan, ends=False)
        else:
            self._forget_arriving(wan, ends=False)
        self._relay_to_program(wan, connect.number)

    def serve_claims(self) -> None:
        """Ask for places for connections that have waited until fewer of the channel wait for ProdApp."""
        if self._claims:
            self._claims.serve()

    def _place_answered(self, wan: WanConnection, number: int, refusal: str) -> None:
        self._forget_dialled()
        if not refusal:
            self._note_claim(wan)
            self._relay_to_program(wan, number)
            return
        Turn(self._turns, number).finish()
        wan.refuse("no-capacity", refusal, "gateway")
        self._note(ConnectionEnding(False, refusal))
        self._replenish_later(0.0)

    def _give_back_place(self) -> None:
        self._words[self._row + shared_figures.GIVEN_BACK] += 1
        self._words[self._ended_at] += 1

    def _forget_claim(self, wan: WanConnection) -> None:
        Turn(self._turns, self._claims.remove(wan)).finish()
        self._forget_dialled()

    def _relay_to_program(self, wan: WanConnection, number: int) -> None:
        self._words[self._row + shared_figures.ACCEPTED] += 1
        relay = Relay(
            self._context,
            wan.target,
            self._to_producer,
            self._to_consumer,
            self._relay_ended,
            self._relay_joined,
            Turn(self._turns, number),
            number,
            wan=wan,
        )
        if wan.is_dialled:
            self._placed.add(relay)
        self._begin(relay)

    def wan_ended(self, wan: WanConnection, ending: ConnectionEnding) -> None:
        """Count a connection that ended before a relay took it."""
        if wan in self._arriving:
            self._forget_arriving(wan)
            self._count_reset()
            self._note(ending)
            return
        if wan in self._opening:
            self._opening.discard(wan)
            self._forget_dialled()
            self._dial_failed(ending, lacks_connect=wan.lacks_connect)
            self._budget.opened()
        elif wan in self._claims:
            self._forget_claim(wan)
            self._count_reset()
            self._note(ending)
            self._replenish_later(0.0)
        elif wan in self._ready:
            self._forget_ready(wan)
            if wan.has_misbehaved:
                self._count_reset()
                self._note(ending)
            lived = self._context.reactor.seconds() - wan.opened_at
            self._replenish_later(0.0 if lived > timing.READY_YOUNG else self._next_delay())

    def _count_reset(self) -> None:
        """Count a connection from the WAN at the producer's side, where it may have been an application's."""
        if self._key[1] == PROD:
            self._words[self._row + shared_figures.ACCEPTED] += 1
            self._words[self._row + shared_figures.RESET] += 1

    def _forget_arriving(self, wan: WanConnection, *, ends: bool = True) -> None:
        del self._arriving[wan]
        self._count_arriving(-1)
        self._words[self._ended_at] += ends

    def _forget_ready(self, wan: WanConnection, *, ends: bool = True) -> None:
        del self._ready[wan]
        self._words[self._row + shared_figures.READY] -= 1
        if wan.is_dialled:
            self._forget_dialled()
            return
        self._budget.release(self._key)
        self._count_used(-1)
        if self._is_kept_for_here(wan):
            self._words[self._kept_ready_at] -= 1
        else:
            self._words[self._ended_at] += ends

    def _is_kept_for_here(self, wan: WanConnection) -> bool:
        """Return True if the other gateway has opened a connection that waits for one of ConsApp at this one."""
        return not wan.is_dialled and self._key[1] == CONS

    def _forget_dialled(self) -> None:
        self._words[self._kept_ready_at] -= 1
        self._budget.ended(self._key)

    def _prove(self, source: str) -> None:
        self._proven.pop(source, None)
        self._proven[source] = None
        if len(self._proven) > MOST_PROVEN:
            del self._proven[next(iter(self._proven))]

    # -- the ready connections that this gateway dials

    def _note_claim(self, wan: WanConnection | None) -> None:
        if self._demand is not None:
            self._demand.note_claim(wan.seconds_to_open if wan is not None else 0.0)
            self._replenish_later(0.0)

    def _replenish(self) -> None:
        """Dial as many connections as are missing."""
        self._stop_ready_timer()
        demand, target = self._demand, self._target
        if demand is None or target is None or self._is_old:
            return
        missing = demand.wanted() - len(self._ready) - len(self._opening) - len(self._claims)
        for _ in range(missing):
            if not self._budget.begin(
                self._key, self._replenish, needed=target.role == PROD and not self._ready and not self._opening
            ):
                break
            self._words[self._kept_ready_at] += 1
            wan = WanConnection(self._context, target, self)
            self._opening.add(wan)
            wan.dial(_nothing, must_speak_connect=True)
        if missing < 0 and target.role == CONS:
            for wan in list(self._ready)[missing:]:
                wan.abort()
                self._forget_ready(wan)
        if demand.checked_again is not None:
            self._replenish_later(demand.checked_again)

    def _replenish_later(self, seconds: float) -> None:
        if self._demand is None or self._is_old:
            return
        if self._ready_timer is not None and self._ready_timer.active():
            if self._ready_timer.getTime() <= self._context.reactor.seconds() + seconds:
                return
            self._ready_timer.cancel()
        self._ready_timer = self._context.reactor.callLater(seconds, self._replenish)

    def _stop_ready_timer(self) -> None:
        timer, self._ready_timer = self._ready_timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _dial_failed(self, ending: ConnectionEnding, *, lacks_connect: bool) -> None:
        assert self._target is not None
        if lacks_connect:
            self._is_old = True
            self.log.info(
                "uid={uid} role={role} channel {channel}: {gateway} is of a version without Connect: each connection "
                "takes three round trips to open",
                uid=self._key[0],
                role=self._key[1],
                channel=self._channel,
                gateway=self._target.gateway,
            )
            return
        if not self._ready_delay:
            self.log.warn(
                "uid={uid} role={role} channel {channel}: no connection to {gateway} can be kept ready: {reason}; "
                "trying again",
                uid=self._key[0],
                role=self._key[1],
                channel=self._channel,
                gateway=self._target.gateway,
                reason=ending.reason,
            )
        if self._key[1] == PROD:  # the consumer's gateway cannot dial instead
            through = f" through the proxy at {self._context.proxy}" if self._context.proxy is not None else ""
            reason = f"{self._target.gateway} could not be reached{through}; see the log of this gateway for the reason"
            self._note(ConnectionEnding(False, reason, "wan", ending.reason))
        self._replenish_later(self._next_delay())

    def _next_delay(self) -> float:
        if self._ready_timer is None or not self._ready_timer.active():
            longer = max(timing.READY_AGAIN, 2 * self._ready_delay)
            self._ready_delay = min(longer, timing.LONGEST_READY_AGAIN)
        return self._ready_delay * random.uniform(0.8, 1.2)

    def _drop_ready(self) -> None:
        """End all ready connections, and those that are to be ready."""
        self._budget.forget(self._replenish)
        self._stop_ready_timer()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        for wan in list(self._opening):
            self._opening.discard(wan)
            wan.abort()
            self._forget_dialled()
            self._budget.opened()
        for wan in list(self._ready):
            wan.abort()
            self._forget_ready(wan)


def _nothing() -> None:
    pass


def refuse(sock: socket.socket) -> None:
    """Reset an accepted connection that is not carried."""
    prepare(sock, timing.LAN_SILENCE)
    sock.close()
