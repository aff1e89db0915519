"""The machine of a stream at S2UC: against its table, and what it does at each step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from state_tables import inputs_of, tables_of

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, Rel, Req, Resp, Role, UpdateTargets
from scistream.s2uc import machine as s2uc
from scistream.s2uc.machine import Core, Effects, Operation, Stream, new_stream, remembered_stream
from scistream.state_machines import data_of, state_of
from support import machine_rig
from support.machine_rig import Input, Recorder, always

[TABLE] = tables_of(s2uc.__doc__)
STATES = [state.name for state in s2uc.STATES]
LIVE = [state.name for state in s2uc.LIVE]
BOTH: tuple[Role, Role] = (PROD, CONS)
UID = "12345678-1234-4234-8234-123456789abc"
APP = ["10.0.0.9:7000"]
OTHER_APP = ["10.0.0.9:7001"]
NO_PORTS = StreamError("no-ports", "0 ports are free")
SILENT = StreamError("timeout", "s2cs.example:5000 did not answer REL in 30 s")
UNKNOWN = StreamError("unknown-uid", "never seen")


class Rig(machine_rig.Rig):
    """One stream of a user, and what its two sides say."""

    def __init__(self, *, reached: tuple[Role, ...] = BOTH) -> None:
        effects: Any = Recorder(Effects)
        self.core = Core(effects, UID)
        super().__init__(new_stream(self.core), effects, self.core)
        self._reached = reached

    def request(self) -> None:
        fields: dict[str, Any] = {"num_conn": 1, "rate": 100.0, "app_key_hash": "0" * 64}
        self.machine.request({role: Req(uid=UID, role=role, seq=1, **fields) for role in BOTH})
        for role in self._reached:
            self.machine.reached(role)

    def answers(self, *roles: Role, state: str = "", listeners: list[str] | None = None, csr: str = "<csr>") -> None:
        for role in roles or BOTH:
            given = [f"{role.lower()}.example:5100"] if listeners is None else listeners
            self.machine.side_answered(role, Resp(uid=UID, seq=1, state=state, msg="", listeners=given, csr=csr))

    def refuses(self, error: StreamError, *roles: Role) -> None:
        for role in roles or BOTH:
            self.machine.side_refused(role, error)

    def made(self) -> None:
        """Finish making the map and the credentials of the current generation."""
        self.machine.targets_made({role: self.update(role) for role in BOTH})

    def update(self, role: Role) -> UpdateTargets:
        return UpdateTargets(
            uid=UID,
            role=role,
            seq=1,
            generation=self.core.generation or 1,
            connection_map={f"{role.lower()}.example:5100": "10.0.0.9:7000"},
            data_conn_key="",
        )

    def to(self, state: str) -> Rig:
        """Bring it there by what others would do."""
        if state == "Idle":
            return self
        self.request()
        if state != "Reserving":
            self.answers()
        if state in ("Provisioning", "Updating", "Streaming"):
            self.machine.prod_lstn(APP)
        if state in ("Updating", "Streaming"):
            self.made()
        if state == "Streaming":
            self.answers()
        if state in ("Releasing", "Released"):
            self.machine.release()
        if state == "Released":
            self.answers()
        assert self.state == state
        self.news()
        return self

    def snapshot(self) -> Any:
        data = data_of(self.machine, Operation)
        fields = {**vars(self.core), **(vars(data) if data is not None else {})}
        return {
            name: copy.copy(value) if isinstance(value, set | dict | list) else value for name, value in fields.items()
        }


def asked(news: list[tuple[Any, ...]]) -> list[tuple[Role, type[Any]]]:
    return [(call[1], type(call[2])) for call in news if call[0] == "ask"]


# -- every input in every state


def while_live(name: str) -> Callable[[str], str]:
    return lambda state: name if state in LIVE else ""


INPUTS = [
    Input("request", lambda rig: rig.request(), always("request")),
    Input("reached", lambda rig: rig.machine.reached(CONS), always("")),
    Input("side_answered", lambda rig: rig.answers(), always("both RESP")),
    Input("side_answered", lambda rig: rig.answers(), always("both RESP (accepting first)")),
    Input("side_answered", lambda rig: rig.answers(PROD), always("")),
    Input("side_answered", lambda rig: rig.answers(CONS), always("")),
    Input("side_answered", lambda rig: rig.answers(PROD, PROD), always("")),
    Input(
        "side_answered",
        lambda rig: rig.answers(PROD, csr=""),
        lambda state: "any ERROR" if state == "Reserving" else "",
    ),
    Input(
        "side_answered",
        lambda rig: rig.answers(CONS, listeners=[]),
        lambda state: "any ERROR" if state == "Reserving" else "",
    ),
    Input("side_refused", lambda rig: rig.refuses(NO_PORTS, PROD), while_live("any ERROR")),
    Input("side_refused", lambda rig: rig.refuses(NO_PORTS, CONS), while_live("any ERROR")),
    Input("side_refused", lambda rig: rig.refuses(SILENT, CONS), while_live("give-up")),
    Input("prod_lstn", lambda rig: rig.machine.prod_lstn(OTHER_APP), always("ProdLstn")),
    Input(
        "targets_made",
        lambda rig: rig.made(),
        always("map and credentials made"),
    ),
    Input("failed", lambda rig: rig.machine.failed(NO_PORTS), while_live("any ERROR")),
    Input("release", lambda rig: rig.machine.release(), always("release")),
]
PRIVATE: list[tuple[str, Callable[[Rig], Any], dict[str, str]]] = [
    ("_both_reserved", lambda rig: rig.machine._both_reserved(), {"Reserving": "Reserved"}),
    (
        "_provision",
        lambda rig: rig.machine._provision(),
        dict.fromkeys(("Reserved", "Updating", "Streaming"), "Provisioning"),
    ),
    ("_both_updated", lambda rig: rig.machine._both_updated(), {"Updating": "Streaming"}),
    ("_both_released", lambda rig: rig.machine._both_released(), {"Releasing": "Released"}),
]

EVERY_STATE = pytest.mark.parametrize("state", STATES)


def test_the_table_names_every_state_and_these_tests_every_input() -> None:
    assert TABLE.states == set(STATES)
    assert {one.name for one in INPUTS} | {name for name, _, _ in PRIVATE} == inputs_of(Stream)
    tried = {(state, one.called(state)) for state in STATES for one in INPUTS}
    assert tried >= TABLE.inputs


@EVERY_STATE
@pytest.mark.parametrize("given", INPUTS, ids=[f"{number}-{one.name}" for number, one in enumerate(INPUTS)])
def test_every_input_leads_from_every_state_where_the_table_says(state: str, given: Input) -> None:
    called = given.called(state)
    if given.name == "side_answered" and called.startswith("both") and (state, called) not in TABLE.inputs:
        called = "both RESP" if (state, "both RESP") in TABLE.inputs else "both RESP (accepting first)"
    rig = Rig().to(state)
    given.give(rig)
    assert rig.state == TABLE.next(state, called)


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


REPEATED: dict[str, Callable[[Rig], Any]] = {
    "request": lambda rig: rig.request(),
    "release": lambda rig: rig.machine.release(),
    "a ProdLstn": lambda rig: rig.machine.prod_lstn(OTHER_APP),
    "a link that comes up": lambda rig: rig.machine.reached(PROD),
    "a failure": lambda rig: rig.machine.failed(NO_PORTS),
    "an answer of the producer's side": lambda rig: rig.answers(PROD),
}


@EVERY_STATE
@pytest.mark.parametrize("give", REPEATED.values(), ids=REPEATED)
def test_what_is_repeated_changes_nothing(state: str, give: Callable[[Rig], Any]) -> None:
    rig = Rig().to(state)
    give(rig)
    once = rig.snapshot()
    rig.news()
    for _ in range(2):
        give(rig)
        assert rig.snapshot() == once
        assert rig.news() == []


# -- reserving


def test_both_sides_are_asked_at_once_and_the_user_is_told_when_both_have_reserved() -> None:
    rig = Rig()
    rig.request()
    assert asked(rig.news()) == [(PROD, Req), (CONS, Req)]
    rig.answers(CONS)
    assert rig.news() == []
    rig.answers(PROD)
    assert rig.news() == [("reserved",)]
    assert rig.state == "Reserved"


def test_listeners_of_prod_app_that_come_before_both_sides_have_reserved_are_used_after_it() -> None:
    rig = Rig().to("Reserving")
    rig.answers(PROD)
    rig.machine.prod_lstn(APP)
    assert (rig.state, rig.news()) == ("Reserving", [])
    rig.answers(CONS)
    assert rig.state == "Provisioning"
    assert rig.news() == [("reserved",), ("provision", 1)]


@pytest.mark.parametrize("other_has_answered", [False, True])
@pytest.mark.parametrize(("role", "side"), [(PROD, "producer side"), (CONS, "consumer side")])
def test_a_side_that_refuses_releases_both_and_is_named(role: Role, side: str, other_has_answered: bool) -> None:
    rig = Rig().to("Reserving")
    if other_has_answered:
        rig.answers(CONS if role == PROD else PROD)
    rig.refuses(NO_PORTS, role)
    assert sorted(asked(rig.news())) == sorted([(CONS, Rel), (PROD, Rel)])
    rig.answers(PROD)
    assert rig.news() == []
    rig.answers(CONS)
    assert rig.news() == [("ended",)]
    assert rig.core.error is not None
    assert (rig.core.error.code, rig.core.error.msg) == ("no-ports", f"{side}: 0 ports are free")
    assert rig.core.not_released == {}


@pytest.mark.parametrize("wrong", [{"listeners": []}, {"csr": ""}], ids=str)
def test_a_side_that_answers_without_listeners_or_csr_has_failed(wrong: dict[str, Any]) -> None:
    rig = Rig().to("Reserving")
    rig.answers(CONS, **wrong)
    assert rig.state == "Releasing"
    assert rig.core.error is not None
    assert "CONS side answered REQ without listeners or csr" in rig.core.error.msg


# -- a side that was never reached


@pytest.mark.parametrize(("reached", "unreached"), [(PROD, CONS), (CONS, PROD)])
def test_a_side_that_was_never_reached_is_not_asked_to_release_and_its_request_is_forgotten(
    reached: Role, unreached: Role
) -> None:
    rig = Rig(reached=(reached,)).to("Reserving")
    rig.refuses(NO_PORTS, reached)
    news = rig.news()
    assert asked(news) == [(reached, Rel)]
    assert ("forget", unreached) in news, "or it would be sent when the link comes up at last"
    rig.answers(reached)
    assert rig.state == "Released"
    assert rig.core.not_released == {}


def test_if_no_side_was_reached_the_stream_is_over_at_once() -> None:
    rig = Rig(reached=()).to("Reserving")
    rig.machine.release()
    assert rig.state == "Released"
    assert rig.news() == [("forget", CONS), ("forget", PROD), ("ended",)]


def test_a_side_that_is_reached_during_the_release_need_not_confirm() -> None:
    rig = Rig(reached=(PROD,)).to("Reserving")
    rig.refuses(NO_PORTS, PROD)
    rig.machine.reached(CONS)
    rig.answers(PROD)
    assert rig.state == "Released"


# -- generations


def test_the_producer_is_updated_before_the_consumer() -> None:
    rig = Rig().to("Provisioning")
    rig.made()
    assert asked(rig.news()) == [(PROD, UpdateTargets)]
    rig.answers(CONS)
    assert rig.state == "Updating", "the consumer has not even been asked"
    assert rig.news() == []
    rig.answers(PROD)
    assert asked(rig.news()) == [(CONS, UpdateTargets)]
    assert rig.state == "Updating"
    rig.answers(CONS)
    assert rig.news() == [("streaming",)]
    assert rig.state == "Streaming"


def test_an_answer_of_the_producer_that_comes_twice_is_no_answer_of_the_consumer() -> None:
    rig = Rig().to("Updating")
    rig.answers(PROD, PROD, PROD)
    assert rig.state == "Updating"
    assert asked(rig.news()) == [(CONS, UpdateTargets)]


def test_new_listeners_of_prod_app_lead_to_the_next_generation() -> None:
    rig = Rig().to("Streaming")
    rig.machine.prod_lstn(OTHER_APP)
    assert rig.news() == [("provision", 2)]
    rig.made()
    [(_, role, command)] = rig.news()
    assert (role, command.generation) == (PROD, 2)
    rig.answers()
    assert rig.state == "Streaming"
    assert rig.core.generation == 2


def test_listeners_that_are_known_lead_to_nothing() -> None:
    rig = Rig().to("Streaming")
    rig.machine.prod_lstn(list(APP))
    assert (rig.state, rig.news()) == ("Streaming", [])


@pytest.mark.parametrize("state", ["Provisioning", "Updating"])
def test_new_listeners_in_the_middle_of_a_generation_lead_to_one_after_it(state: str) -> None:
    rig = Rig().to(state)
    rig.machine.prod_lstn(["10.0.0.9:1"])
    rig.machine.prod_lstn(OTHER_APP)
    assert (rig.state, rig.news()) == (state, [])
    if state == "Provisioning":
        rig.made()
    rig.answers()
    assert rig.state == "Provisioning"
    assert [call[0] for call in rig.news() if call[0] != "ask"] == ["streaming", "provision"]
    assert (rig.core.generation, rig.core.provisioned_for) == (2, OTHER_APP)


def test_listeners_that_change_back_in_the_middle_of_a_generation_lead_to_nothing() -> None:
    rig = Rig().to("Updating")
    rig.machine.prod_lstn(OTHER_APP)
    rig.machine.prod_lstn(APP)
    rig.answers()
    assert rig.state == "Streaming"


@pytest.mark.parametrize("role", BOTH)
def test_a_side_that_refuses_its_targets_releases_both(role: Role) -> None:
    rig = Rig().to("Updating")
    if role == CONS:
        rig.answers(PROD)
    rig.news()
    rig.refuses(StreamError("target-refused", "outside app_networks"), role)
    assert sorted(asked(rig.news())) == [(CONS, Rel), (PROD, Rel)]
    assert rig.core.error is not None
    assert rig.core.error.code == "target-refused"


def test_credentials_that_cannot_be_made_release_both() -> None:
    rig = Rig().to("Provisioning")
    rig.machine.failed(StreamError("gateway-failed", "csr 2 cannot be read"))
    assert rig.state == "Releasing"
    rig.made()
    assert rig.state == "Releasing"
    assert sorted(asked(rig.news())) == [(CONS, Rel), (PROD, Rel)]


# -- the end


@pytest.mark.parametrize("state", LIVE)
def test_a_release_by_the_user_is_no_error(state: str) -> None:
    rig = Rig().to(state)
    rig.machine.release()
    assert sorted(asked(rig.news())) == [(CONS, Rel), (PROD, Rel)]
    rig.answers()
    assert rig.news() == [("ended",)]
    assert rig.core.error is None
    assert rig.core.not_released == {}


@pytest.mark.parametrize("roles", [(PROD,), (CONS,), BOTH], ids=str)
def test_sides_that_do_not_confirm_the_release_are_named(roles: tuple[Role, ...]) -> None:
    rig = Rig().to("Streaming")
    rig.machine.release()
    for role in BOTH:
        rig.refuses(SILENT, role) if role in roles else rig.answers(role)
    assert rig.state == "Released"
    assert rig.core.not_released == dict.fromkeys(roles, SILENT)
    assert rig.core.error is None


def test_a_side_that_never_heard_of_the_stream_has_released_it() -> None:
    rig = Rig().to("Releasing")
    rig.refuses(UNKNOWN)
    assert rig.state == "Released"
    assert rig.core.not_released == {}


def test_the_first_error_is_the_one_that_is_told() -> None:
    rig = Rig().to("Streaming")
    rig.machine.failed(NO_PORTS)
    rig.machine.failed(SILENT)
    rig.refuses(SILENT)
    assert rig.core.error is NO_PORTS
    assert rig.core.not_released == {PROD: SILENT, CONS: SILENT}


def test_a_stream_that_was_never_asked_for_is_released_without_asking_anybody() -> None:
    rig = Rig()
    rig.machine.release()
    assert rig.news() == [("ended",)]
    rig.request()
    assert (rig.state, rig.news()) == ("Released", [])


def test_a_remembered_stream_can_be_released() -> None:
    effects: Any = Recorder(Effects)
    core = Core(effects, UID, reached={PROD, CONS})
    machine = remembered_stream(core)
    assert state_of(machine) == core.state == "Streaming"
    machine.release()
    assert sorted(asked(effects.calls)) == [(CONS, Rel), (PROD, Rel)]


IN_USE = StreamError("uid-in-use", "that uid is taken")


def test_a_live_stream_of_the_same_uid_is_not_released_by_asking_for_it_again() -> None:
    rig = Rig().to("Reserving")
    rig.refuses(IN_USE, PROD)
    assert (rig.state, asked(rig.news())) == ("Reserving", []), "the other side may say the same"
    rig.refuses(IN_USE, CONS)
    assert rig.state == "Released"
    assert asked(rig.news()) == []
    assert rig.core.error is not None
    assert rig.core.error.code == "uid-in-use"


def test_where_only_one_side_knows_the_uid_the_other_is_released() -> None:
    rig = Rig().to("Reserving")
    rig.refuses(IN_USE, PROD)
    rig.answers(CONS)
    assert asked(rig.news()) == [(CONS, Rel)]
    rig.answers(CONS)
    assert rig.state == "Released"


def test_targets_that_a_new_hello_has_outdated_are_made_again() -> None:
    rig = Rig().to("Updating")
    rig.machine.prod_lstn(["10.0.0.9:7001"])
    rig.refuses(StreamError("target-refused", "not among the addresses of the Hello"), PROD)
    assert (rig.state, rig.core.generation) == ("Provisioning", 2)
    assert rig.core.provisioned_for == ["10.0.0.9:7001"]


def test_targets_that_are_refused_though_they_are_the_latest_end_the_stream() -> None:
    rig = Rig().to("Updating")
    rig.refuses(StreamError("target-refused", "outside the app_networks"), PROD)
    assert rig.state == "Releasing"
