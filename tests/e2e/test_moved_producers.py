"""ProdApp comes back with other listeners after the user's client has ended."""

from __future__ import annotations

import json
from functools import partial

from harness import World, together

from scistream.protocol.messages import CONS, PROD
from support.applications import MIB, accept, address_of, listeners, noise, receive, receive_exactly, send_all, sha256
from support.waiting import until


def test_data_flows_to_where_a_program_that_came_back_listens_without_a_client_of_the_user(world: World) -> None:
    data, more = noise(4 * MIB, seed=1), noise(64 * 1024, seed=2)
    with listeners(3) as (first, *others), world.stream([address_of(first)], num_conn=2, rate="1Gbit") as stream:
        with stream.connect() as earlier, accept(first) as camera:
            camera.sendall(more[:100])
            assert receive_exactly(earlier, 100) == more[:100]
            moved = [address_of(one) for one in others]
            world.prod(stream.requested.join[PROD], moved).end()

            def sides() -> dict[str, dict[str, dict[str, str]]]:
                answer = json.loads(world.s2uc("status", "--json", stream.uid).stdout)
                found: dict[str, dict[str, dict[str, str]]] = answer["streams"][stream.uid]
                return found

            until(lambda: sorted(sides()[PROD]["connection_map"].values()) == sorted(moved), sides)
            assert sides()[CONS]["state"] == "Streaming"

            for channel, listener in enumerate(others):
                analysis = stream.connect(channel)
                with analysis, accept(listener) as new:
                    _, arrived = together(partial(send_all, new, data), partial(receive, analysis))
                    assert sha256(arrived) == sha256(data)
            camera.sendall(more)
            assert sha256(receive_exactly(earlier, len(more))) == sha256(more), "what is open stays where it is"
        world.s2uc("attach", stream.uid)
        assert {side["generation"] for side in sides().values()} == {1}, "both sides have what belongs together"


def test_a_producer_that_comes_before_its_stream_is_complete_is_told_what_it_waits_for(world: World) -> None:
    with listeners(2) as (used, spare), world.request(1, "100Mbit") as requested:
        requested.program.process.kill()
        join = requested.join[PROD]
        ended = world.prod(join, [address_of(used), address_of(spare)]).end()
        (said,) = ended.stderr.splitlines()
        assert said == (
            "appctrl: the stream is not complete yet: the user who requested it has to join both sides with "
            f"`s2uc attach {requested.uid}`; not used, since the stream has 1 channel: {address_of(spare)}"
        )
        attaching = world.start_s2uc("attach", requested.uid)
        world.cons_listeners(requested.join[CONS])
        said = attaching.end().stderr
        assert "join strings are not stored: if the applications do not have theirs, release this stream" in said
        said = world.s2uc("attach", requested.uid).stderr
        assert "join strings" not in said, "both applications have theirs"
        assert "Hello" not in said, "nothing is waited for"


def test_a_producer_that_moves_is_told_when_new_connections_lead_to_it(world: World) -> None:
    with listeners(2) as (first, other), world.stream([address_of(first)]) as stream:
        (said,) = world.prod(stream.requested.join[PROD], [address_of(other)]).end().stderr.splitlines()
        assert (
            said == "appctrl: new connections will go to these listeners as soon as the gateways have the new targets"
        )
