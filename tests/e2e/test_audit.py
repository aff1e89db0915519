"""The audit trail of installed daemons.

Each line is as documented, bytes are as sent, and nothing secret is anywhere. `scistream usage` adds up to what was
sent, even if daemons are killed meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from harness import Streaming, World, assert_same
from small_disk import small_disk
from test_refusals import RawLink, a_request, ada, everything, reserved, to_s2cs

from scistream.pki.authority import init_authority, issue
from scistream.protocol.address import Address
from scistream.protocol.join_string import Join, new_app_key
from scistream.protocol.messages import CONS, PROD
from scistream.s2cs.audit.events import KINDS, read_line
from scistream.systemd.journal import JOURNAL
from support.applications import accept, address_of, listen, noise, receive, receive_exactly
from support.facilities import HOST, Facility
from support.waiting import until

KIB = 1024
POLL = 40.0
"""Within this an S2CS has asked its gateways for their figures."""
OFTEN = {"POLL": 1.0}
OUT, BACK = noise(700 * KIB + 13, 1), noise(50 * KIB + 7, 2)


def trail_of(facility: Facility) -> Path:
    return facility.store.with_suffix(".audit.jsonl")


def lines_of(facility: Facility) -> list[Any]:
    """All lines of a facility's trail, each as the schema says."""
    return [read_line(line) for line in trail_of(facility).read_text().splitlines()]


def kinds(events: list[Any]) -> list[str]:
    return [str(event.__struct_config__.tag) for event in events]


def of_stream(facility: Facility, uid: str, *, only: str = "") -> list[Any]:
    found = [event for event in lines_of(facility) if getattr(event, "uid", None) == uid]
    return [event for event in found if only in ("", event.__struct_config__.tag)]


def end_of(facility: Facility, uid: str) -> Any:
    (end,) = until(lambda: of_stream(facility, uid, only="end"), facility.server.words, POLL)
    return end


def usage(world: World, facility: Facility, *options: str) -> list[dict[str, Any]]:
    ran = world.run(str(world.programs / "scistream"), "usage", str(facility.store), "--json", *options)
    found: list[dict[str, Any]] = json.loads(ran.stdout)
    return found


def moved(world: World, facility: Facility) -> tuple[int, int]:
    """Bytes towards consumers and producers that a facility has booked so far, on all days."""
    rows = usage(world, facility)
    return sum(row["bytes_to_consumer"] for row in rows), sum(row["bytes_to_producer"] for row in rows)


def exchange(stream: Streaming, detector: socket.socket) -> None:
    """One connection: `OUT` to the consumer, `BACK` to the producer, and a clean end."""
    with stream.connect() as analysis, accept(detector) as camera:
        analysis.sendall(BACK)
        analysis.shutdown(socket.SHUT_WR)
        assert receive(camera) == BACK
        camera.sendall(OUT)
        camera.close()
        assert receive(analysis) == OUT


@pytest.fixture
def detector() -> Iterator[socket.socket]:
    with listen() as sock:
        yield sock


# -- a stream


def test_the_trails_of_both_facilities_tell_a_stream_s_life_and_its_bytes_as_they_were_sent(
    world: World, detector: socket.socket
) -> None:
    before = {each.name: moved(world, each) for each in world.facilities}
    with world.request(1, "100Mbit", "--label", "beamline 7\n\u2028 été") as requested:
        consumer = world.cons(requested.join[CONS])
        world.prod(requested.join[PROD], [address_of(detector)]).end()
        requested.streaming()
        stream = Streaming(requested, json.loads(consumer.end().stdout)["listeners"])
        for _ in range(3):
            exchange(stream, detector)
    for facility, role in ((world.lab, PROD), (world.centre, CONS)):
        events = of_stream(facility, stream.uid)
        assert sorted(kinds(events)) == sorted(["request", "hello", "start", "release", "end"])
        assert {event.role for event in events} == {role}
        assert {event.identity for event in events} == {"scistream:user:ada"}
        assert all(event.issuer.startswith("sha256:") for event in events)
        assert {event.server for event in events} == {facility.s2cs}
        request, hello, start, release, end = sorted(events, key=lambda event: ORDER.index(type(event).__name__))
        assert request.label == end.label == "beamline 7\n\u2028 été"
        assert (request.num_conn, request.rate) == (1, 100.0)
        assert all(event.address.startswith(f"{HOST}:") for event in (request, hello, release))
        assert hello.listeners == ([address_of(detector)] if role == PROD else [])
        if role == PROD:
            assert list(start.targets.values()) == [address_of(detector)]
        else:
            assert list(start.targets) == stream.listeners
        assert start.gateways == [facility.gateways[0].name]
        assert release.by == "scistream:user:ada"
        assert (end.bytes_to_consumer, end.bytes_to_producer) == (3 * len(OUT), 3 * len(BACK))
        assert (end.connections, end.reset, end.complete, end.code) == (3, 0, True, "released")
        assert 0 < end.streaming < end.duration < 60
        earlier = before[facility.name]
        assert moved(world, facility) == (earlier[0] + 3 * len(OUT), earlier[1] + 3 * len(BACK))


ORDER = ["RequestEvent", "HelloEvent", "StartEvent", "ReleaseEvent", "EndEvent"]


def test_later_targets_are_told_and_a_connection_that_is_cut_counts_what_it_carried(
    world: World, detector: socket.socket
) -> None:
    with listen() as second, world.stream([address_of(detector)], rate="100Mbit") as stream:
        world.prod(stream.requested.join[PROD], [address_of(second)]).end()
        world.s2uc("attach", stream.uid)
        with stream.connect() as analysis, accept(second) as camera:
            camera.sendall(OUT)
            assert receive_exactly(analysis, len(OUT)) == OUT
            stream.requested.release()
        (targets,) = of_stream(world.lab, stream.uid, only="targets")
        assert len(of_stream(world.lab, stream.uid, only="hello")) == 2
        assert (targets.generation > 1, list(targets.targets.values())) == (True, [address_of(second)])
    for facility in world.facilities:
        end = end_of(facility, stream.uid)
        assert (end.bytes_to_consumer, end.connections, end.reset) == (len(OUT), 1, 1)


def test_a_reset_of_an_application_is_told_with_its_reason(world: World, detector: socket.socket) -> None:
    with world.stream([address_of(detector)], rate="100Mbit") as stream:
        analysis, camera = stream.connect(), accept(detector)
        with camera:
            analysis.sendall(BACK)
            assert receive_exactly(camera, len(BACK)) == BACK
            analysis.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            analysis.close()
            with pytest.raises(ConnectionResetError):
                camera.recv(1)
        until(lambda: "reset the connection" in world.s2uc("status", stream.uid).stdout, lambda: "no reason in Status")
        stream.requested.release()
    (told,) = of_stream(world.centre, stream.uid, only="resets")
    assert (told.channel, told.cause, told.count) == (0, "application", 1)
    assert told.reason == "ConsApp reset the connection"


def test_a_stream_that_expires_ends_with_that_and_all_its_bytes(world: World, detector: socket.socket) -> None:
    requested = world.request(1, "100Mbit", "--expires", "6s")
    consumer = world.cons(requested.join[CONS])
    world.prod(requested.join[PROD], [address_of(detector)]).end()
    requested.streaming()
    stream = Streaming(requested, json.loads(consumer.end().stdout)["listeners"])
    exchange(stream, detector)
    for facility in world.facilities:
        end = end_of(facility, stream.uid)
        assert (end.bytes_to_consumer, end.bytes_to_producer) == (len(OUT), len(BACK))
        assert (end.complete, end.code, end.reason) == (True, "expired", "the time of this stream is over")
        assert "release" not in kinds(of_stream(facility, stream.uid))


# -- refusals


def refused_by(facility: Facility, act: Callable[[], object]) -> list[Any]:
    """Return the audit lines about refusals that `act` causes; check that there is at least one."""
    before = len(lines_of(facility))

    def new() -> list[Any]:
        about = ("refused", "link-refused", "bad-line")
        return [event for event in lines_of(facility)[before:] if kinds([event])[0] in about]

    act()
    return list(until(new, facility.server.words))


def test_a_wrong_hello_is_told_with_where_it_came_from_and_not_with_its_key(world: World) -> None:
    with reserved(world) as requested:
        join = Join.parse(requested.join[CONS])
        wrong = new_app_key()
        with RawLink(world.centre.server.address, world.centre.authority) as link:
            hello = {"uid": join.uid, "role": CONS, "seq": 1}
            (line,) = refused_by(world.centre, lambda: link.ask("Hello", **hello, app_key=wrong))
        assert (line.cmd, line.uid, line.role, line.code) == ("Hello", join.uid, CONS, "not-authorized")
        assert (line.identity, line.issuer) == (None, None)
        assert line.address.startswith(f"{HOST}:")
        assert wrong not in trail_of(world.centre).read_text()
        assert of_stream(world.centre, join.uid, only="hello") == []
        with RawLink(world.centre.server.address, world.centre.authority) as link:
            assert link.ask("Hello", **hello, app_key=join.app_key)["cmd"] == "RESP"
        assert len(of_stream(world.centre, join.uid, only="hello")) == 1


def test_a_refusal_of_another_user_is_recorded_with_their_name(world: World) -> None:
    name = f"eve-{uuid4()}@lab.example"
    eve = issue(world.folder / "users", "user", name)
    with reserved(world) as requested, to_s2cs(world, eve) as link:
        update = {"generation": 9, "connection_map": {"127.0.0.1:1": "127.0.0.1:2"}, "data_conn_key": "x"}
        for cmd, fields, code in (
            ("REQ", a_request(), "uid-in-use"),
            ("UpdateTargets", update, "unknown-uid"),
            ("REL", {}, "unknown-uid"),
            ("Status", {}, "unknown-uid"),
        ):
            said = {**fields, "uid": requested.uid, "role": PROD, "seq": 2}
            (line,) = refused_by(world.lab, lambda cmd=cmd, said=said: link.ask(cmd, **said))  # type: ignore[misc]
            assert (line.cmd, line.code, line.uid, line.identity) == (cmd, code, requested.uid, name)
        assert of_stream(world.lab, requested.uid, only="release") == []
    assert len(of_stream(world.lab, requested.uid, only="end")) == 1


def test_a_request_that_is_refused_is_told_as_asked_and_with_the_reason(world: World) -> None:
    with to_s2cs(world, ada(world)) as link:
        long = {**a_request(), "expires": 8 * 86400.0, "label": "too long"}
        (line,) = refused_by(world.lab, lambda: link.ask("REQ", **long))
        assert (line.cmd, line.code) == ("REQ", "not-authorized")
        assert "at most 604800 s" in line.reason
        many = {**a_request(), "num_conn": 900}
        (line,) = refused_by(world.lab, lambda: link.ask("REQ", **many))
        assert line.code == "no-ports"
        assert kinds(of_stream(world.lab, long["uid"])) == ["request", "refused"]
        fine = a_request()
        assert link.ask("REQ", **fine)["state"] == "Listening"
        assert link.ask("REL", uid=fine["uid"], role=PROD, seq=2)["state"] == "Released"
        assert kinds(of_stream(world.lab, fine["uid"])) == ["request", "release", "end"]


def test_a_failure_at_the_listener_is_recorded_with_the_reason(world: World, tmp_path: Path) -> None:
    init_authority(tmp_path / "elsewhere", "Elsewhere")
    stranger = issue(tmp_path / "elsewhere", "user", "ada")

    def without_alpn() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(world.lab.authority)
        sock = socket.create_connection(world.lab.server.address, timeout=20)
        with context.wrap_socket(sock, server_hostname=HOST) as link:
            assert link.recv(1) == b""

    def unknown() -> None:
        with to_s2cs(world, stranger) as link:
            assert link.hear() is None

    def rubbish() -> None:
        with socket.create_connection(world.lab.server.address, timeout=20) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while sock.recv(4096):
                pass

    for act, words in (
        (without_alpn, "does not speak scistream/1"),
        (unknown, "its authority is not in `authorities`"),
        (rubbish, "does not speak TLS"),
    ):
        lines = refused_by(world.lab, act)
        assert kinds(lines) == ["link-refused"]
        assert words in lines[0].reason
        assert lines[0].address.startswith(f"{HOST}:")
    before = len(lines_of(world.lab))
    with to_s2cs(world, ada(world)) as link:
        assert link.ask("Status", **everything())["cmd"] == "RESP"
    assert len(lines_of(world.lab)) == before


def test_invalid_lines_are_recorded_with_their_sender_and_the_one_that_closed_the_link(world: World) -> None:
    name = f"mallory-{uuid4()}@lab.example"
    mallory = issue(world.folder / "users", "user", name)
    uid = str(uuid4())
    before = len(lines_of(world.lab))
    with to_s2cs(world, mallory) as link:
        link.send(b'{"cmd": "REL", "uid": "%b", "role": "BOTH", "seq": 1}\n' % uid.encode())
        assert link.hear() is not None
        assert link.ask("Status", **everything())["cmd"] == "RESP", "what is one is not told"
        for _ in range(7):
            link.send(b"GET / HTTP/1.1\n")
            assert link.hear() is not None
        assert link.hear() is None
    lines = lines_of(world.lab)[before:]
    assert kinds(lines) == ["bad-line"] * 8
    assert {line.identity for line in lines} == {name}
    assert [line.uid for line in lines] == [uid] + [None] * 7
    assert "role" in lines[0].reason
    assert "not JSON" in lines[1].reason
    assert [line.closed for line in lines] == [False] * 7 + [True]
    with RawLink(world.lab.server.address, world.lab.authority) as stranger:
        (line,) = refused_by(world.lab, lambda: stranger.send(b" " * 70_000))
        assert (line.identity, line.uid, line.closed) == (None, None, True)
        assert "65536" in line.reason
    with RawLink(world.lab.server.address, world.lab.authority) as stranger:
        (line,) = refused_by(
            world.lab, lambda: stranger.send(b'{"cmd":"RESP","uid":null,"seq":1,"state":"","msg":""}\n')
        )
        assert (line.reason, line.closed) == ("an answer without a command", False)


# -- whoever is killed


def test_a_gateway_that_is_killed_leaves_a_lower_bound(
    fresh_world: Callable[..., World], detector: socket.socket
) -> None:
    world = fresh_world(timing=OFTEN)
    with world.stream([address_of(detector)], rate="100Mbit") as stream:
        exchange(stream, detector)
        until(lambda: moved(world, world.lab) == (len(OUT), len(BACK)), world.lab.server.words, POLL)
        exchange(stream, detector)
        world.lab.gateways[0].kill()
        world.lab.gateways[0].start()
        world.lab.gateways[0].wait_until_ready()
        end = end_of(world.lab, stream.uid)
        stream.requested.release()
    assert (end.complete, end.code) == (False, "gateway-failed")
    assert len(OUT) <= end.bytes_to_consumer <= 2 * len(OUT)
    assert end_of(world.centre, stream.uid).bytes_to_consumer == 2 * len(OUT)
    assert moved(world, world.lab) == (end.bytes_to_consumer, end.bytes_to_producer)


def test_after_a_kill_of_the_s2cs_in_the_middle_all_bytes_are_there_once(
    fresh_world: Callable[..., World], detector: socket.socket
) -> None:
    world = fresh_world(timing=OFTEN)
    server = world.lab.server
    with world.stream([address_of(detector)], rate="100Mbit") as stream:
        exchange(stream, detector)
        until(lambda: moved(world, world.lab) == (len(OUT), len(BACK)), server.words, POLL)
        exchange(stream, detector)
        for _ in range(2):
            server.kill()
            exchange(stream, detector)
            server.start()
            server.wait_until_ready()
            world.lab.wait_for_links()
    end = end_of(world.lab, stream.uid)
    assert (end.bytes_to_consumer, end.bytes_to_producer) == (4 * len(OUT), 4 * len(BACK))
    assert (end.connections, end.complete, end.code) == (4, True, "released")
    assert moved(world, world.lab) == (4 * len(OUT), 4 * len(BACK))
    assert kinds(lines_of(world.lab)).count("server-start") == 3
    assert [event.streams for event in lines_of(world.lab) if kinds([event]) == ["server-start"]] == [0, 1, 1]


def test_usage_is_shown_as_a_table_while_the_s2cs_runs(world: World, detector: socket.socket) -> None:
    with world.stream([address_of(detector)], rate="100Mbit") as stream:
        exchange(stream, detector)
    shown = world.run(str(world.programs / "scistream"), "usage", str(world.lab.store), "--by", "identity").stdout
    (row,) = usage(world, world.lab, "--by", "identity")
    assert row["identity"] == "scistream:user:ada"
    assert row["streams"] >= 1
    assert re.search(rf"scistream:user:ada .*sha256:.* {row['streams']} .* kB|MB", shown)
    day = usage(world, world.lab, "--by", "day")[-1]["day"]
    assert usage(world, world.lab, "--since", day, "--by", "day") != []
    refused = world.run(str(world.programs / "scistream"), "usage", str(world.folder / "nothing"), status=2)
    assert "cannot be read: No such file" in refused.stderr


# -- the file


def test_a_trail_that_logrotate_moves_goes_on_in_a_new_file(world: World) -> None:
    trail = trail_of(world.lab)
    rotated = trail.with_suffix(".1")
    before = world.footprint()
    with reserved(world) as requested:
        trail.rename(rotated)
    assert "request" in rotated.read_text()
    assert "end" in kinds(of_stream(world.lab, requested.uid))
    assert oct(trail.stat().st_mode)[-3:] == "600"
    assert_same(before, world.footprint)
    trail.write_text(rotated.read_text() + trail.read_text())


def test_the_start_and_the_end_of_a_server_are_told(fresh_world: Callable[..., World]) -> None:
    world = fresh_world()
    world.lab.server.stop()
    start, stop = lines_of(world.lab)
    assert (kinds([start, stop]), start.gateways, start.streams, stop.streams) == (
        ["server-start", "server-stop"],
        [world.lab.gateways[0].name],
        0,
        0,
    )
    world.lab.server.start()
    world.lab.server.wait_until_ready()


def test_while_the_trail_cannot_be_written_no_new_stream_is_taken_and_the_others_go_on(
    tmp_path: Path, detector: socket.socket
) -> None:
    folder = tmp_path / "world"
    folder.mkdir()
    with small_disk(tmp_path / "disk") as disk:
        trail = disk.folder / "audit.jsonl"
        world = World(folder, lab={"settings": {"audit": str(trail)}})
        with world, world.stream([address_of(detector)], rate="100Mbit") as stream:
            disk.fill()
            fill_up(trail)
            before = world.footprint()
            between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs]
            for _ in range(2):
                refused = world.s2uc("request", *between, check=False)
                assert refused.returncode == 1
                assert "this S2CS cannot write its audit trail, so it accepts no new streams" in refused.stderr
                assert_same(before, world.footprint)
            assert world.lab.server.words().count(f"AUDIT: {trail} cannot be written") == 1
            exchange(stream, detector)
            stream.requested.release()
            assert '"event":"end"' not in trail.read_text()
            disk.clear()
            control = world.request(1, "100Mbit")
            control.release()
            events = [read_line(line) for line in trail.read_text().splitlines() if line.startswith("{")]
            (end,) = [event for event in events if kinds([event]) == ["end"] and event.uid == stream.uid]
            assert end.bytes_to_consumer == len(OUT)
            assert [event.cmd for event in events if kinds([event]) == ["refused"]].count("REQ") == 2
            assert "can be written again; lines lost: 0" in world.lab.server.words()
        disk.clear()


def fill_up(file: Path) -> None:
    """Take the room that is left in the last page of a file."""
    with open(file, "ab", buffering=0) as end:
        end.write(b" " * (-end.tell() % 4096 - 1) + b"\n")


def test_an_s2cs_that_cannot_keep_its_trail_where_it_should_does_not_start(
    fresh_world: Callable[..., World], tmp_path: Path
) -> None:
    if JOURNAL.exists():
        pytest.skip("this machine has a journal")
    world = fresh_world()
    settings = world.lab.server.file
    world.lab.server.stop()
    for value, words in (
        ("journal", f"audit: there is no journal at {JOURNAL}"),
        (str(tmp_path / "nowhere" / "audit.jsonl"), "cannot be opened: No such file or directory"),
    ):
        other = settings.with_name("other.toml")
        other.write_text(f"audit = {json.dumps(value)}\n" + settings.read_text())
        ended = world.run(str(world.programs / "twistd"), "-n", "--pidfile=", "s2cs", "--config", str(other), status=2)
        assert words in ended.stderr
    world.lab.server.start()
    world.lab.server.wait_until_ready()


# -- secrets


def command_lines() -> str:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
    return "\n".join(found)


@pytest.mark.usefixtures("executed")
def test_no_secret_of_a_run_is_in_any_trail_log_store_or_command_line(
    fresh_world: Callable[..., World], detector: socket.socket
) -> None:
    world = fresh_world()
    seen: list[str] = []
    with world.stream([address_of(detector)], rate="100Mbit") as stream:
        joins = list(stream.requested.join.values())
        wrong = Join(stream.uid, new_app_key(), Address.parse(world.centre.s2cs), CONS, "0" * 64)
        with RawLink(world.centre.server.address, world.centre.authority) as link:
            link.ask("Hello", uid=stream.uid, role=CONS, seq=1, app_key=wrong.app_key)
        exchange(stream, detector)
        seen.append(command_lines())
        assert "s2cs" in seen[0]
    secrets = {*joins, wrong.app_key, *(Join.parse(join).app_key for join in joins)}
    for file in world.folder.rglob("*.key"):
        secrets.update(line for line in file.read_text().splitlines() if not line.startswith("-----"))
    written = [
        file
        for facility in world.facilities
        for file in facility.folder.iterdir()
        if file.suffix in (".log", ".err", ".jsonl") or file.name.startswith(facility.store.name)
    ]
    assert {file.suffix for file in written} >= {".log", ".err", ".jsonl", ".sqlite"}
    for file in written:
        text = file.read_bytes().decode(errors="replace")
        assert "PRIVATE KEY" not in text
        seen.append(text)
    everything_seen = "\n".join(seen)
    assert stream.uid in everything_seen
    assert len(secrets) > 10
    assert [secret for secret in secrets if secret in everything_seen] == []


@pytest.mark.after_the_others
def test_every_kind_of_line_was_seen_by_these_tests(world: World) -> None:
    """But for those that need a disk of their own, a gateway that lies, several paths, or the end of a server.

    The line about an extension is looked at in test_lifetime.py, and the one about a drain in test_drain.py.
    """
    seen = set(kinds(lines_of(world.lab) + lines_of(world.centre)))
    elsewhere = {"server-stop", "lines-lost", "implausible-figures", "path", "extend", "drain"}
    assert seen == {str(kind.__struct_config__.tag) for kind in KINDS} - elsewhere
    assert os.stat(trail_of(world.lab)).st_mode & 0o777 == 0o600
