"""The machine of a stream at an S2DS: against its table, and what it does at each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from state_tables import inputs_of, tables_of

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import PROD, ChannelFigures, Extend, ReqListeners, Resp, UpdateTargets
from scistream.s2ds import machine as s2ds
from scistream.s2ds.machine import Core, Effects, Stream, Update, new_stream
from scistream.state_machines import data_of
from support import machine_rig
from support.machine_rig import Recorder, kinds

[TABLE] = tables_of(s2ds.__doc__)
STATES = [state.name for state in s2ds.STATES]
LIVE = [state.name for state in s2ds.LIVE]
UID = "12345678-1234-4234-8234-123456789abc"
BOOT = "b" * 32
LISTENERS = ["dtn1.example:5100", "dtn1.example:5101"]
NO_PORTS = StreamError("no-ports", "0 ports are free")
REFUSED = StreamError("target-refused", "outside app_networks")
BAD_KEY = StreamError("bad-message", "data_conn_key: it is not a bundle")
BROKEN = StreamError("gateway-failed", "an element died")


class Rig(machine_rig.CommandedRig):
    """One stream on a gateway, and the controller that commands it."""

    def __init__(self) -> None:
        effects: Any = Recorder(Effects)
        self.core = Core(effects, UID, PROD, BOOT)
        super().__init__(new_stream(self.core), effects, self.core)

    def req(self, **changes: Any) -> int:
        caller = self.caller()
        fields: dict[str, Any] = {"channels": [0, 1], "rate": 100.0, "expires": 600.0, "wan_security": "encrypt"}
        request = ReqListeners(uid=UID, role=PROD, seq=caller.seq, **{**fields, **changes})
        self.machine.req_listeners(caller, request)
        return caller.seq

    def command(self, generation: int | None = None, target: str = "10.0.0.9:7000", key: str = "pem") -> UpdateTargets:
        number = self.core.generation + 1 if generation is None else generation
        targets = dict.fromkeys(LISTENERS, target)
        return UpdateTargets(uid=UID, role=PROD, seq=1, generation=number, connection_map=targets, data_conn_key=key)

    def extend(self, seconds: float = 1200.0) -> int:
        caller = self.caller()
        self.machine.extend(caller, Extend(uid=UID, role=PROD, seq=caller.seq, expires=seconds))
        return caller.seq

    def bound(self) -> None:
        self.machine.bound(LISTENERS, "<csr>")

    def to(self, state: str, before_update: str = "Reserved") -> Rig:
        """Bring it there by what others would do."""
        if state != "Idle":
            self.req()
        if state not in ("Idle", "Reserving"):
            self.bound()
        if state in ("Updating", "Forwarding"):
            self.update()
            if state == "Forwarding" or before_update == "Forwarding":
                self.machine.armed([])
            if (state, before_update) == ("Updating", "Forwarding"):
                self.update()
        if state in ("Releasing", "Released"):
            self.rel()
        if state == "Released":
            self.machine.closed([])
        assert self.state == state
        self.news()
        return self

    def answer_to(self, seq: int) -> Any:
        [message] = [call[1] for call in self.news() if call[0] == "answer" and call[1].seq == seq]
        return message

    def snapshot(self) -> Any:
        core = self.core
        return msgspec.to_builtins(
            [core.state, core.request, core.listeners, core.csr, core.current, self.update_under_way, core.last_error]
        )

    @property
    def update_under_way(self) -> UpdateTargets | None:
        """The command that is being carried out."""
        update = data_of(self.machine, Update)
        return update.command if update is not None else None


# -- every input in every state


@dataclass(frozen=True)
class Input:
    """How something comes in, and what the table calls it in a state; "" if it is nothing there."""

    name: str
    give: Callable[[Rig], Any]
    called: str


INPUTS = [
    Input("req_listeners", lambda rig: rig.req(), "ReqListeners"),
    Input("req_listeners", lambda rig: rig.req(rate=7.0), "ReqListeners"),
    Input("update_targets", lambda rig: rig.update(), "UpdateTargets"),
    Input("update_targets", lambda rig: rig.update(generation=9), "UpdateTargets"),
    Input("extend", lambda rig: rig.extend(), "Extend"),
    Input("rel", lambda rig: rig.rel(), "REL"),
    Input("bound", lambda rig: rig.bound(), "bound"),
    Input("not_bound", lambda rig: rig.machine.not_bound(NO_PORTS), "not bound"),
    Input("armed", lambda rig: rig.machine.armed([]), "armed"),
    Input("not_armed", lambda rig: rig.machine.not_armed(REFUSED), "target-refused"),
    Input("not_armed", lambda rig: rig.machine.not_armed(BAD_KEY), "bad-message"),
    Input("not_armed", lambda rig: rig.machine.not_armed(BROKEN), "other failure"),
    Input("failed", lambda rig: rig.machine.failed(BROKEN), "fault"),
    Input("expired", lambda rig: rig.machine.expired(), "expires"),
    Input("closed", lambda rig: rig.machine.closed([]), "all closed"),
]
PRIVATE: list[tuple[str, Callable[[Rig], Any], dict[str, str]]] = [
    (
        "_carry_out",
        lambda rig: rig.machine._carry_out(rig.caller(), rig.command()),
        {"Reserved": "Updating", "Forwarding": "Updating"},
    ),
    ("_back_to_reserved", lambda rig: rig.machine._back_to_reserved(), {"Updating": "Reserved"}),
    ("_back_to_forwarding", lambda rig: rig.machine._back_to_forwarding(), {"Updating": "Forwarding"}),
    ("_fail", lambda rig: rig.machine._fail(BROKEN), dict.fromkeys(LIVE, "Releasing")),
]

EVERY_STATE = pytest.mark.parametrize("state", STATES)


def test_the_table_names_every_state_and_these_tests_every_input() -> None:
    assert TABLE.states == set(STATES)
    assert {one.name for one in INPUTS} | {name for name, _, _ in PRIVATE} == inputs_of(Stream)
    assert {given for _, given in TABLE.inputs} == {one.called for one in INPUTS}


@EVERY_STATE
@pytest.mark.parametrize("given", INPUTS, ids=[f"{number}-{one.name}" for number, one in enumerate(INPUTS)])
def test_every_input_leads_from_every_state_where_the_table_says(state: str, given: Input) -> None:
    rig = Rig().to(state)
    expected = TABLE.next(state, given.called)
    given.give(rig)
    assert rig.state == (expected if expected in STATES else "Reserved")


@pytest.mark.parametrize("before", ["Reserved", "Forwarding"])
def test_refused_targets_lead_back_to_where_the_update_began(before: str) -> None:
    assert TABLE.next("Updating", "target-refused") == "as before it"
    rig = Rig().to("Updating", before_update=before)
    rig.machine.not_armed(REFUSED)
    assert rig.state == before


@EVERY_STATE
@pytest.mark.parametrize(("name", "give", "leads"), PRIVATE, ids=[name for name, _, _ in PRIVATE])
def test_inputs_of_the_machine_to_itself_count_only_where_they_belong(
    state: str, name: str, give: Callable[[Rig], None], leads: dict[str, str]
) -> None:
    rig = Rig().to(state)
    give(rig)
    assert rig.state == leads.get(state, state)
    if state not in leads:
        assert rig.news() == []


@EVERY_STATE
@pytest.mark.parametrize("given", [one for one in INPUTS if one.called[0].islower()], ids=lambda given: given.called)
def test_what_comes_of_an_effect_too_late_does_nothing(state: str, given: Input) -> None:
    if (state, given.called) in TABLE.inputs:
        return
    rig = Rig().to(state)
    before = rig.snapshot()
    given.give(rig)
    assert rig.news() == []
    assert rig.snapshot() == before


# -- repeating changes nothing (invariant E)


COMMANDS: dict[str, Callable[[Rig], Any]] = {
    "ReqListeners": lambda rig: rig.req(),
    "ReqListeners with other fields": lambda rig: rig.req(channels=[0]),
    "UpdateTargets": lambda rig: rig.update(generation=7),
    "UpdateTargets of a low generation": lambda rig: rig.update(generation=1, key="old"),
    "REL": lambda rig: rig.rel(),
}


@EVERY_STATE
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_repeated_command_changes_nothing_and_is_answered(state: str, command: Callable[[Rig], Any]) -> None:
    rig = Rig().to(state)
    command(rig)
    once = rig.snapshot()
    rig.news()
    for _ in range(2):
        seq = command(rig)
        assert rig.snapshot() == once
        news = rig.news()
        assert kinds(news) == ["answer"]
        assert [call[1].seq for call in news] == [seq]


# -- ReqListeners


def test_listeners_are_reserved_and_then_answered_with_csr_and_boot() -> None:
    rig = Rig()
    seq = rig.req()
    [(what, request)] = rig.news()
    assert what == "bind"
    assert request.channels == [0, 1]
    rig.bound()
    assert rig.news() == [
        ("start timer", 600.0),
        (
            "answer",
            Resp(
                uid=UID,
                seq=seq,
                state="Reserved",
                msg="reserved 2 listeners",
                listeners=LISTENERS,
                csr="<csr>",
                boot=BOOT,
            ),
        ),
    ]


def test_what_cannot_be_reserved_is_refused_with_the_reason_and_nothing_is_held() -> None:
    rig = Rig()
    seq = rig.req()
    rig.news()
    rig.machine.not_bound(NO_PORTS)
    error = rig.answer_to(seq)
    assert (error.code, error.msg) == ("no-ports", "0 ports are free")
    assert rig.state == "Released"
    assert rig.core.last_error is not None
    assert rig.core.last_error.code == "no-ports"
    assert rig.answer_to(rig.req()).code == "no-ports", "the answer may have been lost"
    assert rig.answer_to(rig.rel()).state == "Released"


def test_an_equal_request_is_answered_with_the_state_and_again_when_it_is_done() -> None:
    rig = Rig()
    first = rig.req()
    second = rig.req()
    interim = rig.answer_to(second)
    assert (interim.state, interim.listeners, interim.boot) == ("Reserving", None, BOOT)
    rig.bound()
    finals = [call[1] for call in rig.news() if call[0] == "answer"]
    assert [(final.seq, final.state) for final in finals] == [(first, "Reserved"), (second, "Reserved")]


@pytest.mark.parametrize("state", ["Reserved", "Updating", "Forwarding"])
def test_an_equal_request_is_answered_with_what_was_reserved(state: str) -> None:
    rig = Rig().to(state)
    resp = rig.answer_to(rig.req(expires=1.0))
    assert (resp.state, resp.listeners, resp.csr, resp.boot) == (state, LISTENERS, "<csr>", BOOT)


@pytest.mark.parametrize("state", LIVE)
@pytest.mark.parametrize(
    "changes",
    [{"channels": [0]}, {"rate": 1.0}, {"app_from": ["127.0.0.1"]}, {"listen_ports": [5075, 5076]}],
    ids=str,
)
def test_a_request_with_other_fields_is_refused_while_the_stream_lives(state: str, changes: dict[str, Any]) -> None:
    rig = Rig().to(state)
    assert rig.answer_to(rig.req(**changes)).code == "uid-in-use"


@pytest.mark.parametrize("state", ["Releasing", "Released"])
def test_a_request_for_a_stream_that_is_over_is_refused(state: str) -> None:
    rig = Rig().to(state)
    error = rig.answer_to(rig.req())
    assert error.code == "wrong-state"
    assert f"is {state}; that allows REL only" in error.msg


# -- UpdateTargets


def test_targets_are_armed_and_then_answered() -> None:
    rig = Rig().to("Reserved")
    seq = rig.update(generation=3)
    assert rig.news() == [("arm", rig.command(3))]
    assert rig.core.generation == 0, "they are not in force yet"
    rig.machine.armed([])
    resp = rig.answer_to(seq)
    assert (resp.state, resp.msg, resp.boot) == ("Forwarding", "generation 3 is in force", BOOT)
    assert rig.core.generation == 3


@pytest.mark.parametrize(("before", "generation"), [("Reserved", 0), ("Forwarding", 1)])
def test_refused_targets_leave_those_in_force_that_were(before: str, generation: int) -> None:
    rig = Rig().to("Updating", before_update=before)
    current = rig.core.current
    seq = rig.update(generation=rig.update_under_way.generation if rig.update_under_way else None)
    rig.news()
    rig.machine.not_armed(REFUSED)
    news = rig.news()
    assert set(kinds(news)) == {"answer"}, "nothing is closed"
    error = next(call[1] for call in news if call[1].seq == seq)
    assert (error.code, error.msg) == ("target-refused", "outside app_networks")
    assert rig.core.current == current
    assert rig.core.generation == generation
    assert rig.core.last_error is None
    rig.update()
    assert rig.state == "Updating", "a refused generation may be used again"


def test_another_failure_while_arming_closes_everything() -> None:
    rig = Rig().to("Reserved")
    seq = rig.update()
    rig.news()
    rig.machine.not_armed(BROKEN)
    news = rig.news()
    assert kinds(news) == ["answer", "stop timer", "close"]
    assert (news[0][1].seq, news[0][1].code) == (seq, "gateway-failed")
    assert rig.core.last_error is not None


def test_a_generation_below_the_one_in_force_is_refused_and_that_one_named() -> None:
    rig = Rig().to("Reserved")
    rig.update(generation=5)
    rig.machine.armed([])
    rig.news()
    for wrong in ({"generation": 4}, {"generation": 5, "key": "x"}, {"generation": 5, "target": "10.0.0.9:1"}):
        error = rig.answer_to(rig.update(**wrong))
        assert error.code == "wrong-state"
        assert "5, which is in force" in error.msg
    assert rig.answer_to(rig.update(generation=5)).msg == "generation 5 is in force"
    assert rig.state == "Forwarding"
    rig.update(generation=6)
    assert rig.state == "Updating"


def test_an_update_in_progress_may_be_repeated_and_all_callers_are_answered() -> None:
    rig = Rig().to("Reserved")
    first = rig.update(generation=2)
    second = rig.update(generation=2)
    assert rig.answer_to(second).state == "Updating"
    rig.machine.armed([])
    finals = [call[1] for call in rig.news() if call[0] == "answer"]
    assert [(final.seq, final.state) for final in finals] == [(first, "Forwarding"), (second, "Forwarding")]


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_another_update_meanwhile_is_refused_and_the_generation_under_way_named(generation: int) -> None:
    rig = Rig().to("Reserved")
    rig.update(generation=2)
    rig.news()
    error = rig.answer_to(rig.update(generation=generation, key="other"))
    assert error.code == "wrong-state"
    assert f"generation {generation} while 2 is being carried out" in error.msg


@pytest.mark.parametrize("state", ["Idle", "Reserving", "Releasing", "Released"])
def test_targets_too_early_or_too_late_are_refused_with_what_the_state_allows(state: str) -> None:
    rig = Rig().to(state)
    error = rig.answer_to(rig.update())
    assert error.code == "wrong-state"
    assert f"is {state}; that allows" in error.msg


# -- the end


@pytest.mark.parametrize("state", LIVE)
def test_rel_closes_everything_and_is_answered_when_that_is_done(state: str) -> None:
    rig = Rig().to(state)
    seq = rig.rel()
    news = rig.news()
    assert kinds(news)[-2:] == ["stop timer", "close"]
    waiting = [call[1] for call in news if call[0] == "answer"]
    assert [message.code for message in waiting] == (["wrong-state"] if state in ("Reserving", "Updating") else [])
    rig.machine.closed([])
    resp = rig.answer_to(seq)
    assert (resp.state, resp.listeners, resp.boot) == ("Released", None, BOOT)
    assert rig.core.last_error is None


def test_rel_in_releasing_is_answered_with_the_state_and_again_when_it_is_done() -> None:
    rig = Rig().to("Forwarding")
    first = rig.rel()
    rig.news()
    second = rig.rel()
    assert rig.answer_to(second).state == "Releasing"
    rig.machine.closed([])
    finals = [call[1] for call in rig.news()]
    assert [(final.seq, final.state) for final in finals] == [(first, "Released"), (second, "Released")]


def test_rel_of_a_stream_that_is_gone_gets_the_same_answer_as_the_first() -> None:
    rig = Rig().to("Forwarding")
    first = rig.rel()
    rig.machine.closed([])
    said = rig.answer_to(first)
    for _ in range(3):
        again = rig.rel()
        assert rig.answer_to(again) == msgspec.structs.replace(said, seq=again)


def test_the_answer_to_rel_has_the_last_figures_however_the_stream_ended() -> None:
    last = [ChannelFigures(channel=0, bytes_to_consumer=5, accepted=1)]
    rig = Rig().to("Forwarding")
    seq = rig.rel()
    again = rig.rel()
    assert rig.answer_to(again).figures is None, "it is still being closed"
    rig.machine.closed(last)
    assert rig.answer_to(seq).figures == last
    expired = Rig().to("Forwarding")
    expired.machine.expired()
    expired.machine.closed(last)
    for _ in range(2):
        assert expired.answer_to(expired.rel()).figures == last


def test_rel_of_a_stream_that_was_never_reserved_is_unknown_and_its_request_comes_too_late() -> None:
    rig = Rig()
    assert rig.answer_to(rig.rel()).code == "unknown-uid"
    assert rig.answer_to(rig.req()).code == "wrong-state"


@pytest.mark.parametrize("state", LIVE)
def test_an_expired_stream_closes_everything_by_itself(state: str) -> None:
    rig = Rig().to(state)
    rig.machine.expired()
    news = rig.news()
    assert kinds(news)[-2:] == ["stop timer", "close"]
    waiting = [call[1] for call in news if call[0] == "answer"]
    assert [message.code for message in waiting] == (["expired"] if state in ("Reserving", "Updating") else [])
    rig.machine.closed([])
    assert rig.news() == []
    assert rig.state == "Released"
    assert rig.core.last_error is not None
    assert rig.core.last_error.code == "expired"


@pytest.mark.parametrize("late", ["armed", "bound"])
def test_an_effect_that_ends_after_the_release_does_not_bring_the_stream_back(late: str) -> None:
    rig = Rig().to("Reserving" if late == "bound" else "Updating")
    rig.rel()
    rig.bound() if late == "bound" else rig.machine.armed([])
    assert rig.state == "Releasing"
    rig.machine.closed([])
    assert rig.answer_to(rig.rel()).listeners is None


# -- who dials


def test_where_the_producers_gateways_dial_is_part_of_every_answer_and_of_what_is_compared() -> None:
    rig = Rig().to("Reserved")
    seq = rig.update(generation=1)
    rig.machine.armed(["dtn1.example:5108", "dtn1.example:5109"])
    assert rig.answer_to(seq).wan_listeners == ["dtn1.example:5108", "dtn1.example:5109"]
    assert rig.answer_to(rig.req()).wan_listeners == ["dtn1.example:5108", "dtn1.example:5109"]
    dialling = {"wan_dialer": PROD, "wan_targets": {LISTENERS[0]: "192.0.2.9:5100"}}
    same_number = msgspec.structs.replace(rig.command(1), **dialling)
    caller = rig.caller()
    rig.machine.update_targets(caller, same_number)
    assert rig.answer_to(caller.seq).code == "wrong-state"
    caller = rig.caller()
    rig.machine.update_targets(caller, msgspec.structs.replace(same_number, generation=2))
    refused = rig.answer_to(caller.seq)
    assert (refused.code, rig.state, rig.core.generation) == ("bad-message", "Forwarding", 1)
    rig.rel()
    rig.machine.closed([])
    assert rig.core.wan_listeners == []
