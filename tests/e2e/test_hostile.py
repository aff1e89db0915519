"""Attackers that try to exhaust a server are bounded, slowed down and cut off, and all others are served.

Each test has a legitimate user beside the attacker, and compares what the daemons hold before and after.
Attackers come from addresses of their own, unless it is said that they share one with the user (127.0.0.1).
"""

from __future__ import annotations

import json
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from attackers import (
    attempted,
    client_hello,
    closed,
    connection,
    half_open,
    is_shut_out,
    many_descriptors,
    seconds_of_dripping,
)
from harness import World, open_descriptors, together
from raw_peers import RawLink

from scistream.pki.authority import Issued
from scistream.protocol.address import Address
from scistream.protocol.join_string import Join, hash_app_key, new_app_key
from scistream.protocol.messages import CONS, PROD
from support.applications import MIB, accept, address_of, connect, listen, receive_exactly
from support.facilities import HOST, Daemon, elements_of
from support.waiting import PATIENCE, until

LIMIT = 10.0
"""Seconds for a handshake, and for the first line."""


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    with many_descriptors():
        yield


def attackers(number: int, count: int) -> list[str]:
    """So many addresses of loopback that no other test uses."""
    return [f"127.{100 + number}.{one // 250}.{one % 250 + 1}" for one in range(count)]


def ada(world: World) -> Issued:
    return Issued(world.folder / "users" / "ada.pem", world.folder / "users" / "ada.key")


def controller(world: World) -> Issued:
    return Issued(world.lab.pki / "s2cs-controller.pem", world.lab.pki / "s2cs-controller.key")


def status(link: RawLink) -> dict[str, Any]:
    return link.ask("Status", uid=None, role=None, seq=1)


def is_served(world: World, source: str = "127.0.0.1") -> bool:
    """Return True if a user with a certificate gets her answer from there."""
    try:
        with RawLink(world.lab.server.address, world.lab.authority, ada(world), source=source) as link:
            link.say("Status", uid=None, role=None, seq=1)
            answer = link.hear()
    except OSError:
        return False
    return answer is not None and answer["cmd"] == "RESP"


def carries(world: World) -> float:
    """Set a stream up and send bytes through it; the seconds of the set-up."""
    began = time.monotonic()
    with listen() as detector, world.stream([address_of(detector)], rate="100Mbit") as stream:
        took = time.monotonic() - began
        with stream.connect() as analysis, accept(detector) as camera:
            camera.sendall(b"light")
            assert receive_exactly(analysis, 5) == b"light"
    return took


def memory(world: World, daemon: Daemon) -> int:
    return world.footprint().memory[daemon.name]


# -- handshakes that never end


@pytest.fixture
def flooded_server(world: World) -> None:
    """Flood an S2CS in advance, so that its allocator reuses the memory of earlier floods."""
    before = world.footprint()
    for number in (12, 13):
        with half_open(world.lab.server.address, attackers(number, 25), 1000) as sockets:
            until(lambda opened=sockets: closed(opened) >= 1000 - 512, world.lab.server.words)
        until(lambda: world.footprint() == before, world.lab.server.words)


def test_a_thousand_half_open_handshakes_keep_nobody_from_setting_up_a_stream(
    world: World, flooded_server: None, nothing_left: None
) -> None:
    alone = carries(world)
    server = world.lab.server
    before = memory(world, server)
    one, *many = attackers(0, 25)
    began = time.monotonic()
    with half_open(server.address, [one] * 100 + many * 40, 1000) as sockets:
        until(lambda: closed(sockets) >= 1000 - 512, server.words)  # of each address 32 are let in, and 512 in all
        refused = closed(sockets)
        beside = carries(world)
        held = open_descriptors(server.pid)
        grown = memory(world, server) - before
        still_open = 1000 - closed(sockets)
        took = time.monotonic() - began
    print(f"stream set up in {alone:.2f} s, beside 1,000 half-open handshakes in {beside:.2f} s; ", end="")
    print(f"{refused} were refused at once; memory grew by {grown / MIB:.1f} MiB")
    if took < LIMIT:  # a slow machine takes longer than strangers may
        assert still_open > 0, "the others were there all the time"
    assert held < 700
    assert grown < 96 * MIB
    words = server.words()
    for part in ("`unproven_per_address`", "refused a link from 127.100."):
        assert part in words
    assert words.count("refused a link from 127.100.") < 200, "the log is not filled"


def test_a_thousand_half_open_handshakes_at_a_gateway_do_not_keep_its_controller_out(
    fresh_world: Callable[..., World],
) -> None:
    world = fresh_world()
    gateway = world.lab.gateways[0]
    with half_open(gateway.address, [*attackers(1, 24), "127.0.0.1"], 1000) as sockets:
        until(lambda: closed(sockets) >= 1000 - 512, gateway.words)
        world.lab.server.stop()
        world.lab.server.start()
        world.lab.server.wait_until_ready()
        until(lambda: reserves(world), world.lab.server.words)
        carries(world)


def reserves(world: World) -> bool:
    """Return True if the producer's S2CS gets ports of its gateway; they are given back."""
    uid = str(uuid4())
    wishes = {"num_conn": 1, "rate": 1.0, "app_key_hash": "0" * 64}
    with RawLink(world.lab.server.address, world.lab.authority, ada(world)) as link:
        answer = link.ask("REQ", uid=uid, role=PROD, seq=1, **wishes)
        while answer is not None and answer.get("state") == "Reserving":
            answer = link.hear()
        if answer is None or answer["cmd"] != "RESP":
            return False
        answer = link.ask("REL", uid=uid, role=PROD, seq=2)
        while answer is not None and answer.get("state") == "Releasing":
            answer = link.hear()
        return answer is not None and answer["state"] == "Released"


def test_a_controller_gets_in_at_a_gateway_while_rubbish_pours_in_from_its_own_address(
    fresh_world: Callable[..., World],
) -> None:
    """Rubbish first, then gateway and controller anew: nobody has proved himself there yet."""
    world = fresh_world()
    gateway, server = world.lab.gateways[0], world.lab.server
    server.stop()
    gateway.stop()
    gateway.start()
    gateway.wait_until_ready()
    going_on = threading.Event()

    thrown: list[int] = []

    def pour() -> None:
        while not going_on.is_set():
            with suppress(OSError), connection(gateway.address, "127.0.0.1") as sock:
                sock.sendall(b"rubbish\r\n" * 10)
                attempted(lambda: sock.recv(100))
                thrown.append(1)

    with ThreadPoolExecutor(1) as pool:
        pouring = pool.submit(pour)
        try:
            until(lambda: len(thrown) > 100, gateway.words)
            server.start()
            server.wait_until_ready()
            until(lambda: reserves(world), server.words)
            carries(world)
        finally:
            going_on.set()
        pouring.result(PATIENCE)


def test_a_peer_that_sends_one_byte_a_second_is_cut_off_in_the_handshake_and_the_first_line(
    world: World, nothing_left: None
) -> None:
    source = attackers(2, 1)[0]
    hello = client_hello()
    assert len(hello) > 4 * LIMIT
    with listen() as detector, world.stream([address_of(detector)], rate="100Mbit") as stream, ExitStack() as opened:
        wan = Address.parse(stream.requested.streaming()["connection_map"][stream.listeners[0]])
        listeners = [daemon.address for daemon in world.daemons] + [wan]
        handshakes = [opened.enter_context(connection(listener, source)) for listener in listeners]
        link = opened.enter_context(RawLink(world.lab.server.address, world.lab.authority, source=source))
        silent = opened.enter_context(RawLink(world.lab.server.address, world.lab.authority, source=source))
        drips = [(sock, hello) for sock in handshakes] + [(link.sock, b'{"cmd": "Hello", "uid": "' * 9)]
        drips.append((silent.sock, b""))
        took = together(*(partial(seconds_of_dripping, sock, data) for sock, data in drips[:-1]), silent.hear)[:-1]
        assert is_served(world, source), "they were cut off, not shut out"
        with stream.connect() as analysis, accept(detector) as camera:
            camera.sendall(b"still there")
            assert receive_exactly(analysis, 11) == b"still there"
    print(f"cut off after {', '.join(f'{one:.1f} s' for one in took)}")
    for one in took:
        assert LIMIT - 1 <= one < LIMIT + PATIENCE


# -- lines of rubbish


GARBAGE = [
    b"this is no JSON\n",
    b'{"cmd": "Open", "uid": null}\n',
    b'{"cmd": "Status", "uid": null, "role": null, "seq": 1, "depth": 3}\n',
    b'{"cmd": "Hello", "uid": "\xff\xfe"}\n',
    b"[" * 200 + b"\n",
]


def throw_lines(world: World, source: str, count: int) -> int:
    """Send so many bad lines on one link; how many were answered before the link was closed."""
    answered = 0
    with RawLink(world.lab.server.address, world.lab.authority, source=source) as link:
        attempted(lambda: link.send(b"".join(GARBAGE[number % 5] for number in range(count))))
        while link.hear() is not None:
            answered += 1
    return answered


def test_a_hundred_thousand_lines_of_rubbish_take_no_memory_and_keep_nobody_out(
    world: World, nothing_left: None
) -> None:
    server, trail = world.lab.server, world.lab.store.with_suffix(".audit.jsonl")
    sources = attackers(3, 40)
    throw_lines(world, sources[0], 500)
    before = memory(world, server)
    logged, told = len(server.words()), trail.stat().st_size
    sent = answered = 0
    for number in range(200):
        answered += throw_lines(world, sources[number % len(sources)], 500)
        sent += 500
        if number % 50 == 0:
            assert is_served(world)
    grown = memory(world, server) - before
    print(f"{sent} lines sent, {answered} answered; memory grew by {grown / MIB:.1f} MiB")
    assert sent == 100_000
    assert answered <= 200 * 8
    assert grown < 16 * MIB
    assert len(server.words()) - logged < 2 * MIB
    told = trail.stat().st_size - told
    print(f"the audit trail grew by {told / MIB:.2f} MiB")
    assert 0 < told < MIB
    carries(world)


def test_rubbish_before_tls_shuts_its_address_out_and_no_other_one(fresh_world: Callable[..., World]) -> None:
    world = fresh_world()  # whose log has not told of so many addresses that it tells of others together
    attacker, neighbour = attackers(4, 2)
    server = world.lab.server
    with world.unchanged(), RawLink(server.address, world.lab.authority, ada(world), source=neighbour) as link:

        def throw() -> bool:
            with connection(server.address, attacker) as sock:
                attempted(lambda: sock.sendall(b"GET / HTTP/1.1\r\n\r\n"))
                attempted(lambda: sock.recv(100))
            return is_shut_out(server.address, attacker)

        until(throw, server.words)
        assert is_served(world, neighbour)
        assert is_served(world)
        answer = status(link)
        assert answer["cmd"] == "RESP", "links that are up stay up"
    assert f"refuses links from {attacker}" in server.words()


def test_after_a_quiet_time_an_address_is_let_in_again_and_a_right_link_clears_it(
    fresh_world: Callable[..., World],
) -> None:
    world = fresh_world(lab={"settings": {"limits": {"failures": 3, "longest_refusal": "2s"}}})
    (attacker,) = attackers(5, 1)
    address = world.lab.server.address
    with world.unchanged():
        for _ in range(6):
            until(lambda: throw_lines_is_possible(world, attacker), world.lab.server.words)
        assert is_shut_out(address, attacker)
        assert is_served(world)
        waited = time.monotonic()
        until(lambda: not is_shut_out(address, attacker), world.lab.server.words)
        print(f"let in again after {time.monotonic() - waited:.1f} s")
        assert is_served(world, attacker)
        for _ in range(2):
            assert throw_lines_is_possible(world, attacker)
        assert is_served(world, attacker), "it began anew"


def throw_lines_is_possible(world: World, source: str) -> bool:
    return attempted(lambda: throw_lines(world, source, 8))


# -- commands that are not for whoever says them


def test_on_a_link_without_a_certificate_all_but_hello_counts_as_a_bad_line(world: World, nothing_left: None) -> None:
    (source,) = attackers(6, 1)
    uid = str(uuid4())
    of_stream = {"uid": uid, "role": PROD, "seq": 1}
    said: list[tuple[str, dict[str, Any]]] = [
        ("REQ", {**of_stream, "num_conn": 1, "rate": 1.0, "app_key_hash": "0" * 64}),
        ("REL", of_stream),
        ("Status", {"uid": None, "role": None, "seq": 1}),
        ("UpdateTargets", {**of_stream, "generation": 1, "connection_map": {"a:1": "b:2"}, "data_conn_key": ""}),
        ("ReqListeners", {**of_stream, "channels": [0], "rate": 1.0, "expires": 9.0, "wan_security": "encrypt"}),
        ("StartLstn", {**of_stream, "channel": 0}),
        ("StartConn", {**of_stream, "listeners": ["127.0.0.1:1"]}),
    ]
    with RawLink(world.lab.server.address, world.lab.authority, source=source) as link:
        for cmd, fields in said:
            answer = link.ask(cmd, **fields)
            assert answer["cmd"] == "ERROR"
            assert answer["code"] in ("not-authenticated", "not-authorized")
        link.say("RESP", uid=None, seq=1, state="", msg="to nothing")
        assert link.hear() is None, "an answer is never answered, and this was the eighth"
    with RawLink(world.lab.server.address, world.lab.authority, source=source) as link:
        for _ in range(8):
            link.say("RESP", uid=None, seq=1, state="", msg="to nothing")
        assert link.hear() is None


def test_links_of_one_identity_are_bounded_and_another_user_is_not_hindered(
    fresh_world: Callable[..., World],
) -> None:
    world = fresh_world(lab={"settings": {"limits": {"links_per_identity": 3}}})
    address, authority = world.lab.server.address, world.lab.authority
    with world.unchanged(), ExitStack() as opened:
        links = [opened.enter_context(RawLink(address, authority, ada(world))) for _ in range(3)]
        assert all(status(link)["cmd"] == "RESP" for link in links)
        one_more = opened.enter_context(RawLink(address, authority, ada(world)))
        answer = one_more.hear()
        assert answer is not None
        assert answer["code"] == "no-capacity"
        assert "links_per_identity" in answer["msg"]
        assert one_more.hear() is None
        links.pop().__exit__()
        until(lambda: is_served(world), world.lab.server.words)


def test_a_flood_of_commands_is_read_at_its_pace_and_nobody_waits_for_it(fresh_world: Callable[..., World]) -> None:
    world = fresh_world(lab={"settings": {"limits": {"commands_per_second": 20}}})
    with (
        world.unchanged(),
        RawLink(world.lab.server.address, world.lab.authority, ada(world)) as link,
        RawLink(world.lab.server.address, world.lab.authority) as application,
    ):
        began = time.monotonic()
        for number in range(1, 161):
            link.say("REL", uid=str(uuid4()), role=PROD, seq=number)
            if number % 20 == 0:
                time.sleep(0.01)  # or all of it is one packet, which is read as one
        application.ask("Hello", uid=str(uuid4()), role=CONS, seq=1, app_key=new_app_key())
        heard = [link.hear() for _ in range(160)]
        assert [one["seq"] for one in heard if one is not None] == list(range(1, 161)), "none is lost"
        link.ask("REL", uid=str(uuid4()), role=PROD, seq=161)
        assert time.monotonic() - began >= (161 - 20 * 5 - 2) / 20
    assert "Traceback" not in world.lab.server.words()


# -- who says much and never reads


@contextmanager
def reserved_by_hand(link: RawLink, **wishes: Any) -> Iterator[dict[str, Any]]:
    """Reserve a producer's side by hand; yield the fields that identify it."""
    name = {"uid": str(uuid4()), "role": PROD}
    answer = link.ask("REQ", **name, seq=1, rate=1.0, **wishes)
    assert answer["state"] == "Listening", answer
    try:
        yield name
    finally:
        with suppress(OSError):
            link.say("REL", **name, seq=2)


ROOM = 32 * 1024
"""Bytes that the kernel keeps for a peer that does not read, so that the server has to keep the others soon."""


def test_a_peer_that_sends_many_commands_and_reads_no_answer_fills_no_memory_and_gets_all_answers(
    fresh_world: Callable[..., World],
) -> None:
    world = fresh_world(lab={"ports": 250})
    server = world.lab.server
    count = 900
    with (
        world.unchanged(),
        RawLink(server.address, world.lab.authority, ada(world)) as owner,
        reserved_by_hand(owner, num_conn=250, app_key_hash="0" * 64) as name,
    ):
        one = owner.ask("Status", **name, seq=3)
        size = len(json.dumps(one, separators=(",", ":")))
        before = memory(world, server)
        with RawLink(server.address, world.lab.authority, ada(world), room=ROOM) as link:
            link.send(b"".join(question(name, seq) for seq in range(1, count + 1)))
            most = 0
            for _ in range(20):
                assert is_served(world)
                most = max(most, memory(world, server) - before)
            print(
                f"{count} answers of {size} bytes, {count * size / MIB:.1f} MiB in all; grown by {most / MIB:.1f} MiB"
            )
            assert count * size > 16 * MIB
            assert most < 8 * MIB
            heard = [link.hear() for _ in range(count)]
        assert {one["seq"] for one in heard if one is not None} == set(range(1, count + 1))
        owner.say("REL", **name, seq=4)
        until(lambda: not world.lab.gateways[0].ports_in_use(), server.words)


def question(name: dict[str, Any], seq: int) -> bytes:
    return json.dumps({"cmd": "Status", **name, "seq": seq}).encode() + b"\n"


def test_an_owner_who_never_reads_notifications_is_cut_off_and_one_who_reads_is_not(
    fresh_world: Callable[..., World],
) -> None:
    world = fresh_world(lab={"gateway": {"app_networks": ["127.0.0.0/8", "fd00::/8"]}})
    server = world.lab.server
    key, long_host = new_app_key(), "[fd00:1111:2222:3333:4444:5555:6666:7777]"
    with (
        world.unchanged(),
        RawLink(server.address, world.lab.authority, ada(world), room=ROOM) as owner,
        reserved_by_hand(owner, num_conn=1, app_key_hash=hash_app_key(key)) as name,
        RawLink(server.address, world.lab.authority) as application,
        RawLink(server.address, world.lab.authority, ada(world)) as reader,
    ):
        reader.ask("Status", **name, seq=1)  # from now on it hears what the other one does

        def hello(seq: int) -> None:
            # Below all ports that daemons of tests have: no target may be one of them.
            listeners = [f"{long_host}:{2_000 + (seq + one) % 1000}" for one in range(1000)]
            answer = application.ask("Hello", **name, seq=seq, app_key=key, listeners=listeners)
            assert answer["cmd"] == "RESP"
            told = reader.hear()
            assert told is not None
            assert (told["cmd"], told["listeners"]) == ("ProdLstn", listeners)

        before = memory(world, server)
        seq, most = 1, 0
        while "does not read: " not in server.words():
            assert seq < 400, "19 MB have been said by now, of which the kernel takes little"
            hello(seq)
            seq += 1
            if seq % 20 == 0:
                most = max(most, memory(world, server) - before)
        print(f"cut off after {seq} times 47 kB; memory grew by {most / MIB:.1f} MiB")
        assert most < 16 * MIB
        while owner.hear() is not None:
            pass
        hello(seq)
        assert is_served(world)
        reader.say("REL", **name, seq=2)
        until(lambda: not world.lab.gateways[0].ports_in_use(), server.words)
    trail = world.lab.store.with_suffix(".audit.jsonl").read_text()
    assert trail.count("it does not read: ") == 1


# -- keys that are not the right ones


def test_wrong_keys_are_counted_and_slowed_down_and_the_right_one_is_answered_at_once(
    world: World, nothing_left: None
) -> None:
    attacker, elsewhere, other = attackers(7, 3)
    server, authority = world.centre.server, world.centre.authority
    with world.request(1, "100Mbit") as requested:
        join = Join.parse(requested.join[CONS])

        def guess(source: str, uid: str = join.uid) -> tuple[float, dict[str, Any]]:
            with RawLink(server.address, authority, source=source) as link:
                began = time.monotonic()
                answer = link.ask("Hello", uid=uid, role=CONS, seq=1, app_key=new_app_key())
                assert link.hear() is None
                return time.monotonic() - began, answer

        answers = [guess(attacker) for _ in range(5)]
        assert answers[3][0] >= 0.9
        assert answers[4][0] >= 1.9
        unknown = [guess(other, str(uuid4())) for _ in range(5)]
        assert unknown[3][0] >= 0.9, "an address that guesses at uids is slowed down likewise"
        said = {(one["code"], one["msg"]) for _, one in answers + unknown}
        assert len(said) == 1, "a wrong key and an unknown uid are one and the same"

        with RawLink(server.address, authority, source=attacker) as waits:
            waits.say("Hello", uid=join.uid, role=CONS, seq=1, app_key=new_app_key())
            with RawLink(server.address, authority, source=elsewhere) as link:
                answer = link.ask("Hello", uid=join.uid, role=CONS, seq=1, app_key=join.app_key)
                assert answer["cmd"] == "RESP"
            waits.sock.settimeout(0.1)
            with pytest.raises(TimeoutError):  # the attacker has no answer yet
                waits.sock.recv(1)

        sides = json.loads(world.s2uc("status", requested.uid, "--json").stdout)["streams"][requested.uid]
        assert sides[CONS]["wrong_hellos"] == 6
        assert "wrong_hellos" not in sides[PROD]
        assert "Hellos with a wrong key: 6" in world.s2uc("status", requested.uid).stdout
    assert "recent wrong keys: 1 from that address, 1 for that stream" in server.words()


# -- no descriptors left


@contextmanager
def few_descriptors(pid: int, spare: int) -> Iterator[None]:
    """Limit the process to `spare` more descriptors meanwhile."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    most = open_descriptors(pid) + spare
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_an_s2cs_without_descriptors_says_so_once_and_goes_on_by_itself(world: World, nothing_left: None) -> None:
    server = world.lab.server
    assert is_served(world)
    with few_descriptors(server.pid, 6):
        with half_open(server.address, attackers(8, 30), 30) as sockets:
            until(lambda: "is paused: " in server.words(), server.words)
            busy = cpu_seconds(server)
            began = time.monotonic()
            until(lambda: time.monotonic() - began > 3, str)
            assert cpu_seconds(server) - busy < 1.5, "it waits, and does not try again and again"
            assert not closed(sockets[10:]), "connections wait meanwhile"
        until(lambda: is_served(world), server.words)
    words = server.words()
    assert words.count("is paused: ") == 1
    assert " again" in words
    carries(world)


def test_a_gateway_without_descriptors_says_so_and_goes_on_by_itself(
    fresh_world: Callable[..., World], nothing_left: None
) -> None:
    world = fresh_world(centre={"gateway": {"wan": {"bind": HOST, "ready": 0}}})  # or the stream has its share already
    gateway = world.lab.gateways[0]
    with listen() as detector, world.stream([address_of(detector)], rate="100Mbit") as stream:
        wan = Address.parse(stream.requested.streaming()["connection_map"][stream.listeners[0]])
        (element,) = elements_of(gateway.pid)  # which has the connections
        with few_descriptors(element, 6):
            with half_open(wan, attackers(9, 30), 30):
                until(lambda: "is paused: " in gateway.words(), gateway.words)
            with connect(stream.listeners[0]) as analysis, accept(detector) as camera:
                camera.sendall(b"after all")
                assert receive_exactly(analysis, 9) == b"after all"
        assert gateway.words().count("is paused: ") == 1


def cpu_seconds(daemon: Daemon) -> float:
    """Return the CPU time that it has used so far, in seconds."""
    with open(f"/proc/{daemon.pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- the ports of streams


@pytest.fixture
def flooded_gateway(world: World) -> None:
    """Flood the producer's gateway in advance, for the same reason."""
    with listen() as detector, world.stream([address_of(detector)], rate="100Mbit") as stream:
        wan = Address.parse(stream.requested.streaming()["connection_map"][stream.listeners[0]])
        before = world.footprint()
        for number in (14, 15):
            with half_open(wan, attackers(number, 3), 300) as sockets:
                until(lambda opened=sockets: closed(opened) >= 300 - 64, world.lab.gateways[0].words)
            until(lambda: world.footprint() == before, world.lab.gateways[0].words)


def test_connections_that_say_nothing_at_a_wan_port_keep_no_gateway_out(
    world: World, flooded_gateway: None, nothing_left: None
) -> None:
    gateway = world.lab.gateways[0]
    with listen() as detector, world.stream([address_of(detector)], rate="100Mbit") as stream:
        wan = Address.parse(stream.requested.streaming()["connection_map"][stream.listeners[0]])
        before = open_descriptors(gateway.pid)
        with half_open(wan, attackers(10, 3), 300) as sockets:
            with stream.connect() as analysis, accept(detector) as camera:
                camera.sendall(b"got through")
                assert receive_exactly(analysis, 11) == b"got through"
                assert open_descriptors(gateway.pid) - before < 64 + 20
            until(lambda: closed(sockets) == 300, gateway.words, 4 * PATIENCE)
        assert "the TLS handshake was not complete within 10 s" in gateway.words()


@contextmanager
def silent_flood(port: Address, source: str, a_second: int) -> Iterator[None]:
    """So many new connections a second from one address, on which nothing is ever said."""
    over = threading.Event()
    opened: list[socket.socket] = []

    def pour() -> None:
        began = time.monotonic()
        while not over.wait(0.02):
            while len(opened) < (time.monotonic() - began) * a_second:
                sock = socket.socket()
                opened.append(sock)
                sock.setblocking(False)
                sock.bind((source, 0))
                sock.connect_ex(port)

    pouring = threading.Thread(target=pour)
    pouring.start()
    try:
        yield
    finally:
        over.set()
        pouring.join(PATIENCE)
        for sock in opened:
            sock.close()


def test_a_flood_of_silent_connections_from_one_address_keeps_no_gateway_out(
    world: World, flooded_gateway: None, nothing_left: None
) -> None:
    (stranger,) = attackers(12, 1)
    with listen() as detector, world.stream([address_of(detector)], rate="100Mbit") as stream:
        wan = Address.parse(stream.requested.streaming()["connection_map"][stream.listeners[0]])
        with silent_flood(wan, stranger, 120):
            time.sleep(5.0)  # it has taken every place by then, and those that wait in the queue grow more and more
            for _ in range(5):
                began = time.monotonic()
                with stream.connect() as analysis, accept(detector) as camera:
                    camera.sendall(b"got through")
                    assert receive_exactly(analysis, 11) == b"got through"
                assert time.monotonic() - began < 2.0


def is_reset(port: Address, source: str) -> bool:
    """Return True if a connection from this address is reset, at once or after it was accepted."""
    try:
        with connection(port, source) as sock:
            return sock.recv(1) != b""
    except ConnectionResetError:
        return True


def test_connections_from_outside_the_networks_are_reset_at_once_on_wan_and_lan(
    fresh_world: Callable[..., World],
) -> None:
    only_us = {"app_networks": ["127.0.0.1/32"], "wan_networks": ["127.0.0.1/32"]}
    world = fresh_world(lab={"gateway": only_us}, centre={"gateway": only_us})
    (stranger,) = attackers(11, 1)
    with listen() as detector, world.stream([address_of(detector)], rate="100Mbit") as stream:
        wan = Address.parse(stream.requested.streaming()["connection_map"][stream.listeners[0]])
        for port in (wan, Address.parse(stream.listeners[0])):
            assert all(is_reset(port, stranger) for _ in range(40))
        with stream.connect() as analysis, accept(detector) as camera:
            camera.sendall(b"ours")
            assert receive_exactly(analysis, 4) == b"ours"
        detector.settimeout(0.2)
        with pytest.raises(socket.timeout):
            detector.accept()
    for gateway in (world.lab.gateways[0], world.centre.gateways[0]):
        assert 1 <= gateway.words().count(f"the last one came from {stranger}") < 10, "the log is not filled"
