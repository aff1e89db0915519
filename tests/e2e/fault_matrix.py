"""The life of a stream in which one process is killed, and what must hold afterwards.

A `Cell` of the matrix says who is killed, at which step, and how it comes back. A stopped process holds the
step, so that the kill happens in it; with a source of chance, nothing is stopped and the kill happens at a random
instant around the step.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from duplex_traffic import Exchange
from harness import Footprint, World, assert_same, connections_to

from scistream.protocol.messages import CONS, PROD, Role
from support.facilities import Daemon, Facility
from support.programs import Program
from support.waiting import PATIENCE, until

CHANNELS = 2
RATE = "100Mbit"
POOL = {"ports": CHANNELS, "gateway": {"capacity": RATE}}
"""A facility that one stream fills."""

BEFORE, RESERVING, LISTENING, READY = "before REQ", "Reserving", "Listening", "Ready"
UPDATING, STREAMING, RELEASING = "Updating", "Streaming", "Releasing"

RESTART, ATTACH, RELEASE, NEVER = "restart", "attach", "release", "never"

_SHORT = 8.0
"""Seconds of life of a stream whose user never comes back."""
_LONG_PATIENCE = 2 * PATIENCE
_WINDOW = {BEFORE: 0.3, RESERVING: 0.5, LISTENING: 0.3, READY: 0.5, UPDATING: 0.7, STREAMING: 0.5, RELEASING: 0.5}
"""Seconds after the start of a step within which a kill by chance comes."""

_HOLD = """
import asyncio, json, sys, time
from scistream.s2uc.client import Client
from scistream.s2uc.history import StreamHistory, RememberedStream
prod, cons, uid, certificate, key, *authorities = sys.argv[1:]
async def hold():
    async with Client(certificate=certificate, key=key, authorities=authorities) as client:
        now = time.time()
        known = dict(uid=uid, prod=prod, cons=cons, num_conn=2, rate=100.0, asked_at=now, expires_at=now + 60)
        StreamHistory().add(RememberedStream(**known))
        stream = await client.request(prod=prod, cons=cons, num_conn=2, rate=100.0, uid=uid)
        print(json.dumps({"uid": stream.uid, "join": stream.join}), flush=True)
        await stream.provisioned()
        print(json.dumps({"state": stream.state}), flush=True)
        try:
            await stream.ended()
        except Exception as problem:
            print(json.dumps({"state": stream.state, "error": str(problem)}), flush=True)
asyncio.run(hold())
"""


class Cell(NamedTuple):
    """Who is killed at which step, how it comes back, and whether the stream lives on."""

    victim: str
    step: str
    back: str
    lives: bool

    @property
    def role(self) -> Role:
        """The side that it happens at."""
        return CONS if self.victim.startswith("consumer") else PROD

    def __str__(self) -> str:
        """Return the name of its test."""
        return f"{self.victim}-{self.step}-{self.back}"


def hold_a_stream(world: World, uid: str) -> Program:
    """Start a program that requests a stream with the library, waits for its end, and reports its progress in lines."""
    users = world.folder / "users"
    files = [users / "ada.pem", users / "ada.key", *(each.authority for each in world.facilities)]
    return world.start(sys.executable, "-c", _HOLD, world.lab.s2cs, world.centre.s2cs, uid, *map(str, files))


def freeze(*programs: Program | Daemon) -> None:
    """Stop processes in the middle of whatever they do."""
    _signal(signal.SIGSTOP, programs)


def thaw(*programs: Program | Daemon) -> None:
    """Let them go on."""
    _signal(signal.SIGCONT, programs)


def _signal(number: int, programs: tuple[Program | Daemon, ...]) -> None:
    for one in programs:
        program = one.program if isinstance(one, Daemon) else one
        if program is not None:
            program.process.send_signal(number)


def restart(daemon: Daemon, facility: Facility) -> None:
    """Start a daemon that was killed, and wait until its facility is whole again."""
    mark = len(facility.server.words())
    daemon.start()
    daemon.wait_until_ready()
    links = 1 if daemon is not facility.server else len(facility.gateways)
    until(
        lambda: facility.server.words()[mark:].count(" is connected") >= links,
        lambda: f"{facility.server.name} and its gateways have not met:\n{facility.server.words()[mark:]}",
    )


def both_are(world: World, uid: str, state: str) -> bool:
    """Return True if both sides are in that state."""
    return states(world, uid) == (state, state)


def states(world: World, uid: str) -> tuple[str, str]:
    """Return the state of a stream in the stores of both sides; a missing stream counts as Released."""
    return (
        world.lab.states().get((uid, "PROD"), "Released"),
        world.centre.states().get((uid, "CONS"), "Released"),
    )


def story(world: World, uid: str) -> str:
    """Return what all daemons logged about a stream and about their links, for the report of a failure."""
    parts = []
    for daemon in world.daemons:
        lines = daemon.words().splitlines()
        first = next((number for number, line in enumerate(lines) if uid in line), len(lines))
        told = [line for line in lines[max(0, first - 5) :] if uid in line or "uid=" not in line]
        parts.append(f"--- {daemon.name}\n" + "\n".join(told[-60:]))
    return "\n".join(parts)


class Life:
    """One stream from before its request to after its end, its user, and its applications.

    :param chance: when to strike; without it the step is held.
    """

    def __init__(self, world: World, cell: Cell, chance: random.Random | None = None) -> None:
        self.world = world
        self.cell = cell
        self.chance = chance
        self.uid = str(uuid.uuid4())
        self.facility = world.centre if cell.role == CONS else world.lab
        self.gateway = self.facility.gateways[0]
        self.exchange = Exchange(CHANNELS)
        self.joins: dict[str, str] = {}
        self.told: list[str] = []
        self.client: Program
        self.apps: dict[Role, Program] = {}
        self._started: list[Program] = []
        self._frozen: list[Program | Daemon] = []
        self._gave_up = False
        self._released = False
        self._links_before = 0
        self._struck: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1)

    def live(self) -> bool:
        """All of it; whether the stream has carried all that its applications had to say."""
        try:
            with self.exchange:
                return self._live()
        except BaseException as problem:
            problem.add_note(f"{self.cell}, stream {self.uid}\n{self.exchange}\n{story(self.world, self.uid)}")
            raise
        finally:
            self._thaw()
            self._pool.shutdown()
            self._end_programs()

    def _live(self) -> bool:
        self._ask()
        whole = False
        if self._is_reserved() and self._is_provisioned() and self._is_carrying():
            whole = self._is_released_after_all_was_said()
        self._wait_for_the_strike()
        self._is_over()
        return whole

    # -- the steps

    def _ask(self) -> None:
        if self.cell.step == RESERVING:
            self._freeze(self.gateway)
        if self.cell.step != BEFORE:
            self.client = self._request()
            return
        words, mark = f"no link to {self.gateway.name}", len(self.facility.server.words())
        victim = self._victim_daemon()
        assert victim is not None
        victim.kill()
        if victim is self.gateway and self.chance is None:
            until(lambda: words in self.facility.server.words()[mark:], lambda: f"{words} is not logged")
        self.client = self._request()
        self._strike(BEFORE, self._has_asked_in_vain)

    def _has_asked_in_vain(self) -> bool:
        """Return True if a request has found that a party is not there."""
        if self._victim_daemon() is self.facility.server:
            return states(self.world, self.uid)[self.cell.role == PROD] == "Listening"
        return "gateway-failed" in self.client.end(status=1).stderr

    def _request(self) -> Program:
        if self._is_held_by_a_program:
            return hold_a_stream(self.world, self.uid)
        between = ["--prod", self.world.lab.s2cs, "--cons", self.world.centre.s2cs]
        wishes = ["--uid", self.uid, "--num-conn", str(CHANNELS), "--rate", RATE]
        if self.cell.back == NEVER:
            wishes += ["--expires", f"{_SHORT}s"]
        return self.world.start_s2uc("request", "--json", *between, *wishes)

    def _is_reserved(self) -> bool:
        """Go on until the join strings are there."""
        self._strike(RESERVING, lambda: self._state() == "Reserving")
        if not self.joins:
            line = _next_line(self.client)
            told = json.loads(line) if line is not None else {}
            if "join" not in told:  # it has ended, or says why it is about to
                self._tend()
                if not self._gave_up:
                    self.client.end(_LONG_PATIENCE, status=None)
                return False
            self.joins = told["join"]
        return True

    def _is_provisioned(self) -> bool:
        """Let both applications say Hello, and go on until the stream streams."""
        if self.cell.step == READY:
            self._freeze(self.client)
        if self.cell.step == UPDATING:
            self._freeze(self.gateway)
        self._strike(LISTENING, self._is_listening)
        for role in (CONS, PROD):
            self._greet(role)
        self._strike(READY, lambda: both_are(self.world, self.uid, "Ready"))
        self._strike(UPDATING, lambda: self._state() == "Updating")
        until(self._is_settled, lambda: f"it has not come to anything: {states(self.world, self.uid)}", _LONG_PATIENCE)
        return bool(self.told)

    def _is_listening(self) -> bool:
        if not self.cell.victim.endswith("appctrl"):
            return both_are(self.world, self.uid, "Listening")
        port = self.facility.server.address.port
        if self.cell.role not in self.apps:
            self._freeze(self.facility.server)
            self._links_before = connections_to(port)
            self._greet(self.cell.role)
        return connections_to(port) > self._links_before

    def _greet(self, role: Role) -> None:
        """Start an application controller, if it does not run or has been killed."""
        known = self.apps.get(role)
        if known is not None and known.process.poll() != -signal.SIGKILL:
            return
        if role == CONS:
            command = ["sh", "-c", 'echo "$SCISTREAM_LISTENERS"; exec sleep 1000'] if self._needs_programs else []
            app = self.world.cons(self.joins["CONS"], command)
        else:
            app = self.world.prod(self.joins["PROD"], self.exchange.listen, ["sleep", "1000"] * self._needs_programs)
        self.apps[role] = app
        self._started.append(app)

    def _is_settled(self) -> bool:
        """Check the user and the applications; return True if the consumer knows where to connect, or all is over."""
        self._tend()
        if self._gave_up:
            return True
        consumer = self.apps[CONS]
        if not self.told and (line := consumer.next_line()) is not None:
            said = json.loads(line)
            self.told = said if isinstance(said, list) else said["listeners"]
        if self._is_held_by_a_program and self.told:
            return True
        status = self.client.process.poll()
        return status is not None and status != -signal.SIGKILL and (bool(self.told) or status != 0)

    def _is_carrying(self) -> bool:
        """Let the consumer connect, and bytes flow."""
        if self.chance is None:
            assert self.exchange.connect(self.told)
            self.exchange.wait_for_more()
        elif not self.exchange.connect(self.told):
            return False
        self._strike(STREAMING, lambda: True)
        until(lambda: self.exchange.moved() or self.exchange.is_reset(), lambda: f"nothing moves:\n{self.exchange}")
        return not self.exchange.is_reset()

    def _is_released_after_all_was_said(self) -> bool:
        if self.cell.step == RELEASING:
            self._freeze(self.gateway)
            self.client = self.world.start_s2uc("release", self.uid)
            self._released = True
            self._strike(RELEASING, lambda: self._state() == "Releasing")
            until(lambda: self.client.process.poll() is not None, lambda: f"it does not end: {self.client}")
            self._tend()
            return False
        self._wait_for_the_strike()
        if self.exchange.finish() != "whole":
            return False
        assert both_are(self.world, self.uid, "Streaming"), states(self.world, self.uid)
        self.world.s2uc("release", self.uid)
        self._released = True
        return True

    def _is_over(self) -> None:
        """Wait until nobody has anything of the stream any more.

        Of a stream that has come to stream, s2uc has taken its leave: when one side of it fails, the other goes on
        until the user releases it.
        """
        if self.told and not self._released and self.client.process.poll() == 0:
            self.world.s2uc("release", self.uid)
        until(
            lambda: both_are(self.world, self.uid, "Released"),
            lambda: f"the sides do not agree: {states(self.world, self.uid)}",
            _LONG_PATIENCE,
        )
        if self.exchange.ends:
            self.exchange.finish()
        status = self.client.process.poll()
        allowed = {0, 1, -signal.SIGKILL} | ({2} if self.chance and self.cell.back == ATTACH else set())
        assert status in allowed, str(self.client)
        for role, app in self.apps.items():
            if not self._needs_programs:
                app.end(status=None)
                assert not _of_session(app.pid), str(app)
                ended = {1} if role == CONS and not self.told and self.chance is None else {0, 1}
                assert app.process.returncode in ended | {-signal.SIGKILL}, str(app)

    # -- the user

    @property
    def _needs_programs(self) -> bool:
        """True if the application controllers must stay as long as their programs run."""
        if self.cell.victim == "producer appctrl":
            return self.cell.step != LISTENING
        return self.cell.victim == "consumer appctrl" and self.cell.step in (STREAMING, RELEASING)

    @property
    def _is_held_by_a_program(self) -> bool:
        """True if the user has a program that keeps its link while the stream streams, as s2uc does not."""
        return self.cell.victim == "S2UC" and self.cell.step == STREAMING

    def _tend(self) -> None:
        """Do what a user does when something of hers was killed."""
        for role in list(self.apps):
            self._greet(role)
        if self.client.process.poll() != -signal.SIGKILL or self._gave_up or self._is_held_by_a_program:
            return
        if self.cell.back == ATTACH:
            timeout = [] if self.joins else ["--timeout", "2s"]  # nobody can say Hello any more
            self.client = self.world.start_s2uc("attach", self.uid, "--json", *timeout)
        else:
            self._gave_up = True
            if self.cell.back == RELEASE:
                released = self.world.s2uc("release", self.uid, check=False)
                was_unknown = "no stream with the uid" in released.stderr
                assert released.returncode == 0 or (self.chance and was_unknown), released

    def _state(self) -> str:
        return states(self.world, self.uid)[self.cell.role == CONS]

    # -- the strike

    def _freeze(self, one: Program | Daemon) -> None:
        if self.chance is None:
            freeze(one)
            self._frozen.append(one)

    def _thaw(self) -> None:
        while self._frozen:
            thaw(self._frozen.pop())

    def _strike(self, step: str, is_there: Callable[[], bool]) -> None:
        if step != self.cell.step:
            return
        if self.chance is None:
            until(is_there, lambda: f"{step} is not reached: {states(self.world, self.uid)}")
            self._kill_and_come_back(0.0, 0.0)
        else:
            pauses = self.chance.uniform(0, _WINDOW[step]), self.chance.uniform(0, 0.3)
            self._struck = self._pool.submit(self._kill_and_come_back, *pauses)

    def _kill_and_come_back(self, before: float, between: float) -> None:
        time.sleep(before)  # nothing is waited for: it is chance that says when
        daemon = self._victim_daemon()
        if daemon is not None:
            if daemon.program is not None:
                daemon.kill()
            self._watch_what_the_kill_does()
            self._thaw()
            time.sleep(between)
            restart(daemon, self.facility)
            return
        victim = self.client if self.cell.victim == "S2UC" else self.apps.get(self.cell.role)
        if victim is not None:
            victim.process.kill()
            victim.process.wait(PATIENCE)
        self._watch_what_the_kill_does()
        self._thaw()

    def _watch_what_the_kill_does(self) -> None:
        if self.cell.step != STREAMING or self.chance is not None:
            return
        if "S2DS" in self.cell.victim:
            until(self.exchange.is_reset, lambda: f"not all is reset:\n{self.exchange}")
        else:
            self.exchange.wait_for_more()

    def _wait_for_the_strike(self) -> None:
        if self._struck is not None:
            self._struck.result(_LONG_PATIENCE)

    def _victim_daemon(self) -> Daemon | None:
        if "S2CS" in self.cell.victim:
            return self.facility.server
        return self.gateway if "S2DS" in self.cell.victim else None

    def _end_programs(self) -> None:
        """End the programs that go on although their application controller was killed, as they should."""
        for app in self._started:
            app.process.kill()
            app.process.wait(PATIENCE)
            for pid in _of_session(app.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _next_line(program: Program) -> str | None:
    """Return the next line of a program, or None if it has ended without one."""
    line = ""

    def is_there() -> bool:
        nonlocal line
        line = program.next_line() or ""
        return bool(line) or program.process.poll() is not None

    until(is_there, lambda: f"no line from {program}", _LONG_PATIENCE)
    if not line:
        program.end(status=None)
    return line or program.next_line()


def _of_session(leader: int) -> list[int]:
    """Return the processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[3]) == leader:
                found.append(int(stat.parent.name))
    return found


def a_full_stream_can_be_had(world: World) -> None:
    """All ports and all capacity are free."""
    client = world.request(CHANNELS, RATE).program
    assert all(len(gateway.ports_in_use()) == CHANNELS for each in world.facilities for gateway in each.gateways)
    client.ask_to_end()  # as Ctrl-C does: it releases
    client.end(status=1)


def nothing_is_left(world: World, before: Footprint) -> None:
    """Check that the daemons hold what they held before, that all of it is free, and that no process is left."""
    assert_same(before, world.footprint)
    a_full_stream_can_be_had(world)
    assert_same(before, world.footprint)
