"""S2UC against S2CS that answer whatever they like: each command ends, in a sentence, and prints its own words."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

import click
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from scistream.config import ConfigError
from scistream.protocol.errors import StreamError
from scistream.s2uc import admin, commands, show
from scistream.s2uc.client import Client
from scistream.s2uc.history import RememberedStream, StreamHistory
from scistream.s2uc.options import OutputOptions, RequestOptions
from support.memory_network import HOST, MemoryNetwork

UID = "12345678-1234-4234-8234-123456789abc"
OTHER = "12345678-9999-4234-8234-123456789abc"
AT = {"prod": f"{HOST}:5000", "cons": f"{HOST}:6000"}
LONGEST = 600.0
"""Seconds after which any command has ended, however it is answered."""

Answers = Callable[[dict[str, Any]], list[bytes]]


class Hostile(LineOnlyReceiver):
    """A server that answers each line with what it was told to."""

    delimiter = b"\n"
    MAX_LENGTH = 1_000_000
    transport: Any

    def lineReceived(self, line: bytes) -> None:
        self.factory.heard += 1
        command = json.loads(line)
        for answer in self.factory.answers(command) if command["cmd"] != "ERROR" else ():
            self.transport.write(answer + b"\n")


class Servers(Factory):
    protocol = Hostile
    noisy = False

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.heard = 0


def run(answers: Answers, work: Callable[[Client], Coroutine[Any, Any, int]]) -> tuple[Any, Servers]:
    """How a command ends: its exit status, or the exception that it ends with."""
    network, servers = MemoryNetwork(), Servers(answers)
    network.listenTCP(5000, servers)
    network.listenTCP(6000, servers)
    client = Client(insecure=True, reactor=network)
    ended: list[Any] = []
    Deferred.fromCoroutine(work(client)).addBoth(ended.append)
    network.until(lambda: bool(ended), within=LONGEST)
    closed: list[Any] = []
    client.close().deferred.addBoth(closed.append)
    network.until(lambda: bool(closed), within=LONGEST)
    return (ended[0].value if isinstance(ended[0], Failure) else ended[0]), servers


def answer(command: dict[str, Any], **fields: Any) -> bytes:
    whole = {"cmd": "RESP", "uid": command["uid"], "seq": command["seq"], "state": "Listening", "msg": "", **fields}
    return json.dumps(whole).encode()


def side(**fields: Any) -> dict[str, Any]:
    return {"uid": UID, "role": "PROD", "state": "Streaming", "owner": "scistream:user:ada", **fields}


# -- a list without an end, and the like


def listing(client: Client) -> Coroutine[Any, Any, int]:
    return show.list_at(client, AT["prod"], False)


def test_a_list_that_goes_on_and_on_ends_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "MAX_LIST", 200_000)
    pages = iter(range(10**9))

    def endless(command: dict[str, Any]) -> list[bytes]:
        return [answer(command, streams=[side(label="x" * 150)] * 20, more=f"{next(pages):09}")]

    problem, servers = run(endless, listing)
    assert isinstance(problem, StreamError)
    assert "is not complete after" in problem.msg
    assert servers.heard < 100


@pytest.mark.parametrize("more", ["0", ""], ids=["goes round", "stands still"])
def test_a_list_that_does_not_go_on_ends_in_a_sentence(more: str) -> None:
    problem, servers = run(lambda command: [answer(command, streams=[side()], more=more)], listing)
    assert isinstance(problem, StreamError)
    assert "does not follow the page before" in problem.msg
    assert servers.heard == 2


def test_a_slow_list_ends_in_time() -> None:
    pages = iter(range(10**9))
    problem, servers = run(lambda command: [answer(command, streams=[], more=f"{next(pages):09}")], listing)
    assert isinstance(problem, StreamError)
    assert servers.heard == 1


def test_what_a_release_prints_is_the_uid_that_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    def false(command: dict[str, Any]) -> list[bytes]:
        return [answer(command, streams=[side(uid=OTHER), side(), *[side(role="CONS")] * 50])]

    status, servers = run(false, lambda client: commands.release_at(client, AT["prod"], UID))
    assert status == 0
    printed = capsys.readouterr().out
    assert printed.splitlines() == [f"released {UID} ({role}) of scistream:user:ada" for role in ("PROD", "CONS")]
    assert servers.heard == 3, "one look, and one release for each role"


@pytest.mark.parametrize("uid", ["", "  ", "1", "123"])
def test_a_stub_of_a_uid_is_refused_before_anything_is_done(uid: str) -> None:
    StreamHistory().add(RememberedStream(uid=UID, num_conn=1, rate=1.0, asked_at=0.0, expires_at=4e9, **AT))
    for work in (
        lambda client: commands.release_at(client, AT["prod"], uid),
        lambda client: commands.release_stream(client, uid),
        lambda client: commands.attach_stream(client, uid, OutputOptions()),
    ):
        problem, servers = run(lambda command: [answer(command, streams=[side()])], work)
        assert isinstance(problem, ConfigError)
        assert servers.heard == 0


# -- what a request is answered


def requesting(client: Client) -> Coroutine[Any, Any, int]:
    wishes = RequestOptions(AT["prod"], AT["cons"], 1, 100.0, 3600.0, UID, None)
    return commands.request_stream(client, wishes, OutputOptions(timeout=200.0))


def test_a_wrong_number_of_listeners_is_told_in_a_sentence() -> None:
    def two(command: dict[str, Any]) -> list[bytes]:
        if command["cmd"] == "REQ":
            return [answer(command, listeners=["10.0.0.1:1", "10.0.0.1:2"], csr="x")]
        return [answer(command, state="Released")]

    problem, _ = run(two, requesting)
    assert isinstance(problem, StreamError)
    assert problem.code == "gateway-failed"
    assert "granted 2 listeners for 1 channels" in problem.msg
    assert StreamHistory().all() == []


@pytest.mark.parametrize("interim", ["Reserving", "Releasing"])
def test_a_facility_that_is_always_at_work_is_not_waited_for_without_end(interim: str) -> None:
    network = MemoryNetwork()

    class Working(Hostile):
        def lineReceived(self, line: bytes) -> None:
            command = json.loads(line)
            if command["cmd"] == "REQ" and interim == "Releasing":
                self.transport.write(answer(command, listeners=["10.0.0.1:1"] * 2, csr="x") + b"\n")
            else:
                self.again(command)

        def again(self, command: dict[str, Any]) -> None:
            state = "Reserving" if command["cmd"] == "REQ" else "Releasing"
            self.transport.write(answer(command, state=state) + b"\n")
            network.callLater(1.0, self.again, command)

    listener = Servers(lambda _: [])
    listener.protocol = Working
    network.listenTCP(5000, listener)
    network.listenTCP(6000, listener)
    client = Client(insecure=True, reactor=network)
    ended: list[Any] = []
    client.request(uid=UID, rate=100.0, **AT).deferred.addBoth(ended.append)
    network.until(lambda: bool(ended), within=300.0)
    assert isinstance(ended[0].value, StreamError)


def test_interim_answers_do_not_go_beyond_the_user_s_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def working(command: dict[str, Any]) -> list[bytes]:
        return [answer(command, state="Reserving" if command["cmd"] == "REQ" else "Releasing")]

    network, servers = MemoryNetwork(), Servers(working)
    network.listenTCP(5000, servers)
    network.listenTCP(6000, servers)
    client = Client(insecure=True, reactor=network)
    wishes = RequestOptions(AT["prod"], AT["cons"], 1, 100.0, 3600.0, UID, None)
    ended: list[Any] = []
    work = commands.request_stream(client, wishes, OutputOptions(timeout=10.0))
    Deferred.fromCoroutine(work).addBoth(ended.append)
    network.until(lambda: bool(ended), within=16.0)
    assert ended[0].value.code == "timeout"
    assert "after 10 s" in ended[0].value.msg
    assert [known.uid for known in StreamHistory().all()] == [UID], "it may still be held, so it is not forgotten"


# -- anything


addresses = st.one_of(
    st.builds("10.0.0.{}:{}".format, st.integers(0, 3), st.integers(1, 3)),
    st.text(max_size=8),
)
words = st.one_of(
    st.text(max_size=20), st.sampled_from(["Reserving", "Updating", "Releasing", "Released", "Streaming"])
)
numbers = st.one_of(st.integers(-2, 5), st.floats(allow_nan=False, allow_infinity=False), st.just(2**62))
anything = st.one_of(
    st.none(), numbers, words, st.lists(addresses, max_size=3), st.dictionaries(words, words, max_size=2)
)
ERRORS = ["no-ports", "unknown-uid", "uid-in-use", "wrong-state", "timeout", "shutting-down", "not-authorized"]


@st.composite
def statuses(draw: st.DrawFn) -> dict[str, Any]:
    """Generate descriptions of a stream by a server: mostly well-formed, never meaningful."""
    fields: dict[str, Any] = {
        "uid": draw(st.sampled_from([UID, UID, OTHER])),
        "role": draw(st.sampled_from(["PROD", "CONS"])),
        "state": draw(words),
        "owner": draw(words),
        "label": draw(st.none() | words),
        "rate": draw(numbers),
        "channels": draw(st.lists(st.integers(0, 3), max_size=3)),
        "listeners": draw(st.lists(addresses, max_size=3)),
        "csr": draw(words),
        "app_listeners": draw(st.lists(addresses, max_size=3)),
        "generation": draw(st.integers(0, 2**40)),
        "connection_map": draw(st.dictionaries(addresses, addresses, max_size=2)),
        "figures": draw(
            st.lists(
                st.fixed_dictionaries(
                    {"channel": st.integers(0, 3)},
                    optional={"bytes_to_consumer": st.integers(0, 2**63 - 1), "rtt_ms": numbers, "waiting": numbers},
                ),
                max_size=3,
            )
        ),
        "gateways": draw(st.lists(words, max_size=2)),
        "seconds_left": draw(numbers),
        "last_error": draw(st.none() | st.fixed_dictionaries({"code": st.sampled_from(ERRORS), "msg": words})),
        "wrong_hellos": draw(st.integers(-5, 2**62)),
    }
    kept = draw(st.sets(st.sampled_from(sorted(fields))))
    shown = {name: value for name, value in fields.items() if name in ("uid", "role", "state") or name in kept}
    if draw(st.integers(0, 9)) == 0:
        shown[draw(st.sampled_from(sorted(fields)))] = draw(anything)
    return shown


@st.composite
def replies(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    kind = draw(st.sampled_from(["RESP", "RESP", "RESP", "ERROR", "event", "line", "nothing"]))
    if kind == "RESP":
        fields: dict[str, Any] = {
            "state": draw(words),
            "listeners": draw(st.none() | st.lists(addresses, max_size=3)),
            "csr": draw(st.none() | words),
            "streams": draw(st.none() | st.lists(statuses(), max_size=3)),
            "more": draw(st.none() | words),
            "warnings": draw(st.none() | st.lists(words, max_size=2)),
        }
        if draw(st.integers(0, 9)) == 0:
            fields[draw(st.sampled_from(sorted(fields)))] = draw(anything)
        return kind, fields
    if kind == "ERROR":
        return kind, {"code": draw(st.sampled_from(ERRORS)), "msg": draw(words)}
    if kind == "event":
        return kind, {"listeners": draw(st.lists(addresses, max_size=2))}
    return kind, {"text": draw(st.binary(max_size=20))}


def as_lines(command: dict[str, Any], reply: tuple[str, dict[str, Any]]) -> list[bytes]:
    kind, fields = reply
    if kind == "RESP":
        return [answer(command, **{name: value for name, value in fields.items() if value is not None})]
    if kind == "ERROR":
        return [json.dumps({"cmd": "ERROR", "uid": command["uid"], "seq": command["seq"], **fields}).encode()]
    if kind == "event":
        return [
            json.dumps({"cmd": "ProdLstn", "uid": UID, "role": "PROD", **fields}).encode(),
            answer(command, listeners=["10.0.0.1:1"], csr="x"),
        ]
    return [fields["text"].replace(b"\n", b"")] if kind == "line" else []


WORKS: dict[str, Callable[[Client], Coroutine[Any, Any, int]]] = {
    "request": requesting,
    "attach": lambda client: commands.attach_stream(client, UID, OutputOptions(timeout=60.0)),
    "attach without a time": lambda client: commands.attach_stream(client, UID, OutputOptions(timeout=200.0)),
    "wait": lambda client: commands.wait_for_stream(client, UID, 60.0),
    "status": lambda client: show.show_status(client, UID, False),
    "status at": lambda client: show.show_status_at(client, AT["prod"], UID, False),
    "list at": listing,
    "release": lambda client: commands.release_stream(client, UID),
    "release at": lambda client: commands.release_at(client, AT["prod"], UID[:8]),
}


@given(name=st.sampled_from(sorted(WORKS)), said=st.lists(replies(), min_size=1, max_size=6))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_answer_of_a_server_ends_a_command_in_a_sentence(
    name: str, said: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []
    monkeypatch.setattr(click, "echo", lambda message="", **_: printed.append(str(message)))
    StreamHistory().remove(UID)
    if name != "request":
        StreamHistory().add(RememberedStream(uid=UID, num_conn=1, rate=1.0, asked_at=0.0, expires_at=4e9, **AT))
    turn = iter(range(10**9))

    def say(command: dict[str, Any]) -> list[bytes]:
        return as_lines(command, said[next(turn) % len(said)])

    ended, servers = run(say, WORKS[name])
    assert ended in (0, 1) or isinstance(ended, StreamError | ConfigError | CancelledError), repr(ended)
    if isinstance(ended, StreamError | ConfigError):
        text = str(ended)
        assert text.isprintable()
        assert not any(part in text for part in ("zip()", "Traceback", "object at 0x", "list index"))
    assert servers.heard < 3000
    assert sum(map(len, printed)) < 100_000
    for line in printed:
        assert all(letter.isprintable() or letter in "\n\r\x1b" for letter in line)


@pytest.mark.parametrize("name", ["request", "release"])
def test_a_server_that_says_it_is_shutting_down_is_a_refusal_like_any_other(name: str) -> None:
    StreamHistory().remove(UID)
    if name != "request":
        StreamHistory().add(RememberedStream(uid=UID, num_conn=1, rate=1.0, asked_at=0.0, expires_at=4e9, **AT))
    problem, _ = run(lambda command: as_lines(command, ("ERROR", {"code": "shutting-down", "msg": "bye"})), WORKS[name])
    assert isinstance(problem, StreamError)
    assert "bye" in problem.msg


# -- news without end


def a_csr() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def test_a_facility_that_names_other_listeners_without_end_makes_few_generations() -> None:
    """Each generation costs keys here and a round of both facilities, and the other one has done nothing wrong."""
    csr, numbers, generations = a_csr(), iter(range(10**9)), set()

    def flood(command: dict[str, Any]) -> list[bytes]:
        if command["cmd"] == "REQ":
            lines = [answer(command, listeners=[f"10.0.0.1:{5100 if command['role'] == 'PROD' else 6100}"], csr=csr)]
        elif command["cmd"] == "UpdateTargets":
            generations.add(command["generation"])
            lines = [answer(command, state="Streaming")]
        else:
            lines = [answer(command, state="Released", streams=[])]
        if command["role"] != "PROD":
            return lines
        news = {"cmd": "ProdLstn", "uid": UID, "role": "PROD"}
        more = [{**news, "listeners": [f"10.0.0.2:{next(numbers) % 60000 + 1}"]} for _ in range(50)]
        return lines + [json.dumps(one).encode() for one in more]

    network, servers = MemoryNetwork(), Servers(flood)
    network.listenTCP(5000, servers)
    network.listenTCP(6000, servers)
    client = Client(insecure=True, reactor=network)
    asked: list[Any] = []
    client.request(uid=UID, rate=100.0, **AT).deferred.addBoth(asked.append)
    network.run(20.0)
    assert 2 <= len(generations) <= 22, "the first, and one a second"
    (stream,) = asked
    stream.release()
    network.run(2.0)
    assert stream.state == "Released"
