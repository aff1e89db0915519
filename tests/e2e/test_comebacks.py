"""Parties that come back: none of their legitimate peers is treated as an intruder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from duplex_traffic import Exchange
from fault_matrix import restart
from harness import Requested, World, connections_to

from scistream.protocol.messages import CONS, PROD
from scistream.s2cs.audit.events import read_line
from support.facilities import Daemon, Facility
from support.programs import Program
from support.waiting import until

STREAMS = 3
GOES_ON = "the program continues"


class Crowd:
    """Several streaming streams with two programs each, and two whose users and consumers wait for a producer."""

    def __init__(self, world: World, opened: ExitStack) -> None:
        self.world = world
        self.exchanges = [opened.enter_context(Exchange(1)) for _ in range(STREAMS)]
        self.requested = [opened.enter_context(world.request(1, "100Mbit")) for _ in self.exchanges]
        self.waiting = [opened.enter_context(world.request(1, "100Mbit")) for _ in range(2)]
        self.programs: list[Program] = []
        for exchange, one in zip(self.exchanges, self.requested, strict=True):
            consumer = world.cons(one.join[CONS], ["sh", "-c", 'echo "$SCISTREAM_LISTENERS"; exec sleep 600'])
            self.programs += [consumer, world.prod(one.join[PROD], exchange.listen, ["sleep", "600"])]
            exchange.connect(json.loads(consumer.line()))
            one.streaming()
        self.early = [world.cons(one.join[CONS], ["sleep", "600"]) for one in self.waiting]
        for one in self.waiting:
            until(lambda u=one.uid: world.centre.states()[u, CONS] == "Ready", lambda: "no Hello has come")
        for exchange in self.exchanges:
            exchange.wait_for_more()

    def links(self) -> list[int]:
        """How many links lead to each S2CS."""
        return [connections_to(facility.server.address.port) for facility in self.world.facilities]

    def is_well_thought_of(self) -> None:
        """Neither an audit trail nor a listener of a daemon tells of an intruder."""
        for facility in self.world.facilities:
            lines = facility.store.with_suffix(".audit.jsonl").read_text().splitlines()
            events = [json.loads(line) for line in lines if read_line(line)]
            assert "hello" in [event["event"] for event in events], "the control"
            assert not [event for event in events if "refused" in event["event"] or event["event"] == "bad-line"]
            for daemon in facility.daemons:
                assert "failures, the last one" not in daemon.words()


@contextmanager
def a_crowd(world: World) -> Iterator[Crowd]:
    with ExitStack() as opened:
        yield Crowd(world, opened)


def party(world: World, which: str) -> tuple[Daemon, Facility]:
    side, kind = which.split()
    facility = world.lab if side == "producer's" else world.centre
    return (facility.server if kind == "server" else facility.gateways[0]), facility


FIRST_LINE = 6.0
"""Seconds within which a link has to say something, or else counts as an intruder's."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("world"), timing={"FIRST_LINE": FIRST_LINE}) as made:
        yield made


def all_have_waited() -> None:
    time.sleep(FIRST_LINE + 1)


@pytest.mark.parametrize("end", [Daemon.stop, Daemon.kill])
def test_programs_and_users_whose_servers_come_back_are_no_strangers_and_lose_nothing(
    world: World, end: Callable[[Daemon], None]
) -> None:
    with a_crowd(world) as crowd:
        before = crowd.links()
        for which in ("producer's server", "consumer's server"):
            daemon, facility = party(world, which)
            end(daemon)
            restart(daemon, facility)
            until(lambda: crowd.links() >= before, lambda: f"links have not come back: {crowd.links()} of {before}")
        all_have_waited()
        crowd.is_well_thought_of()
        assert all(one.program.process.poll() is None for one in crowd.waiting), "the user waits on"
        for exchange in crowd.exchanges:
            exchange.wait_for_more()
        for one in crowd.requested:
            one.release()
        are_told(crowd.programs)


@pytest.mark.parametrize("end", [Daemon.stop, Daemon.kill])
@pytest.mark.parametrize("which", ["producer's gateway", "consumer's gateway"])
def test_programs_whose_gateway_comes_back_are_notified_of_the_end_and_none_is_a_stranger(
    world: World, which: str, end: Callable[[Daemon], None]
) -> None:
    with a_crowd(world) as crowd:
        daemon, facility = party(world, which)
        end(daemon)
        for exchange in crowd.exchanges:
            until(exchange.is_reset, lambda one=exchange: f"not all is reset:\n{one}")
        restart(daemon, facility)
        side = slice(1, None, 2) if facility is world.lab else slice(0, None, 2)
        near, far = crowd.programs[side], [one for one in crowd.programs if one not in crowd.programs[side]]
        are_told(near)
        for one in crowd.waiting:
            assert daemon.name in one.program.end(status=1).stderr
            one._released = True  # by the command, since it failed
        for program in crowd.early:
            assert (daemon.name if facility is world.centre else "error: ") in program.end(status=1).stderr
        assert all(program.process.poll() is None for program in far), "the user has yet to release"
        for one in crowd.requested:
            one.release()
        are_told(far)
        until(lambda: crowd.links() == [0, 0], lambda: f"links of streams that are over: {crowd.links()}")
        all_have_waited()
        crowd.is_well_thought_of()
        with world.request() as another:
            is_served(world, another)


def are_told(programs: list[Program]) -> None:
    """Each program runs on and was told of the end of its stream; it ends when it is asked to."""
    for program in programs:
        until(lambda p=program: GOES_ON in p.log.read_text(), lambda p=program: str(p))
        assert program.process.poll() is None
        program.ask_to_end()
    for program in programs:
        program.end(status=-15)


def is_served(world: World, requested: Requested) -> None:
    """Nobody is locked out: a stream between the same parties comes to be."""
    with Exchange(1) as exchange:
        consumer = world.cons(requested.join[CONS])
        world.prod(requested.join[PROD], exchange.listen).end()
        requested.streaming()
        exchange.connect(json.loads(consumer.end().stdout)["listeners"])
        exchange.wait_for_more()
        assert exchange.finish() == "whole"
