"""Parties that come back, each with peers that have done nothing wrong: none of those is held to be an intruder."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack

from harness import HOST, Program, World, connections_to, free_ports, until

from scistream.s2cs.audit_events import read_line
from scistream.wire.line import FIRST_LINE_SECONDS
from scistream.wire.messages import CONS, PROD

STREAMS = 4


def test_programs_whose_servers_come_back_are_no_strangers_and_hear_of_the_end(world: World) -> None:
    with ExitStack() as stack:
        requested = [stack.enter_context(world.request(1, "100Mbit")) for _ in range(STREAMS)]
        programs: list[Program] = []
        for one in requested:
            programs.append(world.prod(one.join[PROD], [f"{HOST}:{free_ports()}"], ["sleep", "600"]))
            programs.append(world.cons(one.join[CONS], ["sleep", "600"]))
        for one in requested:
            one.streaming()
        for facility in world.facilities:
            facility.server.stop()
            facility.server.start()
            facility.server.wait_until_ready()
            facility.wait_for_links()
        for facility in world.facilities:
            port = facility.server.address.port
            until(lambda port=port: connections_to(port) >= STREAMS, lambda: "".join(map(str, programs)))
        time.sleep(FIRST_LINE_SECONDS + 1)  # so long may a link say nothing before it counts as an intruder's
        for facility in world.facilities:
            assert connections_to(facility.server.address.port) >= STREAMS
            lines = facility.store.with_suffix(".audit.jsonl").read_text().splitlines()
            kinds = [json.loads(line)["event"] for line in lines if read_line(line)]
            assert "hello" in kinds, "the control"
            assert not [kind for kind in kinds if "refused" in kind]
            for daemon in (facility.server, *facility.gateways):
                assert "failures, the last one" not in daemon.words()
        for one in requested:
            one.release()
        for program in programs:
            until(lambda p=program: "the program goes on" in p.log.read_text(), lambda p=program: str(p))
            assert program.process.poll() is None
