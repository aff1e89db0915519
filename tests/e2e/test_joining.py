"""The library of applications in programs of a user: under Twisted and under plain asyncio, with real bytes."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from harness import World, free_ports

from scistream.protocol.messages import CONS, PROD
from support.applications import address_of, connect, listen, noise, receive, sha256
from support.facilities import HOST
from support.programs import Program

pytestmark = pytest.mark.usefixtures("nothing_left")

COMMON = """
import asyncio, hashlib, json, os, socket, sys, threading
from scistream.app.joining import consumer, producer
from scistream.protocol.errors import StreamError

given = json.loads(sys.argv[1])

def say(**words):
    print(json.dumps(words), flush=True)

def run(main):
    if given["under"] == "asyncio":
        asyncio.run(main())
    else:
        from twisted.internet.defer import ensureDeferred
        from twisted.internet.task import react
        react(lambda reactor: ensureDeferred(main()))
"""
UNDER = pytest.mark.parametrize("under", ["asyncio", "twisted"])


def start(world: World, script: str, under: str = "asyncio", **given: Any) -> Program:
    return world.start(sys.executable, "-c", COMMON + script, json.dumps({"under": under, **given}))


def said(program: Program) -> dict[str, Any]:
    words: dict[str, Any] = json.loads(program.line())
    return words


@UNDER
def test_a_producer_and_a_consumer_that_join_by_themselves_exchange_bytes(world: World, under: str) -> None:
    produce = """
async def main():
    async with producer(given["join"], listen=[given["listen"]]) as stream:
        say(role=stream.role, addresses=stream.addresses)
        error = await stream.ended()
        say(code=error.code)
run(main)
"""
    consume = """
async def main():
    async with consumer(given["join"]) as stream:
        say(role=stream.role, addresses=stream.addresses)
        for address in stream.addresses:
            with socket.create_connection(address) as data:
                parts = []
                while part := data.recv(65536):
                    parts.append(part)
            say(digest=hashlib.sha256(b"".join(parts)).hexdigest(), bytes=sum(map(len, parts)))
        error = await stream.ended()
        say(code=error.code)
run(main)
"""
    data = noise(3_000_000)
    with world.request(2) as requested, listen() as detector:
        consuming = start(world, consume, under, join=requested.join[CONS])
        producing = start(world, produce, under, join=requested.join[PROD], listen=address_of(detector))
        assert said(producing) == {"role": PROD, "addresses": []}
        requested.streaming()
        told = said(consuming)
        assert (told["role"], len(told["addresses"])) == (CONS, 2)
        for _ in range(2):
            camera, _ = detector.accept()
            with camera:
                camera.sendall(data)
            arrived = said(consuming)
            assert f"{arrived['bytes']} bytes, {arrived['digest']}" == sha256(data)
        requested.release()
        for program in (producing, consuming):
            assert said(program) == {"code": "released"}
            program.end()


def test_one_program_joins_both_sides_again_and_again_and_leaves_nothing_open(world: World) -> None:
    script = """
async def main():
    first = producer(given["joins"]["PROD"], listen=[given["listen"]])
    second = consumer(given["joins"]["CONS"])
    await asyncio.gather(first.__aenter__(), second.__aenter__())
    assert len(second.addresses) == 1
    await asyncio.gather(first.close(), second.close())
    assert await first.ended() is None
    try:
        await first.__aenter__()
    except StreamError as error:
        say(code=error.code, msg=error.msg)
    try:
        await consumer(given["joins"]["CONS"]).ended()
    except StreamError as error:
        say(code=error.code, msg=error.msg)

for _ in range(3):
    run(main)
    say(open=len(os.listdir("/proc/self/fd")), threads=threading.active_count())
"""
    with world.request() as requested, listen() as detector:
        program = start(world, script, joins=requested.join, listen=address_of(detector))
        requested.streaming()
        left = []
        for _ in range(3):
            assert "can be entered once only" in said(program)["msg"]
            assert "is not joined yet" in said(program)["msg"]
            left.append(said(program))
        assert left[1] == left[2]
        assert left[2]["threads"] == 1
        program.end()
        (listener,) = world.cons_listeners(requested.join[CONS])
        with connect(listener) as analysis, detector.accept()[0] as camera:
            camera.sendall(b"frame")
            camera.close()
            assert receive(analysis) == b"frame", "the stream goes on without whoever has left it"


@UNDER
def test_every_fault_is_a_stream_error_with_a_sentence(world: World, under: str) -> None:
    script = """
async def main():
    joins, listen = given["joins"], [given["listen"]]
    other = joins["CONS"].replace(joins["CONS"][12:20], "00000000")
    wrong = [
        lambda: producer(joins["CONS"], listen=listen),
        lambda: consumer(joins["PROD"]),
        lambda: consumer(joins["CONS"][:-3]),
        lambda: producer(joins["PROD"], listen=["localhost:7000"]),
        lambda: producer(joins["PROD"], listen=["7000"]),
        lambda: producer(joins["PROD"], listen=["203.0.113.5:7000"]),
        lambda: consumer(other),
    ]
    for make in wrong:
        try:
            async with make():
                say(joined=True)
        except StreamError as error:
            say(code=error.code, msg=error.msg)
run(main)
"""
    with world.request() as requested:
        program = start(world, script, under, joins=requested.join, listen=f"{HOST}:{free_ports()}")
        errors = [json.loads(line) for line in program.end().stdout.splitlines()]
    parts = [
        ("bad-message", "this join string is for the consumer: pass it to consumer()"),
        ("bad-message", "this join string is for the producer: pass it to producer()"),
        ("bad-message", "its last part, ca=, is incomplete"),
        ("bad-message", "localhost:7000: gateways do not resolve"),
        ("bad-message", "'7000'"),
        ("target-refused", "203.0.113.5"),
        ("not-authorized", "no stream here expects this application"),
    ]
    for error, (code, part) in zip(errors, parts, strict=True):
        assert error["code"] == code, error
        assert part in error["msg"]


CANCEL = {
    "asyncio": """
async def main():
    one = consumer(given["join"])
    async def join():
        async with one:
            say(joined=True)
    task = asyncio.create_task(join())
    await asyncio.sleep(given["seconds"])
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        say(cancelled=True, reason=await one.ended())
asyncio.run(main())
""",
    "twisted": """
from twisted.internet import defer, task
async def main(reactor):
    one = consumer(given["join"])
    async def join():
        async with one:
            say(joined=True)
    working = defer.ensureDeferred(join())
    working.addErrback(lambda failure: failure.trap(defer.CancelledError))
    await task.deferLater(reactor, given["seconds"])
    working.cancel()
    await working
    say(cancelled=True, reason=await one.ended())
task.react(lambda reactor: defer.ensureDeferred(main(reactor)))
""",
}


@UNDER
@pytest.mark.parametrize("seconds", [0.001, 0.05, 2])
def test_a_consumer_that_gives_up_waiting_leaves_the_stream_as_it_is(world: World, under: str, seconds: float) -> None:
    with world.request() as requested:
        program = start(world, CANCEL[under], join=requested.join[CONS], seconds=seconds)
        assert said(program) == {"cancelled": True, "reason": None}
        program.end()
        assert world.centre.states()[requested.uid, CONS] in ("Listening", "Ready")


def test_a_facility_that_cannot_be_reached_is_told_within_the_time_that_is_left_for_hello(world: World) -> None:
    script = """
from scistream import timing
timing.HELLO = 1.0
async def main():
    try:
        async with consumer(given["join"]):
            say(joined=True)
    except StreamError as error:
        say(code=error.code, msg=error.msg)
asyncio.run(main())
"""
    with world.request() as requested:
        join = requested.join[CONS].replace(world.centre.s2cs, f"{HOST}:{free_ports()}")
        error = said(start(world, script, join=join))
    assert error["code"] == "timeout"
    assert "The connection was refused" in error["msg"]
