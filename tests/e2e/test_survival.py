"""Any party may crash, fall silent, lose its links or never come back, at any step of a stream.

Whatever happens, no application gets a wrong byte or a clean end that is none, both sides come to agree, and ports,
capacity, records and processes are as they were before: a stream that takes all there is can be had again.

The matrix kills each party at each step (`lives`). Left out are:

- S2UC before REQ: nobody has heard of the stream yet.
- An application controller before the join strings are there, that is before both sides have reserved.
- A party while the other side is in the middle of something: its own side rests, in a state that has its own cell.
- ``s2uc`` while it streams: the command has ended by then. A program that holds its stream by the library stands in.
"""

from __future__ import annotations

import json
import random
import re
import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from glob import glob
from pathlib import Path
from typing import Any

import pytest
from duplex_traffic import Exchange
from fault_matrix import (
    ATTACH,
    BEFORE,
    CHANNELS,
    LISTENING,
    NEVER,
    POOL,
    RATE,
    READY,
    RELEASE,
    RELEASING,
    RESERVING,
    RESTART,
    STREAMING,
    UPDATING,
    Cell,
    Life,
    both_are,
    freeze,
    hold_a_stream,
    nothing_is_left,
    restart,
    states,
    story,
    thaw,
)
from flaky_proxy import Cutter
from harness import Requested, World, assert_same
from lanes import Lanes, beside, lanes_of
from test_refusals import RawLink, ada

from scistream.protocol.messages import CONS, PROD, Role
from support.facilities import Daemon, Facility
from support.programs import Program
from support.requirements import needs
from support.waiting import until

AGAIN = 20
"""How often each cell of the matrix is tried at random instants."""
SILENCE = 11.0
"""Seconds that exceed all limits in `SHORTER`, as 20 s do with the usual ones."""
SHORTER = {"GATEWAY_ANSWER": 10.0, "GATEWAY_STATUS": 10.0, "POLL": 7.0, "LONGEST_REPEAT": 5.0}
ONE = "100Mbit"
SIDES = {PROD: "producer", CONS: "consumer"}


@pytest.fixture(scope="module")
def lanes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, linux: None) -> Iterator[Lanes]:
    """Run the tests of this file side by side."""
    with lanes_of(request, tmp_path_factory.mktemp("lanes")) as lanes:
        yield lanes


class Asked:
    """A stream for which a user waits, and its applications.

    :param opened: closes what is opened here.
    :param options: of ``s2uc request``.
    """

    def __init__(self, world: World, opened: ExitStack, *options: str, channels: int = 1, rate: str = ONE) -> None:
        self.world = world
        self.exchange = opened.enter_context(Exchange(channels))
        self.requested = world.request(channels, rate, *options)
        self.uid = self.requested.uid
        self.is_released = False
        self._consumer: Program

    def greet(self) -> None:
        """Let both applications say Hello."""
        self._consumer = self.world.cons(self.requested.join["CONS"])
        self.world.prod(self.requested.join["PROD"], self.exchange.listen)

    def carry(self) -> None:
        """Wait until it streams, and let bytes flow."""
        self.requested.streaming()
        assert self.exchange.connect(json.loads(self._consumer.end().stdout)["listeners"])
        self.exchange.wait_for_more()

    def carry_to_the_end(self) -> None:
        """Wait until it streams, let bytes flow until both applications end, and release it."""
        self.carry()
        assert self.exchange.finish() == "whole"
        assert both_are(self.world, self.uid, "Streaming")
        self.release()

    def release(self) -> None:
        """End it at both sides."""
        self.is_released = True
        self.requested.release()


@contextmanager
def flowing(world: World, channels: int = 1, rate: str = ONE, *options: str) -> Iterator[Asked]:
    """Request a stream and let bytes flow in both directions; release it at the end, unless that has been done."""
    with ExitStack() as opened:
        asked = Asked(world, opened, *options, channels=channels, rate=rate)
        asked.greet()
        asked.carry()
        yield asked
        if not asked.is_released:
            asked.release()


def sides_of(world: World, uid: str) -> dict[str, Any]:
    """Return what `s2uc status` reports of a stream."""
    sides: dict[str, Any] = json.loads(world.s2uc("status", uid, "--json").stdout)["streams"][uid]
    return sides


def facility_of(world: World, role: Role) -> Facility:
    return world.lab if role == PROD else world.centre


# Restarts of servers


@beside()
def test_a_restart_of_both_control_servers_disturbs_no_byte_and_commands_work_as_before(world: World) -> None:
    servers = [facility.server for facility in world.facilities]
    before = world.footprint()
    with flowing(world) as leaving, flowing(world) as staying:
        for end in (Daemon.kill, Daemon.stop):
            for server in servers:
                end(server)
            for asked in (leaving, staying):
                asked.exchange.wait_for_more()
            for facility in world.facilities:
                restart(facility.server, facility)
            for asked in (leaving, staying):
                asked.exchange.wait_for_more()
            for side in sides_of(world, staying.uid).values():
                assert (side["state"], side.get("last_error")) == ("Streaming", None)
                (figures,) = side["figures"]
                assert figures["connections"] == figures["accepted"] == 1
                assert figures["bytes_to_producer"] > 0
                assert figures["bytes_to_consumer"] > 0
            assert "is Streaming" in world.s2uc("wait", staying.uid).stdout
        assert {one["uid"] for one in json.loads(world.s2uc("list", "--json").stdout)} >= {staying.uid, leaving.uid}
        leaving.release()
        assert leaving.exchange.finish() == "reset"
        staying.exchange.wait_for_more()
        assert staying.exchange.finish() == "whole"
    assert_same(before, world.footprint)


@pytest.mark.parametrize("role", [PROD, CONS])
@beside(lab=POOL, centre=POOL)
def test_a_restart_of_a_gateway_is_told_to_the_program_that_holds_the_stream(world: World, role: Role) -> None:
    before, uid = world.footprint(), str(uuid.uuid4())
    facility = facility_of(world, role)
    with Exchange(CHANNELS) as exchange:
        program = hold_a_stream(world, uid)
        join = json.loads(program.line())["join"]
        consumer = world.cons(join["CONS"])
        world.prod(join["PROD"], exchange.listen).end()
        assert json.loads(program.line()) == {"state": "Streaming"}
        exchange.connect(json.loads(consumer.end().stdout)["listeners"])
        exchange.wait_for_more()
        facility.gateways[0].kill()
        until(exchange.is_reset, lambda: f"not all is reset:\n{exchange}")
        restart(facility.gateways[0], facility)
        said = json.loads(program.line())
        assert said["state"] == "Released"
        for part in ("gateway-failed", f"{SIDES[role]} side", facility.gateways[0].name, "restarted"):
            assert part in said["error"]
        program.end()
        assert both_are(world, uid, "Released")
        assert exchange.finish() == "reset"
    nothing_is_left(world, before)


@pytest.mark.parametrize("role", [PROD, CONS])
@beside(lab=POOL, centre=POOL)
def test_after_a_restart_of_a_gateway_status_says_why_its_streams_have_ended(world: World, role: Role) -> None:
    before, facility = world.footprint(), facility_of(world, role)
    with flowing(world, CHANNELS, RATE) as stream:
        facility.gateways[0].kill()
        until(stream.exchange.is_reset, lambda: f"not all is reset:\n{stream.exchange}")
        restart(facility.gateways[0], facility)
        until(lambda: "Released" in states(world, stream.uid), lambda: story(world, stream.uid))
        sides = sides_of(world, stream.uid)
        assert (sides[role]["state"], sides[role]["last_error"]["code"]) == ("Released", "gateway-failed")
        assert facility.gateways[0].name in sides[role]["last_error"]["msg"]
        (other,) = (sides[one] for one in sides if one != role)
        assert other["state"] == "Streaming"
        assert re.search(rf"{SIDES[role]}.* Released .*gateway-failed", world.s2uc("status", stream.uid).stdout)
    nothing_is_left(world, before)


TWO_GATEWAYS = {"gateways": 2, "ports": 2, "gateway": {"capacity": "400Mbit"}}


@beside(lab=TWO_GATEWAYS, centre=TWO_GATEWAYS)
def test_while_one_gateway_of_a_pool_is_gone_new_streams_go_to_the_other(world: World) -> None:
    before, lab = world.footprint(), world.lab
    with ExitStack() as opened:
        staying = opened.enter_context(flowing(world))
        (left,) = (gateway for gateway in lab.gateways if gateway.ports_in_use())
        (gone,) = (gateway for gateway in lab.gateways if gateway is not left)
        with flowing(world) as struck:
            assert len(gone.ports_in_use()) == 1
            gone.kill()
            until(struck.exchange.is_reset, lambda: f"not all is reset:\n{struck.exchange}")
            mark = f"no link to {gone.name}"
            until(lambda: mark in lab.server.words(), lambda: f"{mark} is not logged")
            with flowing(world) as other:
                assert len(left.ports_in_use()) == 2
                between = ["--prod", lab.s2cs, "--cons", world.centre.s2cs, "--rate", ONE]
                refused = world.s2uc("request", *between, check=False)
                assert refused.returncode == 1
                assert "no-ports: producer side" in refused.stderr
                assert other.exchange.finish() == "whole"
            staying.exchange.wait_for_more()
            restart(gone, lab)
            until(lambda: states(world, struck.uid)[0] == "Released", lambda: story(world, struck.uid))
            assert gone.name in sides_of(world, struck.uid)["PROD"]["last_error"]["msg"]
        assert staying.exchange.finish() == "whole"
    assert_same(before, world.footprint)
    with flowing(world, 4, "400Mbit") as wide:
        assert [len(gateway.ports_in_use()) for gateway in lab.gateways] == [2, 2]
        assert wide.exchange.finish() == "whole"
    assert_same(before, world.footprint)


@beside(lab=TWO_GATEWAYS, centre=TWO_GATEWAYS, timing={"POLL": 3.0, "GATEWAY_STATUS": 8.0})
def test_a_gateway_of_a_pool_that_falls_silent_gets_no_new_streams_until_it_answers(world: World) -> None:
    before, lab = world.footprint(), world.lab
    silent, other = lab.gateways
    with ExitStack() as opened:
        opened.callback(thaw, silent)
        freeze(silent)
        until(lambda: f"{silent.name} does not answer" in lab.server.words(), lab.server.words, 45.0)
        for streams in (1, 2):
            opened.enter_context(flowing(world))
            assert len(other.ports_in_use()) == streams
        mark = len(lab.server.words())
        thaw(silent)
        until(lambda: f"{silent.name} answers again" in lab.server.words()[mark:], lab.server.words, 20.0)
        opened.enter_context(flowing(world))
        assert [len(gateway.ports_in_use()) for gateway in lab.gateways] == [1, 2]
    assert_same(before, world.footprint)


# Silence, and links that break


@pytest.mark.parametrize("role", [PROD, CONS])
@beside(timing=SHORTER)
def test_a_control_server_that_is_silent_for_long_leaves_both_sides_agreed(world: World, role: Role) -> None:
    before, facility = world.footprint(), facility_of(world, role)
    gateway, server = facility.gateways[0], facility.server
    side = [PROD, CONS].index(role)
    uid = str(uuid.uuid4())
    between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs, "--rate", ONE]
    with ExitStack() as opened:
        opened.callback(thaw, gateway, server)
        staying, leaving = (opened.enter_context(flowing(world)) for _ in range(2))
        listening, ready, updating = (Asked(world, opened) for _ in range(3))
        freeze(ready.requested.program)
        ready.greet()
        until(lambda: both_are(world, ready.uid, "Ready"), lambda: story(world, ready.uid))
        freeze(gateway)
        reserving = world.start_s2uc("request", "--json", "--uid", uid, *between)
        updating.greet()
        release = world.start_s2uc("release", leaving.uid)
        leaving.is_released = True
        held = {uid: "Reserving", updating.uid: "Updating", leaving.uid: "Releasing"}
        until(lambda: {one: states(world, one)[side] for one in held} == held, lambda: story(world, uid))
        freeze(server)
        ends = time.monotonic() + SILENCE
        thaw(gateway, ready.requested.program)
        before_req = world.start_s2uc("request", "--json", *between)
        listening.greet()
        while time.monotonic() < ends:
            staying.exchange.wait_for_more()
        thaw(server)
        for asked in (listening, ready):
            asked.carry_to_the_end()
        release.end()
        assert both_are(world, leaving.uid, "Released")
        assert leaving.exchange.finish() == "reset"
        requests = [Requested(world, before_req)]
        # What waited for its gateway all that time may have been given up, by both sides.
        if is_done(updating.requested.program):
            updating.carry_to_the_end()
        else:
            assert both_are(world, updating.uid, "Released")
        if is_reserved(reserving):
            requests.append(Requested(world, reserving))
        else:
            until(lambda: both_are(world, uid, "Released"), lambda: story(world, uid))
        for requested in requests:
            requested.program.ask_to_end()
            requested.program.end(status=1)
            assert both_are(world, requested.uid, "Released")
        assert staying.exchange.finish() == "whole"
    assert_same(before, world.footprint)


def is_reserved(program: Program) -> bool:
    """Return True if an s2uc comes to print the join strings; otherwise it says that this was given up."""
    until(lambda: program.has_line() or program.process.poll() is not None, lambda: f"it does not end: {program}")
    return '"join"' in program.peek() if program.has_line() else is_done(program)


def is_done(program: Program) -> bool:
    """Return True if an s2uc ends well; otherwise it says in a line what was given up."""
    ended = program.end(status=None)
    assert ended.returncode in (0, 1)
    assert ended.returncode == 0 or ended.stderr.splitlines()[-1].startswith("error: "), str(program)
    return ended.returncode == 0


@beside()
def test_links_that_break_all_the_time_only_delay_a_stream(world: World) -> None:
    before = world.footprint()
    for _ in range(3):
        with ExitStack() as opened:
            chance = random.Random()
            cutters = [
                opened.enter_context(Cutter(facility.server.address, (0.05, 0.4), chance))
                for facility in world.facilities
            ]
            exchange = opened.enter_context(Exchange(1))
            between = ["--prod", cutters[0].address, "--cons", cutters[1].address, "--rate", ONE]
            requested = Requested(world, world.start_s2uc("request", "--json", *between))
            joins = requested.join
            for cutter in cutters:  # s2uc waits for ProdApp, over links that break
                until(cutter.has_cut, lambda: "no link was cut")
            consumer = world.cons(joins["CONS"])
            world.prod(joins["PROD"], exchange.listen).end()
            requested.streaming()
            assert exchange.connect(json.loads(consumer.end().stdout)["listeners"])
            exchange.wait_for_more()
            assert both_are(world, requested.uid, "Streaming")
            assert exchange.finish() == "whole"
            requested.release()
            assert both_are(world, requested.uid, "Released")
    assert_same(before, world.footprint)


@pytest.mark.parametrize("how", ["silent", "gone"])
@pytest.mark.parametrize("role", [PROD, CONS])
@beside(lab=POOL, centre=POOL)
def test_a_release_waits_for_a_gateway_that_cannot_be_reached_and_its_user_need_not(
    world: World, role: Role, how: str
) -> None:
    before, facility = world.footprint(), facility_of(world, role)
    gateway, side = facility.gateways[0], [PROD, CONS].index(role)
    with ExitStack() as opened:
        opened.callback(thaw, gateway)
        stream = opened.enter_context(flowing(world, CHANNELS, RATE))
        if how == "silent":
            freeze(gateway)
        else:
            gateway.kill()
        release = world.start_s2uc("release", stream.uid)
        expected = ("Releasing", "Released") if role == PROD else ("Released", "Releasing")
        until(lambda: states(world, stream.uid) == expected, lambda: story(world, stream.uid))
        assert sides_of(world, stream.uid)[role]["state"] == "Releasing"
        assert release.process.poll() is None
        release.process.send_signal(signal.SIGINT)
        *waiting, error = release.end(status=1).stderr.splitlines()
        assert set(waiting) <= {f"waiting for the {SIDES[role]} side at {facility.s2cs}"}
        assert f"the {SIDES[role]} side at {facility.s2cs} has not confirmed the release" in error
        assert stream.uid in world.s2uc("list", "--json").stdout
        assert states(world, stream.uid)[side] == "Releasing"
        if how == "silent":
            thaw(gateway)
        else:
            restart(gateway, facility)
        until(lambda: both_are(world, stream.uid, "Released"), lambda: story(world, stream.uid))
        assert stream.exchange.finish() == "reset"
        stream.release()
        assert stream.uid not in world.s2uc("list", "--json").stdout
    nothing_is_left(world, before)


# Two users of one uid


def request_elsewhere(world: World, uid: str, place: str, prod: str = "", cons: str = "") -> Program:
    """``s2uc request`` on another machine of the same user: it does not know what she has asked for here."""
    between = ["--prod", prod or world.lab.s2cs, "--cons", cons or world.centre.s2cs, "--rate", ONE]
    env = {"XDG_STATE_HOME": str(world.folder / place)}
    return world.start(str(world.programs / "s2uc"), "request", "--json", "--uid", uid, *between, env=env)


@beside()
def test_of_two_requests_for_one_uid_the_second_is_refused_and_does_the_first_no_harm(world: World) -> None:
    before = world.footprint()
    with ExitStack() as opened:
        first = Asked(world, opened)
        here = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs, "--uid", first.uid]
        for second in (world.start_s2uc("request", *here), request_elsewhere(world, first.uid, "elsewhere")):
            assert "uid-in-use" in second.end(status=1).stderr
            assert both_are(world, first.uid, "Listening")
            assert first.uid in world.s2uc("list", "--json").stdout
        first.greet()
        first.carry_to_the_end()
    assert_same(before, world.footprint)


@beside()
def test_of_two_requests_for_one_uid_at_the_same_time_at_most_one_wins_and_nothing_stays(world: World) -> None:
    before, winners = world.footprint(), 0
    for number in range(4):
        uid = str(uuid.uuid4())
        both = [request_elsewhere(world, uid, f"{place}-{number}") for place in ("here", "there")]
        until(
            lambda both=both: all(one.has_line() or one.process.poll() is not None for one in both),
            lambda uid=uid: story(world, uid),
        )
        won = [one for one in both if one.has_line() and '"join"' in one.peek()]
        for loser in (one for one in both if one not in won):
            assert "uid-in-use" in loser.end(status=1).stderr
        assert len(won) <= 1, story(world, uid)
        winners += len(won)
        for winner in won:
            assert both_are(world, uid, "Listening")
            winner.ask_to_end()
            winner.end(status=1)
        assert both_are(world, uid, "Released")
    assert_same(before, world.footprint)


@beside()
def test_equal_requests_on_two_links_are_one_stream(world: World) -> None:
    before = world.footprint()
    req = {"role": "PROD", "num_conn": 2, "rate": 10.0, "app_key_hash": "0" * 64, "uid": str(uuid.uuid4())}
    with ExitStack() as opened:
        links = [
            opened.enter_context(RawLink(world.lab.server.address, world.lab.authority, ada(world))) for _ in range(2)
        ]
        for link in links:
            link.say("REQ", seq=1, **req)
        answers = []
        for link in links:
            answer = link.hear()
            while answer is not None and answer["state"] == "Reserving":
                answer = link.hear()
            assert answer is not None
            answers.append(answer)
        assert answers[0]["state"] == answers[1]["state"] == "Listening"
        assert answers[0]["listeners"] == answers[1]["listeners"]
        assert len(world.lab.gateways[0].ports_in_use()) == 2
        released = [link.ask("REL", uid=req["uid"], role="PROD", seq=2) for link in links]
        assert [one["state"] for one in released] == ["Released", "Released"]
    assert_same(before, world.footprint)


# Time


@beside(lab=POOL, centre=POOL)
def test_a_stream_without_user_and_control_servers_ends_when_it_expires(world: World) -> None:
    before, life = world.footprint(), 8.0
    with ExitStack() as opened:
        asked_at = time.monotonic()
        asked = Asked(world, opened, "--expires", f"{life}s", channels=CHANNELS, rate=RATE)
        asked.greet()
        asked.carry()
        for facility in world.facilities:
            facility.server.kill()
        asked.exchange.wait_for_more()
        until(asked.exchange.is_reset, lambda: f"it does not expire:\n{asked.exchange}", life + 5.0)
        assert asked_at + life <= time.monotonic() <= asked_at + life + 5.0
        assert asked.exchange.finish() == "reset"
        gateways = [gateway for facility in world.facilities for gateway in facility.gateways]
        until(lambda: not any(gateway.ports_in_use() for gateway in gateways), lambda: "ports are still in use")
        for facility in world.facilities:
            restart(facility.server, facility)
        until(lambda: both_are(world, asked.uid, "Released"), lambda: story(world, asked.uid))
        codes = {side["last_error"]["code"] for side in sides_of(world, asked.uid).values()}
        assert codes == {"expired"}
    nothing_is_left(world, before)


@contextmanager
def another_clock(world: World) -> Iterator[Path]:
    """Within this the wall clock of all daemons differs from the true one by what is written into a file."""
    needs("faketime")
    clock = world.folder / "clock"
    clock.write_text("+0")
    for daemon in world.daemons:
        daemon.env = {
            "LD_PRELOAD": glob("/usr/lib/*/faketime/libfaketimeMT.so.1")[0],
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
    try:
        restart_all(world)
        yield clock
    finally:
        pids = [daemon.program.process.pid for daemon in world.daemons if daemon.program is not None]
        for daemon in world.daemons:
            daemon.env = {}
        restart_all(world)
        for pid in pids:  # libfaketime itself leaves them
            for name in ("faketime_shm", "sem.faketime_sem"):
                Path(f"/dev/shm/{name}_{pid}").unlink(missing_ok=True)


def restart_all(world: World) -> None:
    for facility in world.facilities:
        for daemon in facility.daemons:
            daemon.stop()
        for gateway in facility.gateways:
            gateway.start()
            gateway.wait_until_ready()
        restart(facility.server, facility)


def hours_of(daemon: Daemon) -> list[float]:
    """By how many hours the clock of a daemon seems to be ahead, at each line that it has logged."""
    stamps = re.findall(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", daemon.words(), re.MULTILINE)
    return [round((time.mktime(time.strptime(one, "%Y-%m-%dT%H:%M:%S")) - time.time()) / 3600) for one in stamps]


@beside()
def test_a_wall_clock_that_jumps_by_hours_neither_ends_a_stream_nor_keeps_it_forever(world: World) -> None:
    with another_clock(world) as clock, ExitStack() as opened:
        before = world.footprint()
        long_one, short = Asked(world, opened, "--expires", "1h"), Asked(world, opened, "--expires", "25s")
        asked_at = time.monotonic()
        for asked in (long_one, short):
            asked.greet()
            asked.carry()

        clock.write_text("+10h")
        another = Asked(world, opened)
        another.greet()
        another.carry_to_the_end()
        assert all(hours_of(daemon)[-1] == 10 for daemon in world.daemons), "the clocks did not jump"
        for side in sides_of(world, long_one.uid).values():
            assert side["state"] == "Streaming"
            assert 3600 - 60 < side["seconds_left"] <= 3600
        for asked in (long_one, short):
            asked.exchange.wait_for_more()

        clock.write_text("-3h")
        until(short.exchange.is_reset, lambda: f"it does not expire:\n{short.exchange}")
        assert asked_at + 24 <= time.monotonic() <= asked_at + 30
        until(lambda: both_are(world, short.uid, "Released"), lambda: story(world, short.uid))
        assert short.exchange.finish() == "reset"
        assert all(hours_of(daemon)[-1] == -3 for daemon in world.daemons), "the clocks did not jump back"
        long_one.exchange.wait_for_more()

        clock.write_text("+0")
        assert {side["last_error"]["code"] for side in sides_of(world, short.uid).values()} == {"expired"}
        assert long_one.exchange.finish() == "whole"
        assert both_are(world, long_one.uid, "Streaming")
        long_one.release()
        assert_same(before, world.footprint)


# The matrix


def matrix() -> Iterator[Cell]:
    """Who is killed at which step, how it comes back, and whether the stream lives on after that."""
    steps: Sequence[str] = (BEFORE, RESERVING, LISTENING, READY, UPDATING, STREAMING, RELEASING)
    for side in SIDES.values():
        for step in steps:
            yield Cell(f"{side} S2CS", step, RESTART, step in (BEFORE, LISTENING, READY, STREAMING))
        for step in steps:
            yield Cell(f"{side} S2DS", step, RESTART, step == RESERVING)
        for step in steps[2:]:
            yield Cell(f"{side} appctrl", step, RESTART, step != RELEASING)
    for step in (RESERVING, LISTENING, READY, UPDATING):
        yield Cell("S2UC", step, ATTACH, step != RESERVING)
        yield Cell("S2UC", step, RELEASE, False)
        yield Cell("S2UC", step, NEVER, False)
    yield Cell("S2UC", STREAMING, RELEASE, True)
    yield Cell("S2UC", RELEASING, RELEASE, False)
    yield Cell("S2UC", RELEASING, NEVER, False)


MATRIX = sorted(matrix(), key=lambda cell: cell.back != NEVER)  # these wait longest


@pytest.mark.parametrize("cell", MATRIX, ids=str)
@beside(lab=POOL, centre=POOL)
def test_a_killed_party(world: World, cell: Cell) -> None:
    before = world.footprint()
    assert Life(world, cell).live() == cell.lives
    nothing_is_left(world, before)


@pytest.mark.long
@pytest.mark.parametrize("cell", MATRIX, ids=str)
@beside(lab=POOL, centre=POOL)
def test_a_party_killed_at_any_instant(world: World, cell: Cell) -> None:
    for _ in range(AGAIN):
        before = world.footprint()
        Life(world, cell, random.Random()).live()
        nothing_is_left(world, before)
