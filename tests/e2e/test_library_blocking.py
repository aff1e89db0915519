"""The library without coroutines, in a running event loop, and in other processes, against real servers."""

from __future__ import annotations

import itertools
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import World

from support.applications import address_of, connect, listen, receive_exactly
from support.programs import Program
from support.waiting import until

pytestmark = pytest.mark.usefixtures("nothing_left")
ROOT = Path(__file__).parents[2]

COMMON = '''
import asyncio, json, sys, threading, time
from pathlib import Path
from scistream.protocol.errors import StreamError
from scistream.s2uc.blocking import Client
from scistream.s2uc.client import Client as AsyncClient

prod, cons, folder, certificate, key, *authorities = sys.argv[1:]
files = dict(certificate=certificate, key=key, authorities=authorities)

def say(**words):
    print(json.dumps(words), flush=True)

def until(condition):
    """Wait for the test, or for a callback."""
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("waited for too long")
        time.sleep(0.01)
'''


def start(world: World, tmp_path: Path, script: str) -> Program:
    users = world.folder / "users"
    named = [users / "ada.pem", users / "ada.key", *(each.authority for each in world.facilities)]
    between = [world.lab.s2cs, world.centre.s2cs]
    return world.start(sys.executable, "-W", "always", "-c", COMMON + script, *between, str(tmp_path), *map(str, named))


def said(program: Program) -> dict[str, Any]:
    words: dict[str, Any] = json.loads(program.line())
    return words


def test_a_script_without_coroutines_gets_states_and_figures_while_bytes_flow(world: World, tmp_path: Path) -> None:
    script = """
states, figures, threads = [], [], set()

def bad(change):
    raise RuntimeError("a callback of the user's")

def look(change):
    threads.add(threading.current_thread().name)
    states.append((change.before, change.state, stream.generation >= 0))

with Client(**files) as client:
    with client.request(prod=prod, cons=cons, rate="1Gbit", timeout=30) as stream:
        stream.on_state(bad)
        stream.on_state(look)
        say(join=stream.join)
        try:
            stream.provisioned(timeout=0.2)
        except StreamError as error:
            say(code=error.code, msg=error.msg, state=stream.state)
        say(map=stream.provisioned(timeout=30))
        subscription = stream.on_figures(figures.append, interval=0.2)
        until(lambda: figures and figures[-1].bytes_to_consumer == 5000)
        last = figures[-1]
        subscription.cancel()
        say(bytes=[last.bytes_to_consumer, last.bytes_to_producer], rate=max(one.mbit_to_consumer for one in figures),
            connections=last.connections, resets=sorted(last.resets), unreachable=len(last.unreachable))
    until(lambda: states[-1][1] == "Released")
say(states=[(before, state) for before, state, _ in states], threads=sorted(threads))
say(state=stream.state, left=[one.name for one in threading.enumerate() if one.name == "scistream client"])
"""
    program = start(world, tmp_path, script)
    join = said(program)["join"]
    late = said(program)
    assert (late["code"], late["state"]) == ("timeout", "Reserved")
    assert "0.2 s of waiting for ProdApp's Hello" in late["msg"]
    with listen() as detector:
        world.prod(join["PROD"], [address_of(detector)]).end()
        assert address_of(detector) in said(program)["map"].values()
        with connect(world.cons_listeners(join["CONS"])[0]) as analysis:
            camera, _ = detector.accept()
            with camera:
                camera.sendall(b"frame" * 1000)
                assert receive_exactly(analysis, 5000) == b"frame" * 1000
                figures = said(program)
    assert figures["bytes"] == [5000, 0]
    assert figures["rate"] >= 0
    assert figures["connections"] == 1
    assert (figures["resets"], figures["unreachable"]) == (["CONS", "PROD"], 0)
    told = said(program)
    path = ["Reserved", "Provisioning", "Updating", "Streaming", "Releasing", "Released"]
    assert told["states"] == [list(pair) for pair in itertools.pairwise(path)]
    assert told["threads"] == ["scistream callbacks"]
    assert said(program) == {"state": "Released", "left": []}
    errors = program.end().stderr
    assert "ResourceWarning" not in errors


def test_a_cell_of_a_notebook_works_while_its_event_loop_runs(world: World, tmp_path: Path) -> None:
    script = """
loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
names = {}

def plain_cell():
    "Code without await, which the kernel runs in its loop."
    names["client"] = Client(**files)
    names["stream"] = names["client"].request(prod=prod, cons=cons, rate="100Mbit", timeout=30)
    names["asking"] = AsyncClient(**files)
    names["task"] = names["asking"].streams_at(prod)

async def cell_that_awaits():
    say(mine=[one.uid == names["stream"].uid for one in await names["task"]], state=names["stream"].state)
    async with names["asking"].request(prod=prod, cons=cons, rate="100Mbit") as stream:
        say(state=stream.state)

async def last_cell():
    await names["asking"].close()
    names["stream"].release()
    names["client"].close()

def kernel():
    "Run each cell when the one before is done, as a kernel does."
    plain_cell()
    def then(_):
        loop.create_task(last_cell()).add_done_callback(lambda done: (done.result(), loop.stop()))
    loop.create_task(cell_that_awaits()).add_done_callback(lambda done: (done.result(), then(done)))

loop.call_soon(kernel)
loop.run_forever()
say(done=True)
"""
    program = start(world, tmp_path, script)
    assert said(program) == {"mine": [True], "state": "Reserved"}
    assert said(program) == {"state": "Reserved"}
    assert said(program) == {"done": True}
    assert "ResourceWarning" not in program.end().stderr


def test_ctrl_c_releases_what_a_request_has_not_returned(world: World, tmp_path: Path) -> None:
    script = """
try:
    with Client(**files) as client:
        threading.Thread(target=lambda: say(began=True)).start()
        client.request(prod=prod, cons=cons, rate=100.0)
except KeyboardInterrupt:
    say(interrupted=True)
"""
    gateway = world.centre.gateways[0]
    before = world.centre.states()
    gateway.program.process.send_signal(signal.SIGSTOP)
    try:
        program = start(world, tmp_path, script)
        said(program)

        def new() -> list[str]:
            return [state for one, state in world.centre.states().items() if one not in before]

        until(lambda: new() == ["Reserving"], lambda: world.centre.server.words())
        program.process.send_signal(signal.SIGINT)
        until(lambda: new() == ["Releasing"], lambda: world.centre.server.words())
    finally:
        gateway.program.process.send_signal(signal.SIGCONT)
    assert said(program) == {"interrupted": True}
    program.end()
    assert new() == ["Released"]


def test_a_client_that_is_not_closed_does_not_keep_python_and_releases_what_nobody_has(
    world: World, tmp_path: Path
) -> None:
    script = """
client = Client(**files)
stream = client.request(prod=prod, cons=cons, rate=100.0)
say(uid=stream.uid)
threading.Thread(target=lambda: client.remembered(stream.uid, prod=prod, cons=cons).ended(), daemon=True).start()
"""
    program = start(world, tmp_path, script)
    uid = said(program)["uid"]
    program.end()
    assert world.lab.states()[uid, "PROD"] == "Listening", "it was returned, so it belongs to the user"
    world.s2uc("release", uid)


def test_tasks_of_a_workflow_pass_a_stream_on_by_its_handle(world: World, tmp_path: Path) -> None:
    script, file = str(ROOT / "docs" / "howto" / "workflow_engine.py"), tmp_path / "handle"
    reserving = world.start(sys.executable, script, "reserve", str(file), world.lab.s2cs, world.centre.s2cs)
    joins = reserving.end().stdout.split()
    supervising = world.start(sys.executable, script, "supervise", str(file), "5000")
    with listen() as detector:
        world.prod(joins[0], [address_of(detector)]).end()
        with connect(world.cons_listeners(joins[1])[0]) as analysis:
            camera, _ = detector.accept()
            with camera:
                camera.sendall(b"frame" * 1000)
                assert receive_exactly(analysis, 5000) == b"frame" * 1000
                ended = supervising.end()
    assert ended.stdout == "5000\n"
    assert "Streaming -> Releasing" in ended.stderr


def test_a_fork_and_a_closed_client_are_told_apart_and_a_handle_has_no_secret_unless_asked(
    world: World, tmp_path: Path
) -> None:
    script = """
import os, pickle
client = Client(**files)
stream = client.request(prod=prod, cons=cons, rate=100.0)
for wrong in (client, stream, client._client.remembered(stream.uid, prod=prod, cons=cons)):
    try:
        pickle.dumps(wrong)
    except TypeError as error:
        say(cannot=str(error))
plain, secret = (pickle.loads(pickle.dumps(stream.handle(secrets=secrets))) for secrets in (False, True))
say(plain=plain.join, same=secret.join == stream.join, shown=any(one in repr(secret) for one in stream.join.values()))
child = os.fork()
if child == 0:
    try:
        stream.status()
    except StreamError as error:
        say(code=error.code, msg=error.msg)
    with Client(**files) as mine:
        say(joins=mine.attach(secret, timeout=30).join == secret.join)
    os._exit(0)
os.waitpid(child, 0)
waiting = threading.Thread(target=lambda: wait_for_end())
def wait_for_end():
    try:
        stream.ended()
    except StreamError as error:
        say(code=error.code, msg=error.msg)
waiting.start()
stream.release()
waiting.join(30)
again = client.request(prod=prod, cons=cons, rate=100.0)
def wait_again():
    try:
        again.ended()
    except StreamError as error:
        say(code=error.code, msg=error.msg)
waiting = threading.Thread(target=wait_again)
waiting.start()
say(state=again.state)
client.close()
client.close()
waiting.join(30)
with Client(**files) as client:
    client.attach(again.handle(), timeout=30).release(timeout=30)
try:
    again.status()
except StreamError as error:
    say(code=error.code, msg=error.msg)
"""
    program = start(world, tmp_path, script)
    assert ["pickle" in said(program)["cannot"] for _ in range(3)] == [True] * 3
    assert said(program) == {"plain": {}, "same": True, "shown": False}
    forked = said(program)
    assert forked["code"] == "wrong-state"
    assert "fork" in forked["msg"]
    assert said(program) == {"joins": True}
    assert said(program) == {"state": "Reserved"}
    for _ in range(2):
        closed = said(program)
        assert (closed["code"], closed["msg"]) == ("wrong-state", "this Client is closed: make a new one")
    program.end()
