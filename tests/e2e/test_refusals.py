"""Refusals, each with a control that succeeds: users get only what is theirs, and nothing is left behind.

The daemons' descriptors, ports, live streams and memory are compared before and after each test (`nothing_left`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fault_matrix import freeze, thaw
from harness import Requested, World, free_ports, refused_request, together
from OpenSSL import SSL
from raw_peers import RawLink, dial_wan

from scistream.pki.authority import Issued, init_authority, issue
from scistream.protocol.address import Address
from scistream.protocol.join_string import Join, new_app_key
from scistream.protocol.messages import CONS, PROD, Role
from scistream.s2uc.stream_certificates import issue_credentials
from scistream.tls.stream_channels import StreamSecret, server_name
from support.applications import accept, address_of, listen, receive_exactly
from support.facilities import HOST, Daemon
from support.programs import Program
from support.waiting import until

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Run a world where only the producer's facility has room: it reserves when the other one refuses."""
    small = {"ports": 4, "gateway": {"capacity": "1Gbit"}}
    with World(tmp_path_factory.mktemp("world"), centre=small) as world:
        yield world


# -- links by hand


def ada(world: World) -> Issued:
    return Issued(world.folder / "users" / "ada.pem", world.folder / "users" / "ada.key")


def to_s2cs(world: World, issued: Issued | None) -> RawLink:
    return RawLink(world.lab.server.address, world.lab.authority, issued)


def to_s2ds(world: World, issued: Issued | None) -> RawLink:
    return RawLink(world.lab.gateways[0].address, world.lab.authority, issued)


def a_request(role: Role = PROD) -> dict[str, Any]:
    return {"uid": str(uuid4()), "role": role, "seq": 1, "num_conn": 1, "rate": 1.0, "app_key_hash": "0" * 64}


def everything(seq: int = 1) -> dict[str, Any]:
    return {"uid": None, "role": None, "seq": seq}


@contextmanager
def reserved(world: World, num_conn: int = 1, rate: str = "100Mbit", *options: str) -> Iterator[Requested]:
    """Request a stream that both sides reserve; remove it at the end in any case."""
    requested = world.request(num_conn, rate, *options)
    try:
        yield requested
    finally:
        if requested.program.process.poll() is None:
            requested.program.process.send_signal(signal.SIGINT)
            requested.program.end(status=1)
        elif requested.uid in world.s2uc("list", "--json").stdout:
            requested.release()


# -- Hello


def with_another_key(join: Join) -> Join:
    return Join(join.uid, new_app_key(), join.server, join.role, join.ca)


def with_another_uid(join: Join) -> Join:
    return Join(str(uuid4()), join.app_key, join.server, join.role, join.ca)


def with_another_role(join: Join) -> Join:
    return Join(join.uid, join.app_key, join.server, PROD if join.role == CONS else CONS, join.ca)


def with_another_authority(join: Join) -> Join:
    return Join(join.uid, join.app_key, join.server, join.role, "0" * 64)


WRONG = (with_another_key, with_another_uid, with_another_role, with_another_authority)


@pytest.mark.parametrize("role", [PROD, CONS])
def test_a_hello_with_a_wrong_join_string_is_refused_and_starts_no_program(
    world: World, tmp_path: Path, role: Role
) -> None:
    def hello(join: str) -> Program:
        command = ["touch", str(tmp_path / "started")]
        return world.prod(join, [f"{HOST}:7"], command) if "/prod" in join else world.cons(join, command)

    with reserved(world) as requested:
        intruders = [hello(str(wrong(Join.parse(requested.join[role])))) for wrong in WRONG]
        for intruder in intruders:
            (line,) = intruder.end(status=1).stderr.splitlines()
            assert line.startswith("error: not-aut")
            assert Join.parse(requested.join[role]).app_key not in line
        assert not (tmp_path / "started").exists()
        assert requested.state(PROD) == requested.state(CONS) == "Listening"

        control = hello(requested.join[role])
        if role == CONS:
            world.prod(requested.join[PROD], [f"{HOST}:7"]).end()
        requested.streaming()
        control.end()
        assert (tmp_path / "started").exists()


# -- room


def test_more_ports_than_a_side_has_are_refused_and_the_other_side_keeps_nothing(world: World) -> None:
    line = refused_request(world, "--num-conn", "5", "--rate", "100Mbit")
    assert line.startswith("error: no-ports: consumer side: ")
    assert "5 channels were requested, but 4 ports are free" in line

    with reserved(world, 4):
        assert {side: len(ports) for side, ports in world.footprint().ports.items()} == {
            "lab-s2ds-0": 4,
            "centre-s2ds-0": 4,
        }
        line = refused_request(world, "--num-conn", "1", "--rate", "100Mbit")
        assert "1 channels were requested, but 0 ports are free" in line


def test_more_rate_than_a_side_has_is_refused_and_the_other_side_keeps_nothing(world: World) -> None:
    line = refused_request(world, "--rate", "1001Mbit")
    assert line.startswith("error: no-capacity: consumer side: ")
    assert "1001 Mbit/s" in line
    assert "1000 Mbit/s are free" in line

    with reserved(world, 1, "1Gbit"):
        assert refused_request(world, "--rate", "1Mbit").startswith("error: no-capacity: consumer side: ")


def test_a_longer_life_than_a_facility_allows_is_refused(world: World) -> None:
    line = refused_request(world, "--expires", "8d", "--rate", "100Mbit")
    assert line.startswith("error: not-authorized: ")
    assert "at most 604800 s" in line


def test_join_strings_that_cannot_be_written_are_a_refusal_and_both_sides_are_released(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs, "--rate", "100Mbit"]
    uid = str(uuid4())
    below = str(tmp_path / "taken" / "joins")
    ended = world.start_s2uc("request", *between, "--uid", uid, "--join-dir", below).end(status=2)
    (line,) = ended.stderr.splitlines()
    assert line == f"error: {below}: cannot be written: Not a directory"
    assert world.lab.states()[uid, PROD] == world.centre.states()[uid, CONS] == "Released"

    control = world.start_s2uc("request", *between, "--json", "--join-dir", str(tmp_path / "joins"))
    files = json.loads(control.line())["join_files"]
    for role, file in files.items():
        assert Path(file).stat().st_mode & 0o777 == 0o600
        assert Join.parse(Path(file).read_text()).role == role
    control.process.send_signal(signal.SIGINT)
    control.end(status=1)


def test_an_s2cs_that_is_down_is_named_with_its_address_and_the_other_side_released(world: World) -> None:
    nobody = f"{HOST}:{free_ports()}"
    line = refused_request(world, "--rate", "100Mbit", "--timeout", "2s", cons=nobody)
    assert line.startswith("error: timeout: not streaming after 2 s")
    assert f"the consumer side at {nobody}" in line
    assert "refused" in line
    assert "producer" not in line
    assert "Released" in world.lab.states().values()


# -- certificates


def test_a_user_s_certificate_is_refused_by_a_gateway_though_its_authority_is_the_same(world: World) -> None:
    mallory = issue(world.lab.pki, "user", f"mallory-{uuid4()}@lab.example")
    with to_s2ds(world, mallory) as link:
        answer = link.hear()
        assert answer is not None
        assert answer["code"] == "not-authorized"
        assert link.hear() is None

    controller = Issued(world.lab.pki / "s2cs-controller.pem", world.lab.pki / "s2cs-controller.key")
    with to_s2ds(world, controller) as link:
        assert link.ask("Status", **everything())["cmd"] == "RESP"


def test_another_controller_s_certificate_is_refused_by_a_gateway(world: World) -> None:
    with to_s2ds(world, issue(world.lab.pki, "controller", f"other-{uuid4()}")) as link:
        answer = link.hear()
        assert answer is not None
        assert answer["code"] == "not-authorized"
        assert link.hear() is None


def test_a_gateway_refuses_a_peer_without_a_certificate_in_the_handshake(world: World) -> None:
    with to_s2ds(world, None) as link:
        assert link.hear() is None
    with to_s2ds(world, ada(world)) as link:
        assert link.hear() is None, "a user of an authority that only the S2CS trusts"


def test_a_controller_s_certificate_is_no_user_s_at_an_s2cs(world: World) -> None:
    with to_s2cs(world, issue(world.folder / "users", "controller", f"s2cs-{uuid4()}")) as link:
        for cmd, fields in (("REQ", a_request()), ("Status", everything())):
            answer = link.ask(cmd, **fields)
            assert (answer["cmd"], answer["code"]) == ("ERROR", "not-authorized")
    request = a_request()
    with to_s2cs(world, ada(world)) as link:
        answer = link.ask("REQ", **request)
        assert (answer["cmd"], answer["state"]) == ("RESP", "Listening")
        assert link.ask("REL", uid=request["uid"], role=PROD, seq=2)["state"] == "Released"


def test_without_a_certificate_an_s2cs_understands_nothing_but_hello(world: World) -> None:
    with reserved(world) as requested:
        known = {"uid": requested.uid, "role": CONS, "seq": 1}
        with RawLink(world.centre.server.address, world.centre.authority) as link:
            for cmd, fields in (("REQ", a_request()), ("REL", known), ("Status", everything()), ("Status", known)):
                answer = link.ask(cmd, **fields)
                assert (answer["cmd"], answer["code"]) == ("ERROR", "not-authenticated")
            key = Join.parse(requested.join[CONS]).app_key
            assert link.ask("Hello", **known, app_key=key)["cmd"] == "RESP"


def test_a_user_of_an_authority_that_a_facility_does_not_trust_is_refused(world: World, tmp_path: Path) -> None:
    init_authority(tmp_path / "elsewhere", "Elsewhere")
    stranger = issue(tmp_path / "elsewhere", "user", "ada")
    with to_s2cs(world, stranger) as link:
        assert link.hear() is None
    options = ["--certificate", str(stranger.certificate), "--key", str(stranger.key)]
    line = refused_request(world, "--rate", "100Mbit", *options)
    assert line.startswith("error: not-authenticated: ")


def test_a_look_with_certificates_that_a_facility_refuses_fails_at_once_and_changes_nothing(world: World) -> None:
    with reserved(world) as requested:
        half = ["--certificate", str(ada(world).certificate), "--key", str(ada(world).key)]
        half += ["--authority", str(world.lab.authority)]
        freeze(requested.program)  # it would release the other side, too, as soon as it hears of the first
        try:
            for command in ("status", "wait", "release"):
                refused = world.s2uc(command, requested.uid, *half, check=False)
                assert refused.returncode == 1
                assert "not-authenticated" in refused.stderr
                assert "consumer side" in refused.stderr
                assert requested.state(CONS) == "Listening"
                assert requested.state(PROD) == ("Released" if command == "release" else "Listening")
            assert requested.uid in world.s2uc("list").stdout, "it is not released everywhere yet"
        finally:
            thaw(requested.program)


# -- other users


def test_another_user_can_neither_see_nor_change_nor_end_a_stream(world: World) -> None:
    with reserved(world) as requested:
        eve = issue(world.folder / "users", "user", f"eve-{uuid4()}@lab.example")
        as_eve = ["--certificate", str(eve.certificate), "--key", str(eve.key)]
        for command in ("release", "status", "wait"):
            refused = world.s2uc(command, requested.uid, *as_eve, check=False)
            assert refused.returncode == 1
            assert "error: unknown-uid: neither " in refused.stderr
            assert "Traceback" not in refused.stderr
            assert "released" not in refused.stdout
            assert requested.uid in world.s2uc("list").stdout, "it is not taken off the list"
        with to_s2cs(world, eve) as link:
            assert link.ask("Status", **everything())["streams"] == []
            update = {"generation": 9, "connection_map": {"127.0.0.1:1": "127.0.0.1:2"}, "data_conn_key": "x"}
            for cmd, fields in (("UpdateTargets", update), ("REL", {}), ("Status", {})):
                answer = link.ask(cmd, uid=requested.uid, role=PROD, seq=2, **fields)
                assert (answer["cmd"], answer["code"]) == ("ERROR", "unknown-uid")
            again = {**a_request(), "uid": requested.uid}
            assert link.ask("REQ", **again)["code"] == "wrong-state", "it has released that uid for itself"
        assert requested.state(PROD) == requested.state(CONS) == "Listening"

        assert requested.uid in world.s2uc("status", requested.uid).stdout
        requested.release()
        assert requested.state(PROD) == requested.state(CONS) == "Released"


# -- lines


BAD_LINES = [
    b"this is no JSON\n",
    b'{"cmd": "Open", "uid": null}\n',
    b'{"cmd": "Status", "uid": null, "role": null, "seq": 1, "limit": 3, "limit": 4}\n',
    b'{"cmd": "Status", "uid": null, "seq": 1}\n',
    b'{"cmd": "Status", "uid": null, "role": null, "seq": "one"}\n',
    b'{"cmd": "Status", "uid": null, "role": null, "seq": 1, "limit": 101}\n',
    b'{"cmd": "Status", "uid": "\xff\xfe", "role": null, "seq": 1}\n',
    b"[" * 5000 + b"]" * 5000 + b"\n",
]


def test_each_of_eight_bad_lines_is_answered_and_then_the_link_is_closed(world: World) -> None:
    named = ["not JSON", "cmd", "limit", "role", "seq", "limit", "", ""]
    with to_s2cs(world, ada(world)) as link:
        for line, part in zip(BAD_LINES, named, strict=True):
            link.send(line)
            answer = link.hear()
            assert answer is not None
            assert (answer["cmd"], answer["code"], answer["uid"]) == ("ERROR", "bad-message", None)
            assert part in answer["msg"]
        assert link.hear() is None


def test_seven_bad_lines_change_nothing_for_the_good_ones_after_them(world: World) -> None:
    with to_s2cs(world, ada(world)) as link:
        for line in BAD_LINES[:7]:
            link.send(line)
            assert link.hear() is not None
        assert link.ask("Status", **everything(2))["cmd"] == "RESP"
        link.send(b'{"cmd": "RESP", "uid": null, "nonsense": 1}\n')
        assert link.hear() is None, "an answer is never answered, and this was the eighth"


def test_a_line_that_is_too_long_closes_the_link(world: World) -> None:
    with to_s2cs(world, ada(world)) as link:
        assert link.ask("Status", **everything())["cmd"] == "RESP"
        link.send(b" " * 270_000)
        answer = link.hear()
        assert answer is not None
        assert (answer["code"], answer["uid"]) == ("bad-message", None)
        assert link.hear() is None
    with to_s2cs(world, None) as link:
        link.send(b" " * 70_000)
        answer = link.hear()
        assert answer is not None
        assert "65536" in answer["msg"]
        assert link.hear() is None


# -- the ports of gateways


def credentials(uid: str) -> SSL.Context:
    """Return what a consumer's gateway holds for a stream with this uid, under an authority of the test."""
    secrets = {PROD: StreamSecret(), CONS: StreamSecret()}
    keys = issue_credentials(uid, 1, 3600.0, {role: secret.csr for role, secret in secrets.items()})
    return secrets[CONS].credentials(keys[CONS], uid, CONS).context()


def without_credentials() -> SSL.Context:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_verify(SSL.VERIFY_NONE)
    return context


def trusting_anybody(context: SSL.Context) -> SSL.Context:
    context.set_verify(SSL.VERIFY_NONE)
    return context


def test_a_peer_without_the_stream_s_credentials_reaches_no_application(world: World) -> None:
    with listen() as detector, world.stream([address_of(detector)], rate="100Mbit") as stream:
        wan = Address.parse(str(stream.requested.streaming()["connection_map"][stream.listeners[0]]))
        name = server_name(stream.uid, 0).encode()
        for context in (
            without_credentials(),
            credentials(stream.uid),
            trusting_anybody(credentials(stream.uid)),
            trusting_anybody(credentials(str(uuid4()))),
        ):
            assert dial_wan(wan, context, name) != "closed"
        assert dial_wan(wan, trusting_anybody(credentials(stream.uid)), b"") != "closed"
        with socket.create_connection(wan, timeout=20) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: detector\r\n\r\n")
            assert ends(plain) != b"HTTP"
        with stream.connect() as analysis:
            analysis.sendall(b"the first that the detector sees")
            with accept(detector) as camera:
                assert receive_exactly(camera, 32) == b"the first that the detector sees"
        detector.setblocking(False)
        with pytest.raises(BlockingIOError):
            detector.accept()


def ends(sock: socket.socket) -> bytes:
    """Whatever comes until the end, of which kind ever."""
    data = b""
    try:
        while part := sock.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    return data


RUBBISH = [
    b"\0" * 4096,
    b"\x16\x03\x01\xff\xff" + os.urandom(2000),
    b"GET / HTTP/1.0\r\n\r\n",
    os.urandom(100_000),
    b"{}\n",
]


def test_rubbish_on_any_port_is_closed_and_disturbs_nobody(world: World) -> None:
    with listen() as detector, world.stream([address_of(detector)], rate="100Mbit") as stream:
        wan = Address.parse(stream.requested.streaming()["connection_map"][stream.listeners[0]])
        ports = [daemon.address for daemon in world.daemons] + [wan]

        def throw(address: Address, rubbish: bytes) -> None:
            with socket.create_connection(address, timeout=20) as sock:
                try:
                    sock.sendall(rubbish)
                    sock.shutdown(socket.SHUT_WR)
                except OSError:
                    return  # closed before all of it was sent
                ends(sock)

        for rubbish in RUBBISH:
            together(*(partial(throw, address, rubbish) for address in ports))
        with stream.connect() as analysis, accept(detector) as camera:
            camera.sendall(b"still there")
            assert receive_exactly(analysis, 11) == b"still there"


def test_applications_can_send_what_they_like_and_it_arrives(world: World) -> None:
    """The consumer's LAN port is the application's own: rubbish there is data."""
    with listen() as detector, world.stream([address_of(detector)], rate="1Gbit") as stream:
        for rubbish in RUBBISH:
            with stream.connect() as analysis, accept(detector) as camera:
                analysis.sendall(rubbish)
                assert receive_exactly(camera, len(rubbish)) == rubbish


def test_a_port_that_is_reserved_and_not_armed_accepts_nobody(world: World) -> None:
    with reserved(world, 2):
        for gateway in (world.lab.gateways[0], world.centre.gateways[0]):
            for port in gateway.ports_in_use():
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection((HOST, port), timeout=5)


# -- targets


def test_a_producer_outside_the_networks_of_the_applications_is_refused_and_the_stream_waits_on(world: World) -> None:
    for target in ("192.0.2.1:80", "[2001:db8::1]:80"):
        with reserved(world) as requested:
            consumer = world.cons(requested.join[CONS], ["true"])
            until(lambda: requested.state(CONS) == "Ready", world.centre.server.words)
            said = world.prod(requested.join[PROD], [target]).end(status=1).stderr
            for part in ("target-refused", target):
                assert part in said
            assert requested.program.process.poll() is None
            assert (requested.state(PROD), requested.state(CONS)) == ("Listening", "Ready")
            requested.release()
            assert requested.state(PROD) == requested.state(CONS) == "Released"
            assert "released" in consumer.end(status=1).stderr

    with listen() as detector, world.stream([address_of(detector)], rate="100Mbit") as control:
        control.connect().close()


# -- the end


def reset_of(sock: socket.socket) -> bool:
    """Return True if a connection ends with a reset."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return False


def test_a_stream_that_expires_ends_at_both_sides_and_resets_its_connections(world: World) -> None:
    """Its applications are this test itself, so that two seconds are enough on a slow machine."""
    with listen() as detector, reserved(world, 1, "100Mbit", "--expires", "2s") as requested, ExitStack() as links:
        for role, fields in ((CONS, {}), (PROD, {"listeners": [address_of(detector)]})):
            join = Join.parse(requested.join[role])
            facility = world.lab if role == PROD else world.centre
            link = links.enter_context(RawLink(join.server, facility.authority))
            welcome = link.ask("Hello", uid=join.uid, role=role, seq=1, app_key=join.app_key, **fields)
            assert welcome["cmd"] == "RESP"
            if role == CONS:
                consumer = link
        started = consumer.hear()
        assert started is not None
        (listener,) = started["listeners"]
        with socket.create_connection(Address.parse(listener), timeout=20) as analysis, accept(detector) as camera:
            camera.sendall(b"control")
            assert receive_exactly(analysis, 7) == b"control"
            assert together(lambda: reset_of(analysis), lambda: reset_of(camera)) == [True, True]
        until(
            lambda: requested.state(PROD) == requested.state(CONS) == "Released",
            lambda: world.lab.states(),
            seconds=10.0,
        )
        sides = json.loads(world.s2uc("status", requested.uid, "--json").stdout)["streams"][requested.uid]
        assert {side["last_error"]["code"] for side in sides.values()} == {"expired"}


@pytest.mark.parametrize("moment", ["reserving", "waiting"])
def test_ctrl_c_while_s2uc_waits_releases_both_sides(world: World, moment: str) -> None:
    gateway = world.centre.gateways[0]
    between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs, "--rate", "100Mbit"]
    if moment == "waiting":
        requested = world.request(1, "100Mbit")
        program, uid = requested.program, requested.uid
        program.process.send_signal(signal.SIGINT)
    else:
        uid = str(uuid4())
        freeze(gateway)
        try:
            program = world.start_s2uc("request", *between, "--uid", uid)
            until(lambda: world.lab.states().get((uid, PROD)) == "Listening", world.lab.server.words)
            until(lambda: world.centre.states().get((uid, CONS)) == "Reserving", world.centre.server.words)
            program.process.send_signal(signal.SIGINT)
            until(lambda: world.centre.states().get((uid, CONS)) == "Releasing", world.centre.server.words)
        finally:
            thaw(gateway)
    ended = program.end(status=1)
    assert ended.stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in ended.stderr
    assert world.lab.states()[uid, PROD] == world.centre.states()[uid, CONS] == "Released"
    assert uid not in world.s2uc("list", "--json").stdout


def test_each_daemon_ends_with_status_0_within_5_seconds_of_sigterm_with_a_stream_up(
    fresh_world: Callable[..., World],
) -> None:
    world = fresh_world()
    with ExitStack() as open_until_the_end:
        detector = open_until_the_end.enter_context(listen())
        requested = world.request(1, "100Mbit")
        consumer = world.cons(requested.join[CONS])
        world.prod(requested.join[PROD], [address_of(detector)]).end()
        requested.streaming()
        (listener,) = json.loads(consumer.end().stdout)["listeners"]
        analysis = open_until_the_end.enter_context(socket.create_connection(Address.parse(listener), timeout=20))
        camera = open_until_the_end.enter_context(accept(detector))
        for server in (world.lab.server, world.centre.server):
            assert _seconds_to_end(server) < 5
        camera.sendall(b"goes on")
        assert receive_exactly(analysis, 7) == b"goes on"
        assert _seconds_to_end(world.centre.gateways[0]) < 5
        assert reset_of(analysis)
        assert reset_of(camera)
        assert _seconds_to_end(world.lab.gateways[0]) < 5


def _seconds_to_end(daemon: Daemon) -> float:
    program, daemon.program = daemon.program, None
    assert program is not None
    started = time.monotonic()
    assert program.stop() == 0
    return time.monotonic() - started


def test_requests_that_fail_leave_no_words_of_a_crash(world: World) -> None:
    for daemon in world.daemons:
        assert "Unhandled" not in daemon.words()
        assert "Traceback" not in daemon.words()
