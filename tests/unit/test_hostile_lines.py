"""Every party behind a link in memory, and a far side that says anything: random lines, mutated ones, odd times.

What must hold whatever is said is in `hostile_parties`: nothing raises, nobody else's stream changes, ports and
capacity are those of live streams, what comes back is bounded, and eight bad lines are the last.
"""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scistream.links.link import MAX_BAD_LINES
from scistream.protocol.messages import Error, Message, Rel, ReqListeners, Resp, Status
from support.hostile_parties import (
    BOOT,
    CONS,
    KEY,
    OTHER_UID,
    PROD,
    SCRIPTS,
    THIRD_UID,
    UID,
    ApplicationAtControlServer,
    Applications,
    DataServerParty,
    GatewayAtControlServer,
    Party,
    UserAtControlServer,
    UserClient,
)
from support.hostile_scripts import mutate
from support.memory_network import HOST

KINDS = list(SCRIPTS)
AnyParty = TypeVar("AnyParty", bound=Party)
AnyMessage = TypeVar("AnyMessage", bound=Message)


@pytest.fixture(autouse=True)
def _nothing_of_other_tests() -> None:
    """Collect what earlier tests have left.

    A failure that nobody handled is logged when its Deferred is collected, and a party here would count it as its own.
    """
    gc.collect()


@contextmanager
def party(kind: type[AnyParty]) -> Iterator[AnyParty]:
    with tempfile.TemporaryDirectory() as folder:
        one = kind(Path(folder))
        try:
            yield one
            one.check()
        finally:
            one.close()


def states(one: Party) -> set[str]:
    """Return the states that the party has reported of streams."""
    return {message.state for end in one.ends() for message in end.messages if isinstance(message, Resp)}


# -- the control: who means well is served


def test_a_legitimate_user_and_controller_are_served() -> None:
    with party(UserAtControlServer) as server:
        server.hear(SCRIPTS[UserAtControlServer][0])
        assert states(server) >= {"Listening", "Streaming", "Released"}
    with party(DataServerParty) as gateway:
        gateway.hear(SCRIPTS[DataServerParty][0])
        assert states(gateway) >= {"Reserved", "Forwarding", "Released"}


def test_an_s2cs_takes_what_a_gateway_says_of_the_streams_that_are_on_it() -> None:
    with party(GatewayAtControlServer) as server:
        server.hear(SCRIPTS[GatewayAtControlServer][0])
        assert states(server) >= {"Listening", "Streaming", "Released"}
        assert (UID, PROD) not in server.server.streams, "it is over"
        told = server.server.store._db.execute(
            "SELECT bytes_to_consumer, bytes_to_producer FROM heard WHERE uid = ?", (UID,)
        )
        assert told.fetchall() == [(9, 8)]


def test_applications_and_a_user_who_are_answered_correctly_succeed() -> None:
    with party(ApplicationAtControlServer) as server:
        server.hear(SCRIPTS[ApplicationAtControlServer][0])
        assert states(server) >= {"Ready"}
    with party(Applications) as applications:
        for script in SCRIPTS[Applications][:2]:
            applications.hear(script[:2])
        assert [program.args[0] for program in applications.network.programs] == ["detector", "analyse"]
    with party(UserClient) as client:
        client.hear(SCRIPTS[UserClient][0][:5])
        assert client.stream.state == "Streaming"


# -- whatever is said


lines = st.binary(max_size=60).filter(lambda line: b"\n" not in line)


def scripts_from(kind: type[Party]) -> st.SearchStrategy[list[bytes]]:
    """Mutations of what a far side says that means well."""
    meant_well = [line for script in SCRIPTS[kind] for line in script]

    def mutated(script: list[bytes], times: int, chance: Random) -> list[bytes]:
        spoilt = list(script)
        for _ in range(times):
            mutate(spoilt, chance, meant_well)
        return [line.replace(b"\n", b"") for line in spoilt]

    return st.builds(mutated, st.sampled_from(SCRIPTS[kind]), st.integers(1, 4), st.randoms())


@settings(max_examples=120)
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_mutated_lines_break_no_promise(kind: type[Party], data: st.DataObject) -> None:
    with party(kind) as one:
        one.hear(data.draw(scripts_from(kind)))


@settings(max_examples=60)
@given(kind=st.sampled_from(KINDS), said=st.lists(lines, max_size=12))
def test_random_lines_break_no_promise(kind: type[Party], said: list[bytes]) -> None:
    with party(kind) as one:
        one.hear(said)


@pytest.mark.parametrize("kind", KINDS)
def test_the_eighth_bad_line_is_the_last_and_what_comes_with_it_does_nothing(kind: type[Party]) -> None:
    good = SCRIPTS[kind][0][0]
    with party(kind) as one:
        link = one.far(0)
        assert link is not None
        for number in range(MAX_BAD_LINES - 1):
            one.say(b"bad line %d" % number)
        assert not link.closed
        answered = len(link.messages)
        link.transport.write(b"bad\n" + good + b"\n" + good + b"\n")
        one.network.run(0.1)
        assert link.closed
        assert len(link.messages) == answered + 1, "the last answer is the one to the bad line"
        assert not states(one)


# -- what hostile lines have shown


def answer(**fields: Any) -> bytes:
    return json.dumps({"cmd": "RESP", "uid": UID, "seq": 1, "state": "Listening", "msg": "", **fields}).encode()


def reserved(role: str, listener: str) -> bytes:
    return (b"C" if role == CONS else b"") + answer(listeners=[listener], csr=f"$CSR-{role}")


def test_listeners_of_a_facility_that_are_no_addresses_are_a_bad_message() -> None:
    with party(UserClient) as client:
        client.hear([reserved(PROD, "nonsense"), reserved(CONS, f"{HOST}:60010")])
        assert client.stream.state == "Reserving"
        client.hear([reserved(PROD, f"{HOST}:50010")])
        assert client.stream.state == "Reserved"


def of_earlier(role: str, state: str, app: str = f"{HOST}:7000", **more: Any) -> dict[str, Any]:
    listener = f"{HOST}:{50010 if role == PROD else 60010}"
    known = {"uid": OTHER_UID, "role": role, "state": state, "listeners": [listener], "csr": f"$CSR-{role}"}
    return {**known, "seconds_left": 3600.0, "app_listeners": [app] if role == PROD else [], **more}


def attached(client: UserClient, prod: list[dict[str, Any]], cons: list[dict[str, Any]]) -> None:
    client.hear([answer(seq="$SEQ", streams=prod), b"C" + answer(seq="$SEQ", streams=cons)])


def test_a_stream_is_attached_to_by_what_each_facility_says_of_its_own_side() -> None:
    with party(UserClient) as client:
        attached(client, [of_earlier(PROD, "Ready")], [of_earlier(CONS, "Listening")])
        assert client.earlier.state == "Updating"
        assert client.earlier.connection_map[f"{HOST}:50010"] == f"{HOST}:7000"


def test_a_facility_has_no_say_in_the_side_of_another() -> None:
    forged = of_earlier(PROD, "Ready", app=f"{HOST}:6666", csr="$CSR-CONS", listeners=[f"{HOST}:6667"])
    with party(UserClient) as client:
        attached(client, [of_earlier(PROD, "Ready")], [of_earlier(CONS, "Listening"), forged])
        assert client.earlier.state == "Updating"
        assert client.earlier.connection_map == {f"{HOST}:60010": f"{HOST}:50010", f"{HOST}:50010": f"{HOST}:7000"}


@pytest.mark.parametrize("odd", [{"seconds_left": 1e308}, {"seconds_left": -1e308}])
def test_extreme_numbers_of_a_facility_do_not_upset_a_user(odd: dict[str, Any]) -> None:
    with party(UserClient) as client:
        attached(client, [of_earlier(PROD, "Ready", **odd)], [of_earlier(CONS, "Listening", **odd)])
        assert client.earlier.state == "Updating"


def test_the_highest_generation_of_all_has_none_after_it_and_the_stream_is_released() -> None:
    with party(UserClient) as client:
        last = {"generation": 2**53}
        attached(client, [of_earlier(PROD, "Ready", **last)], [of_earlier(CONS, "Listening", **last)])
        assert client.earlier.state == "Releasing"
        for prefix in (b"", b"C"):
            client.hear([prefix + answer(seq="$SEQ", state="Released")])
        assert client.earlier.state == "Released"
        assert "which is the last one" in str(client.earlier._effects.core.error)


@pytest.mark.parametrize("odd", [{"generation": 2**64}, {"generation": -1}, {"app_listeners": ["nonsense"]}])
def test_what_no_facility_can_mean_is_a_bad_message(odd: dict[str, Any]) -> None:
    with party(UserClient) as client:
        before = client.earlier.state
        attached(client, [of_earlier(PROD, "Ready", **odd)], [of_earlier(CONS, "Listening")])
        assert client.earlier.state == before


@pytest.mark.parametrize("rate", [5e-324, 1e-7])
def test_a_rate_of_next_to_nothing_is_a_bad_message(rate: float) -> None:
    with party(UserAtControlServer) as server:
        request = json.loads(SCRIPTS[UserAtControlServer][0][0])
        server.hear([json.dumps({**request, "rate": rate, "num_conn": 2}).encode()])
        (refusal,) = server.ends()[0].messages
        assert isinstance(refusal, Error)
        assert refusal.code == "bad-message"
        assert "rate" in refusal.msg


def test_a_user_who_requests_the_other_role_of_a_uid_has_a_stream_of_their_own_until_it_is_over() -> None:
    with party(UserAtControlServer) as server:
        request = {**json.loads(SCRIPTS[UserAtControlServer][0][0]), "uid": OTHER_UID, "role": CONS}
        server.hear([json.dumps({**request, "expires": 50.0, "hello_timeout": 20.0}).encode()])
        assert states(server) == {"Listening"}
        server.hear([b"!25"])
        assert (OTHER_UID, CONS) not in server.server.streams
        assert (OTHER_UID, PROD) in server.server.streams, "that is ada's"


# -- what a false gateway has shown


def page(*uids: str, more: str | None = None, figures: int = 7, **room: Any) -> bytes:
    """Return an answer to Status for all streams."""
    carried = [{"channel": channel, "bytes_to_consumer": figures} for channel in (0, 1, 900)]
    streams = [{"uid": uid, "role": PROD, "state": "Forwarding", "figures": carried} for uid in uids]
    return answer(
        uid=None,
        seq="$SEQ",
        state="",
        boot=BOOT,
        room={"ports": 100, "rate": 5000.0, **room},
        streams=streams,
        more=more,
    )


def numbered(count: int) -> list[str]:
    return [f"{number:08x}-4321-4234-8234-cba987654321" for number in range(count)]


def said(server: GatewayAtControlServer, kind: type[AnyMessage]) -> list[AnyMessage]:
    """Return what the S2CS has sent to its false gateway."""
    return [message for message in server._far[0].ends[-1].messages if isinstance(message, kind)]


def test_a_gateway_has_no_say_in_what_streams_on_another_one_have_carried() -> None:
    with party(GatewayAtControlServer) as server:
        server.hear([page(OTHER_UID, THIRD_UID), b"!15", page(OTHER_UID)])
        adas = server.server.streams[OTHER_UID, PROD]
        assert server.server.ledger.usage_today(adas.record.owner) == 0
        assert server.false.figures == {}
        assert server.false.room is not None


def test_a_stream_has_the_figures_of_its_own_channels_alone() -> None:
    with party(GatewayAtControlServer) as server:
        server.hear([*SCRIPTS[GatewayAtControlServer][0][:6], b"!15", page(UID)])
        assert [one.channel for one in server.server.streams[UID, PROD].status().figures] == [0]


def test_pages_that_never_end_are_ignored_and_a_gateway_that_gives_them_gets_no_stream() -> None:
    with party(GatewayAtControlServer) as server:
        server.hear([page()])
        assert server.false.room is not None
        endless = page(*numbered(1), more="5/PROD")
        server.hear([b"!15", *[endless] * 30])
        assert server.false.room is None
        assert [one.after for one in said(server, Status) if one.after] == ["5/PROD"], (
            "no page after one that cannot be"
        )
        server.hear([b"!15", page()])
        assert server.false.room is not None, "it has come to reason"


@pytest.mark.parametrize("odd", [{"more": "x" * 65}, {"uids": numbered(21)}, {"more": ""}])
def test_a_page_that_was_not_asked_for_like_this_is_ignored(odd: dict[str, Any]) -> None:
    uids = odd.pop("uids", [])
    with party(GatewayAtControlServer) as server:
        server.hear([page(*uids, **odd)])
        assert server.false.room is None
        assert not said(server, Rel)


def test_streams_that_nobody_knows_are_left_alone_and_counted_once_however_often_a_gateway_names_them() -> None:
    with party(GatewayAtControlServer) as server:
        server.hear([page(*numbered(3)), b"!15", page(*numbered(3))])
        assert set(server.false.unknown_streams) == {(uid, PROD) for uid in numbered(3)}
        assert not said(server, Rel)


def test_an_unknown_stream_is_released_once_at_the_operator_s_request_however_often_it_is_reported() -> None:
    with party(GatewayAtControlServer) as server:
        server.server._reports.release_unknown = True  # as at a start with --release-unknown
        server.false.is_compared = False
        ask, asked = server.false.dialer.ask, []

        def note(command: Any, timeout: float | None) -> Any:
            asked.append(command)
            return ask(command, timeout)

        server.false.dialer.ask = note
        server.hear([page(*numbered(3))])
        for _ in range(2):
            server.hear([b"!15"])
            latest = said(server, Status)[-1].seq  # and not that of a release that was said again
            server.hear([page(*numbered(3)).replace(b'"$SEQ"', b"%d" % latest)])
        assert [one.uid for one in asked if isinstance(one, Rel)] == numbered(3)
        released = answer(uid=numbered(1)[0], seq=said(server, Rel)[-3].seq, state="Released")
        server.hear([released, b"!15", page(*numbered(3))])
        assert {one.uid for one in said(server, Rel)} == set(numbered(3))


def test_room_without_end_is_room() -> None:
    with party(GatewayAtControlServer) as server:
        request = json.loads(SCRIPTS[GatewayAtControlServer][0][1].removeprefix(b"C"))
        server.hear([page(rate=1e308), b"C" + json.dumps({**request, "rate": 0.1}).encode()])
        assert len(said(server, ReqListeners)) == 1


# -- what else hostile lines have shown


def test_an_application_that_knows_the_key_of_the_other_side_changes_nothing() -> None:
    hello = {"cmd": "Hello", "uid": UID, "role": PROD, "seq": 1, "app_key": KEY, "listeners": [f"{HOST}:7000"]}
    with party(ApplicationAtControlServer) as server:
        server.hear([json.dumps(hello).encode()])
        assert server.ends()[0].closed
        assert server.server.streams[UID, CONS].record.state == "Listening"
