"""The library of S2UC in programs of a user: under Twisted and under plain asyncio, against real servers."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from harness import World

from support.applications import address_of, connect, listen, receive_exactly
from support.programs import Program
from support.waiting import until

pytestmark = pytest.mark.usefixtures("nothing_left")

COMMON = '''
import asyncio, json, sys
from pathlib import Path
from scistream.s2uc.client import Client
from scistream.protocol.errors import StreamError

prod, cons, folder, certificate, key, *authorities = sys.argv[1:]

def say(**words):
    print(json.dumps(words), flush=True)

def client():
    return Client(certificate=certificate, key=key, authorities=authorities)

async def a_life(client):
    """A stream from its request to its release."""
    stream = await client.request(prod=prod, cons=cons, num_conn=2, rate=100.0, label="by library")
    say(uid=stream.uid, state=stream.state, join=stream.join)
    connected = await stream.provisioned()
    sides = await stream.status()
    say(state=stream.state, map=connected, sides={role: side.state for role, side in sides.items()},
        labels=sorted({side.label for side in sides.values()}), seconds=stream.process_seconds)
    await stream.release()
    say(state=stream.state)

async def whole():
    async with client() as one:
        await a_life(one)
'''

UNDER_TWISTED = """
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import react
react(lambda reactor: ensureDeferred(whole()))
"""

UNDER_ASYNCIO = """
asyncio.run(whole())
"""


def start(world: World, tmp_path: Path, script: str, *, cons: str = "") -> Program:
    users = world.folder / "users"
    files = [users / "ada.pem", users / "ada.key", *(each.authority for each in world.facilities)]
    between = [world.lab.s2cs, cons or world.centre.s2cs]
    return world.start(sys.executable, "-c", COMMON + script, *between, str(tmp_path), *map(str, files))


def said(program: Program) -> dict[str, Any]:
    words: dict[str, Any] = json.loads(program.line())
    return words


def live_a_life(world: World, program: Program) -> None:
    """Be the producer of what `a_life` asks for, and look at what it says."""
    reserved = said(program)
    assert reserved["state"] == "Reserved"
    with listen() as detector:
        world.prod(reserved["join"]["PROD"], [address_of(detector)]).end()
        streaming = said(program)
        targets = [streaming["map"][streaming["map"][lan]] for lan in streaming["map"] if lan_of(world, lan)]
        assert targets == [address_of(detector)] * 2
    assert streaming["state"] == "Streaming"
    assert streaming["sides"] == {"PROD": "Streaming", "CONS": "Streaming"}
    assert streaming["labels"] == ["by library"]
    assert 0 < streaming["seconds"] < 10
    assert said(program) == {"state": "Released"}
    assert world.lab.states()[reserved["uid"], "PROD"] == "Released"
    assert world.centre.states()[reserved["uid"], "CONS"] == "Released"


def lan_of(world: World, listener: str) -> bool:
    return world.centre.gateways[0].offers(listener)


@pytest.mark.parametrize("runner", [UNDER_TWISTED, UNDER_ASYNCIO], ids=["twisted", "asyncio"])
def test_a_stream_lives_its_life_in_a_program(world: World, tmp_path: Path, runner: str) -> None:
    program = start(world, tmp_path, runner)
    live_a_life(world, program)
    program.end()


def test_each_asyncio_run_of_a_program_works_like_the_first_and_leaves_nothing_open(
    world: World, tmp_path: Path
) -> None:
    script = """
import os, threading
for _ in range(3):
    asyncio.run(whole())
    say(open=len(os.listdir("/proc/self/fd")), threads=threading.active_count())
"""
    program = start(world, tmp_path, script)
    left = []
    for _ in range(3):
        live_a_life(world, program)
        left.append(said(program))
    program.end()
    assert left[1] == left[2]
    assert left[2]["threads"] == 1


def test_two_streams_of_one_client_at_the_same_time(world: World, tmp_path: Path) -> None:
    script = """
async def two():
    async with client() as one:
        streams = await asyncio.gather(*(one.request(prod=prod, cons=cons, rate=100.0) for _ in range(2)))
        say(joins=[stream.join for stream in streams])
        maps = await asyncio.gather(*(stream.provisioned() for stream in streams))
        say(maps=maps)
        await asyncio.gather(*(stream.release() for stream in streams))
        say(states=[stream.state for stream in streams])
asyncio.run(two())
"""
    program = start(world, tmp_path, script)
    joins = said(program)["joins"]
    with listen() as detector:
        for join in joins:
            world.prod(join["PROD"], [address_of(detector)]).end()
        first, second = said(program)["maps"]
    assert not set(first) & set(second), "no listener belongs to both"
    assert said(program) == {"states": ["Released", "Released"]}
    program.end()


def test_bytes_flow_while_a_program_holds_its_stream(world: World, tmp_path: Path) -> None:
    script = """
async def hold():
    async with client() as one:
        stream = await one.request(prod=prod, cons=cons, rate=1000.0)
        say(join=stream.join)
        await stream.provisioned()
        while not Path(folder, "enough").exists():
            await asyncio.sleep(0.02)
        sides = await stream.status()
        say(bytes={role: side.figures[0].bytes_to_consumer for role, side in sides.items()})
        await stream.release()
asyncio.run(hold())
"""
    program = start(world, tmp_path, script)
    join = said(program)["join"]
    with listen() as detector:
        world.prod(join["PROD"], [address_of(detector)]).end()
        with connect(world.cons_listeners(join["CONS"])[0]) as analysis:
            camera, _ = detector.accept()
            with camera:
                camera.sendall(b"frame" * 1000)
                assert receive_exactly(analysis, 5000) == b"frame" * 1000
                (tmp_path / "enough").touch()
                assert said(program)["bytes"] == {"PROD": 5000, "CONS": 5000}
    program.end()


CANCEL = {
    "twisted": """
from twisted.internet import defer, task
async def main(reactor):
    one = client()
    asking = one.request(prod=prod, cons=cons, rate=100.0)
    say(uid=asking.stream.uid)
    async def ask():
        await asking
    working = defer.ensureDeferred(ask())
    working.addErrback(lambda failure: say(ended=failure.type.__name__))
    while not Path(folder, "cancel").exists():
        await task.deferLater(reactor, 0.02)
    working.cancel()
    await working
    await one.close()
    say(state=asking.stream.state)
task.react(lambda reactor: defer.ensureDeferred(main(reactor)))
""",
    "asyncio": """
async def main():
    one = client()
    asking = one.request(prod=prod, cons=cons, rate=100.0)
    say(uid=asking.stream.uid)
    async def ask():
        await asking
    working = asyncio.create_task(ask())
    while not Path(folder, "cancel").exists():
        await asyncio.sleep(0.02)
    working.cancel()
    try:
        await working
    except asyncio.CancelledError as ended:
        say(ended=type(ended).__name__)
    await one.close()
    say(state=asking.stream.state)
asyncio.run(main())
""",
    "asyncio.wait_for": """
async def main():
    async with client() as one:
        asking = one.request(prod=prod, cons=cons, rate=100.0)
        say(uid=asking.stream.uid)
        waiting = asyncio.ensure_future(asking)
        while not Path(folder, "cancel").exists():
            await asyncio.sleep(0.02)
        try:
            await asyncio.wait_for(waiting, 0.01)
        except asyncio.TimeoutError as ended:
            say(ended="CancelledError")
    say(state=asking.stream.state)
asyncio.run(main())
""",
}


@pytest.mark.parametrize("how", CANCEL)
def test_a_request_that_is_cancelled_in_the_middle_is_released_at_both_sides(
    world: World, tmp_path: Path, how: str
) -> None:
    gateway = world.centre.gateways[0]
    gateway.program.process.send_signal(signal.SIGSTOP)
    try:
        program = start(world, tmp_path, CANCEL[how])
        uid = said(program)["uid"]
        until(lambda: world.lab.states().get((uid, "PROD")) == "Listening", lambda: world.lab.server.words())
        until(lambda: world.centre.states().get((uid, "CONS")) == "Reserving", lambda: world.centre.server.words())
        (tmp_path / "cancel").touch()
        assert said(program) == {"ended": "CancelledError"}
        until(lambda: world.lab.states()[uid, "PROD"] == "Released", lambda: world.lab.server.words())
        until(lambda: world.centre.states()[uid, "CONS"] == "Releasing", lambda: world.centre.server.words())
    finally:
        gateway.program.process.send_signal(signal.SIGCONT)
    assert said(program) == {"state": "Released"}
    assert world.centre.states()[uid, "CONS"] == "Released"
    program.end()


def test_giving_up_the_wait_for_an_application_leaves_the_stream_as_it_is(world: World, tmp_path: Path) -> None:
    script = """
async def main():
    async with client() as one:
        stream = await one.request(prod=prod, cons=cons, rate=100.0)
        try:
            await asyncio.wait_for(stream.provisioned(), 0.1)
        except asyncio.TimeoutError:
            say(uid=stream.uid, state=stream.state, join=stream.join)
        say(map=await stream.provisioned())
        await stream.release()
asyncio.run(main())
"""
    program = start(world, tmp_path, script)
    reserved = said(program)
    assert reserved["state"] == "Reserved"
    assert world.lab.states()[reserved["uid"], "PROD"] == "Listening"
    with listen() as detector:
        world.prod(reserved["join"]["PROD"], [address_of(detector)]).end()
        assert address_of(detector) in said(program)["map"].values()
    program.end()


@pytest.mark.parametrize("runner", ["twisted", "asyncio"])
def test_every_refusal_is_a_stream_error_with_a_code_and_a_sentence(world: World, tmp_path: Path, runner: str) -> None:
    script = """
async def main():
    async with client() as one:
        wrong = [dict(num_conn=9), dict(rate=200000.0), dict(rate=-1.0), dict(uid="nix"), dict(prod="nowhere"),
                 dict(expires=30 * 86400.0), dict(app_from=["192.0.2.0/99"]), dict(num_conn=2000)]
        for wish in wrong:
            try:
                await one.request(**{"prod": prod, "cons": cons, "rate": 100.0, **wish})
            except StreamError as error:
                say(code=error.code, msg=error.msg)
        stream = await one.request(prod=prod, cons=cons, rate=100.0)
        await stream.release()
        try:
            await stream.provisioned()
        except StreamError as error:
            say(code=error.code, msg=error.msg)
    try:
        Client()
    except StreamError as error:
        say(code=error.code, msg=error.msg)
"""
    run = {
        "asyncio": "asyncio.run(main())",
        "twisted": "from twisted.internet import defer, task\ntask.react(lambda _: defer.ensureDeferred(main()))",
    }[runner]
    program = start(world, tmp_path, script + run)
    errors = [json.loads(line) for line in program.end().stdout.splitlines()]
    assert [error["code"] for error in errors] == [
        "no-ports",
        "no-capacity",
        *["bad-message"] * 3,
        "not-authorized",
        *["bad-message"] * 2,
        "wrong-state",
        "not-authenticated",
    ]
    named = ["9 channels", "200000 Mbit/s", "rate", "'nix'", "'nowhere'", "2592000 s", "'192.0.2.0/99'", "num_conn"]
    for error, part in zip(errors, [*named, "released", "certificate"], strict=True):
        assert part in error["msg"]


def test_an_s2cs_that_refuses_our_certificate_is_a_stream_error_that_says_so(world: World, tmp_path: Path) -> None:
    script = """
async def main():
    async with Client(certificate=certificate, key=key, authorities=authorities[:1]) as one:
        try:
            await one.request(prod=prod, cons=cons, rate=100.0)
        except StreamError as error:
            say(code=error.code, msg=error.msg)
asyncio.run(main())
"""
    program = start(world, tmp_path, script)
    refused = said(program)
    program.end()
    assert refused["code"] == "not-authenticated"
    for part in ("consumer side", world.centre.s2cs, "`authorities`"):
        assert part in refused["msg"]


def test_a_stream_of_another_run_of_the_program_can_be_looked_at_and_released(world: World, tmp_path: Path) -> None:
    requested = world.request(1, "100Mbit")
    with listen() as detector:
        world.prod(requested.join["PROD"], [address_of(detector)]).end()
        requested.streaming()
    script = f"""
async def main():
    async with client() as one:
        stream = one.remembered("{requested.uid}", prod=prod, cons=cons)
        say(sides={{role: side.state for role, side in (await stream.status()).items()}})
        await stream.release()
        await stream.release()
        unknown = one.remembered("{uuid4()}", prod=prod, cons=cons)
        say(sides=await unknown.status())
        await unknown.release()
asyncio.run(main())
"""
    program = start(world, tmp_path, script)
    assert said(program) == {"sides": {"PROD": "Streaming", "CONS": "Streaming"}}
    assert said(program) == {"sides": {}}
    program.end()


def test_a_request_can_be_a_task_of_asyncio(world: World, tmp_path: Path) -> None:
    script = """
async def main():
    async with client() as one:
        task = asyncio.create_task(one.request(prod=prod, cons=cons, rate="100Mbit"))
        stream = await task
        await asyncio.create_task(stream.status())
        first, second = await asyncio.gather(one.request(prod=prod, cons=cons, rate=50.0), stream.status())
        say(states=[stream.state, first.state])
        for each in (stream, first):
            await each.release()
asyncio.run(main())
"""
    program = start(world, tmp_path, script)
    assert said(program) == {"states": ["Reserved", "Reserved"]}
    program.end()


def test_a_request_that_is_given_up_at_any_moment_is_released(world: World, tmp_path: Path) -> None:
    script = """
async def main():
    one = client()
    states = []
    for turns in [0, 1, 2, 3, 5, 10, 20, 40]:
        asking = one.request(prod=prod, cons=cons, rate=100.0)
        task = asyncio.create_task(asking)
        for _ in range(turns):
            await asyncio.sleep(0.002)
        task.cancel()
        try:
            await task
            await asking.stream.release()
        except asyncio.CancelledError:
            pass
        states.append(asking.stream)
    asking = one.request(prod=prod, cons=cons, rate=100.0)
    task = asyncio.create_task(asking)
    while asking.stream.state != "Reserved":
        await asyncio.sleep(0)
    task.cancel()  # it has been granted, and the task does not know it yet
    try:
        await task
        say(cancelled=False)
    except asyncio.CancelledError:
        say(cancelled=True)
    states.append(asking.stream)
    asking = one.request(prod=prod, cons=cons, rate=100.0)  # nobody waits for it
    while asking.stream.state != "Reserved":
        await asyncio.sleep(0.01)
    states.append(asking.stream)
    await one.close()
    say(states=sorted({stream.state for stream in states}))
asyncio.run(main())
"""
    program = start(world, tmp_path, script)
    assert said(program) == {"cancelled": True}
    assert said(program) == {"states": ["Released"]}
    program.end()
    assert world.remembered.all() == []


def test_a_client_made_outside_an_event_loop_works_in_the_first_one_and_explains_why_not_in_another(
    world: World, tmp_path: Path
) -> None:
    script = """
one = client()
async def main():
    stream = await one.request(prod=prod, cons=cons, rate=100.0)
    say(state=stream.state)
    await stream.release()
asyncio.run(main())
try:
    asyncio.run(main())
except StreamError as error:
    say(code=error.code, msg=error.msg)
"""
    program = start(world, tmp_path, script)
    assert said(program) == {"state": "Reserved"}
    refused = said(program)
    assert refused["code"] == "wrong-state"
    assert "another event loop" in refused["msg"]
    program.end()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_client_that_is_not_closed_is_warned_of_and_python_ends(world: World, tmp_path: Path, host: str) -> None:
    script = f"""
async def main():
    one = client()
    try:
        await one.streams_at(prod.replace("127.0.0.1", {host!r}))
    except StreamError as error:
        pass  # the certificate has no name `localhost`
    say(done=True)
asyncio.run(main())
"""
    program = start(world, tmp_path, "import warnings; warnings.simplefilter('always')\n" + script)
    assert said(program) == {"done": True}
    assert "ResourceWarning: a scistream Client was not closed" in program.end().stderr


def test_a_stream_of_a_program_is_in_the_list_until_it_is_released(world: World, tmp_path: Path) -> None:
    script = """
async def main():
    async with client() as one:
        stream = await one.request(prod=prod, cons=cons, rate="100Mbit", label="of a program \\udcff")
        say(uid=stream.uid)
        while not Path(folder, "enough").exists():
            await asyncio.sleep(0.02)
        await stream.release()
asyncio.run(main())
"""
    program = start(world, tmp_path, script)
    uid = said(program)["uid"]
    (listed,) = json.loads(world.s2uc("list", "--json").stdout)
    assert (listed["uid"], listed["rate"], listed["label"]) == (uid, 100.0, "of a program ?")
    (tmp_path / "enough").touch()
    program.end()
    assert json.loads(world.s2uc("list", "--json").stdout) == []
