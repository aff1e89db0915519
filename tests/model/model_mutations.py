"""Faults planted in the project's code, which the explorer must find.

Each is a mistake that people make in such protocols, and each does no harm as long as nothing goes wrong. They are
planted in a process of their own and stay there: a worker of the explorer, which ends with its search.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from model_faults import SOON, Bounds
from model_stand_ins import ModelStore

from scistream.links import outbox
from scistream.links.outbox import Outbox
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, Rel
from scistream.s2cs import machine as s2cs_machine
from scistream.s2cs import machine_core
from scistream.s2cs import stream as s2cs_effects
from scistream.s2cs.gateway_reports import GatewayReports
from scistream.s2cs.machine_core import Core as S2CSCore
from scistream.s2cs.record import Record
from scistream.s2cs.steps import release as s2cs_release
from scistream.s2cs.steps import targets as s2cs_targets
from scistream.s2ds import machine as s2ds_machine
from scistream.s2ds.machine import Core as S2DSCore
from scistream.s2ds.service import DataServer
from scistream.s2ds.stream import GatewayStream
from scistream.s2uc import machine as s2uc_machine
from scistream.s2uc.stream import ClientStream


@dataclass(frozen=True)
class Mutation:
    """A fault to plant.

    :param breaks: the promise that it breaks, by its letter.
    :param plant: plants it, for good.
    :param scenario: in which it does harm.
    :param bounds: the least that must go wrong for that.
    """

    name: str
    breaks: str
    plant: Callable[[], None]
    scenario: str
    bounds: Bounds


MUTATIONS: dict[str, Mutation] = {}


def mutation(
    name: str, breaks: str, scenario: str, network: int, crashes: int, *kinds: str, comeback: float | None = SOON
) -> Any:
    """Note what follows as a way to plant a fault, found where faults of these kinds happen."""

    def note(plant: Callable[[], None]) -> Callable[[], None]:
        bounds = Bounds(network, crashes, frozenset(kinds), (comeback,))
        MUTATIONS[name] = Mutation(name, breaks, plant, scenario, bounds)
        return plant

    return note


def _becomes(original: Any, mutated: Any) -> None:
    """Let a function that a machine's table holds already do something else from now on."""
    original.__code__ = mutated.__code__


# -- what is asked twice is done twice


@mutation("a gateway reserves once more when ReqListeners is repeated", "E", "life", 1, 0, "repeat")
def _reserve_twice() -> None:
    def _req_again(stream: Any, core: Any, caller: Any, request: Any) -> None:
        core.effects.bind(request)
        core.answer_with_state(caller, "reserved once more")

    _becomes(s2ds_machine._req_again, _req_again)


@mutation("an S2CS and its gateways take a lower generation", "E", "new targets", 1, 0, "again late")
def _take_lower_generations() -> None:
    s2cs_targets._repeats_update = lambda core, caller, command: False

    def _consider_update(stream: Any, core: Any, caller: Any, command: Any) -> None:
        stream._carry_out(caller, command)

    _becomes(s2ds_machine._consider_update, _consider_update)


@mutation("an answer that says that the work goes on counts as the last one", "A", "life", 1, 0, "repeat")
def _take_any_answer() -> None:
    outbox.still_working = lambda command, answer: False


# -- what is lost is not made up for


@mutation("commands that were sent once are not sent again on a new link", "A", "life", 1, 0, "break")
def _send_once() -> None:
    down, up = Outbox.link_down, Outbox.link_up

    def link_down(self: Any, reason: str) -> None:
        for waiting in self._waiting:
            waiting.forgotten = bool(waiting.sent_as)
        down(self, reason)

    def link_up(self: Any, link: Any) -> None:
        waiting = self._waiting
        self._waiting = {one: None for one in waiting if not getattr(one, "forgotten", False)}
        up(self, link)
        self._waiting = waiting

    Outbox.link_down = link_down  # type: ignore[method-assign]
    Outbox.link_up = link_up  # type: ignore[method-assign]


@mutation("the user's client does not look for a ProdLstn that was lost", "A", "life", 1, 0, "lose")
def _miss_prod_lstn() -> None:
    looked = ClientStream._status_answered

    def blind(self: Any, answer: Any, role: Any) -> None:
        if self.core.state != "Reserved":
            looked(self, answer, role)

    ClientStream._status_answered = blind  # type: ignore[method-assign]


@mutation("ConsApp is told to connect once only", "A", "life", 1, 0, "break")
def _tell_once() -> None:
    tell = S2CSCore.tell_consumer_to_connect

    def tell_once(self: Any) -> None:
        if not getattr(self, "told", False):
            self.told = True
            tell(self)

    S2CSCore.tell_consumer_to_connect = tell_once  # type: ignore[method-assign]


# -- a release that is forgotten


@mutation("what was being reserved is not released when that fails", "B", "life", 0, 1, "silence")
def _forget_to_release() -> None:
    def _release(stream: Any, core: Any, cause: Any, callers: Any) -> Any:
        if core.state == "Reserving":
            core.record.plan = {}
        waiting = [] if isinstance(cause, StreamError) else [cause]
        return Release(waiting, set(core.record.plan))  # type: ignore[name-defined]  # noqa: F821

    _becomes(machine_core.begin_release, _release)


@mutation("an S2CS gives REL up", "B", "life", 0, 1, "silence")
def _give_rel_up() -> None:
    ask = Outbox.ask

    def impatient(self: Any, command: Any, timeout: float | None) -> Any:
        return ask(self, command, 20.0 if isinstance(command, Rel) and timeout is None else timeout)

    Outbox.ask = impatient  # type: ignore[method-assign]


@mutation("one side that fails does not release the other", "A", "life", 0, 1, "crash")
def _leave_the_other() -> None:
    def _failed(stream: Any, core: Any, error: Any) -> None:
        core.error = error
        stream._both_released()

    _becomes(s2uc_machine._failed, _failed)


@mutation("a gateway has no clock of its own for the end of a stream", "B", "life", 0, 1, "crash", comeback=None)
def _no_end() -> None:
    GatewayStream.start_timer = lambda self, seconds: None  # type: ignore[method-assign]


@mutation("a gateway forgets at once what it has released", "E", "life", 2, 0, "again late", "release")
def _forget_the_released() -> None:
    command = DataServer._command

    def forgetful(self: Any, link: Any, message: Any) -> None:
        key = message.uid, message.role
        if key in self._streams and self._streams[key].released_at is not None:
            del self._streams[key]
        command(self, link, message)

    DataServer._command = forgetful  # type: ignore[method-assign]


@mutation("an S2CS forgets a REL that overtook its REQ", "A", "life", 2, 0, "last", "release")
def _forget_early_releases() -> None:
    ModelStore.note_early_release = lambda *_: None


# -- what a restart makes of it


@mutation("an S2CS answers REL before it has written", "S", "life", 0, 1, "crash inside")
def _answer_first() -> None:
    def _gone(stream: Any, core: Any, release: Any) -> None:
        for caller in release.waiting_callers:
            core.resp(caller, _GONE)  # type: ignore[name-defined]  # noqa: F821
        core.save()

    _becomes(s2cs_release.released, _gone)


@mutation("an S2CS does not notice that a gateway has started anew", "A", "life", 0, 1, "crash")
def _ignore_boots() -> None:
    def compare_streams(self: Any, gateway: Any, boot: str, expected: Any, known: Any) -> None:
        """Whatever it says."""

    GatewayReports.compare_streams = compare_streams  # type: ignore[method-assign]


@mutation("an S2CS that was restarted takes what it was releasing for released", "B", "life", 0, 1, "crash inside")
def _resume_too_late() -> None:
    def restored_stream(core: Any) -> Any:
        if core.record.state == "Releasing":
            core.record.state = "Released"
            core.effects._server.store.save(core.record)
        return s2cs_machine.restored_stream(core)

    s2cs_effects.restored_stream = restored_stream


@mutation("a user's client that comes back begins to count generations anew", "A", "life", 0, 1, "crash")
def _count_anew() -> None:
    adopt_state = ClientStream._adopt_state

    def forgetful(self: Any, sides: Any) -> None:
        for role in (PROD, CONS):
            sides[role] = _without_generation(sides[role])
        adopt_state(self, sides)

    ClientStream._adopt_state = forgetful  # type: ignore[method-assign]


def _without_generation(status: Any) -> Any:
    return msgspec.structs.replace(status, generation=0, state="Ready")


# -- the producer's gateways dial


@mutation(
    "a gateway whose stream has expired keeps its WAN listeners", "B", "producer dials", 0, 1, "crash", comeback=None
)
def _keep_wan_listeners() -> None:
    return_resources = GatewayStream._return_resources

    def wasteful(self: Any) -> None:
        if self._core.last_error is not None and self._core.role == CONS:
            self._for_wan._lent = []
        return_resources(self)

    GatewayStream._return_resources = wasteful  # type: ignore[method-assign]


@mutation("an S2CS that comes back has forgotten which side dials", "E", "producer dials", 0, 1, "crash")
def _forget_wan_dialer() -> None:
    load = ModelStore.load

    def forgetful(self: Any, *, live: bool = False) -> list[Record]:
        records = load(self, live=live)
        for record in records:
            record.wan_dialer, record.wan_targets = CONS, {}
        return records

    ModelStore.load = forgetful  # type: ignore[method-assign]


@mutation("a gateway tells its WAN listeners in its first answer only", "A", "producer dials", 1, 0, "lose")
def _tell_wan_listeners_once() -> None:
    answer_with_state = S2DSCore.answer_with_state

    def forgetful(self: Any, caller: Any, msg: str) -> None:
        answer_with_state(self, caller, msg)
        self.wan_listeners = []

    S2DSCore.answer_with_state = forgetful  # type: ignore[method-assign]
