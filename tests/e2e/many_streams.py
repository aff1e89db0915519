"""A program that requests several streams and joins both of their ends, in one process; and the bytes that it carries.

Thousands of processes would be needed if each stream had its own commands.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
import threading
from types import TracebackType
from typing import Any

from harness import World

from scistream.protocol.messages import PROD
from support.applications import accept, address_of, connect, listen, noise
from support.waiting import PATIENCE, until

PROGRAM = '''
import json, sys
from twisted.internet.defer import Deferred, gatherResults
from scistream.app.controller import Controller, NoProgram
from scistream.cli_support import run
from scistream.protocol.address import Address
from scistream.protocol.join_string import Join
from scistream.s2uc.client import Client

prod, cons, config, *detectors = sys.argv[1:]

class Staying(NoProgram):
    """It stays until its stream ends."""

    def start(self, listeners):
        self.listeners = list(listeners)

    def ended(self, _reactor):
        return Deferred()

def say(**words):
    print(json.dumps(words), flush=True)

async def main(reactor):
    client = Client.from_config(config, reactor=reactor)
    streams = []

    async def one(detector):
        stream = await client.request(prod=prod, cons=cons, rate=10.0)
        streams.append(stream)
        for role, listeners in (("PROD", [Address.parse(detector)]), ("CONS", [])):
            app = Controller(reactor, Join.parse(stream.join[role]), listeners, Staying(), lambda _: None)
            app.run().addCallback(lambda why, role=role: say(uid=stream.uid, role=role, code=why.code, msg=why.msg))
        await stream.provisioned()
        return {"uid": stream.uid, "prod": stream.listeners["PROD"][0], "cons": stream.listeners["CONS"][0]}

    say(streams=await gatherResults([Deferred.fromCoroutine(one(detector)) for detector in detectors]))
    try:
        await Deferred()
    finally:
        await gatherResults([Deferred.fromCoroutine(released(stream)) for stream in streams])
        await client.close()

async def released(stream):
    await stream.release()

sys.exit(run(main))
'''


_BLOCK = 4096
_PAUSE = 0.1
"""Seconds between two blocks: data flows all the time, and takes next to nothing."""


class _Flow:
    """One direction of a connection: blocks that are sent until the end, and the digests at both ends."""

    def __init__(self, sender: socket.socket, receiver: socket.socket, seed: int) -> None:
        self._sender, self._receiver = sender, receiver
        self._seed = seed
        self._sent, self._received = hashlib.sha256(), hashlib.sha256()
        self._unsent = b""
        self._has_ended = False
        self.bytes = 0
        """Bytes that have arrived."""
        self.is_over = False
        self.was_reset = False

    def step(self, *, is_last: bool) -> None:
        """Send a block, or the end after everything is sent, and receive what is there."""
        try:
            if not self._unsent and not is_last:
                self._seed += 1
                self._unsent = noise(_BLOCK, seed=self._seed)
            if self._unsent:
                self._send()
            elif is_last and not self._has_ended:
                self._has_ended = True
                self._sender.shutdown(socket.SHUT_WR)
            self._receive()
        except BlockingIOError:
            return
        except OSError:
            self.is_over = self.was_reset = True

    def _send(self) -> None:
        try:
            count = self._sender.send(self._unsent)
        except BlockingIOError:
            count = 0
        self._sent.update(self._unsent[:count])
        self._unsent = self._unsent[count:]

    def _receive(self) -> None:
        while data := self._receiver.recv(65536):
            self._received.update(data)
            self.bytes += len(data)
        self.is_over = True

    @property
    def is_whole(self) -> bool:
        """True if everything that was sent has arrived."""
        return not self.was_reset and self._sent.digest() == self._received.digest()


class Trickle:
    """Connections with data that flows in both directions until `finish`; a thread sends and receives."""

    def __init__(self, pairs: list[tuple[socket.socket, socket.socket]], seed: int) -> None:
        self._sockets = [sock for pair in pairs for sock in pair]
        for sock in self._sockets:
            sock.setblocking(False)
        self._flows = [
            _Flow(one, other, seed=1000 * (seed + 2 * number + turn))
            for number, (consumer, producer) in enumerate(pairs)
            for turn, (one, other) in enumerate(((consumer, producer), (producer, consumer)))
        ]
        self._enough = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(_PAUSE):
            for flow in self._flows:
                if not flow.is_over:
                    flow.step(is_last=self._enough.is_set())

    def wait_for_more(self, count: int = 2 * _BLOCK) -> None:
        """Wait until so many bytes more have arrived in each direction of each connection."""
        goals = [flow.bytes + count for flow in self._flows]
        until(
            lambda: all(flow.bytes >= goal for flow, goal in zip(self._flows, goals, strict=True)),
            lambda: f"bytes do not arrive: {[flow.bytes for flow in self._flows]}, wanted {goals}",
        )

    def finish(self) -> str:
        """Send the ends: "whole" if all bytes have arrived everywhere, "reset" if all connections were reset."""
        self._enough.set()
        until(lambda: all(flow.is_over for flow in self._flows), lambda: f"{len(self._flows)} flows do not end")
        if all(flow.was_reset for flow in self._flows):
            return "reset"
        assert all(flow.is_whole for flow in self._flows), [(flow.was_reset, flow.bytes) for flow in self._flows]
        return "whole"

    def close(self) -> None:
        """Stop, and close all sockets."""
        self._stopped.set()
        self._thread.join(PATIENCE)
        for sock in self._sockets:
            sock.close()


class ManyStreams:
    """Streams of one channel between both facilities of a world, with data that flows in both directions.

    Use it as a context manager: it releases at the end what has not ended.
    """

    _seed = 0

    def __init__(self, world: World, count: int) -> None:
        self._world = world
        self._count = count

    def __enter__(self) -> ManyStreams:
        world, between = self._world, [self._world.lab.s2cs, self._world.centre.s2cs]
        config = str(world.folder / "config" / "scistream" / "s2uc.toml")
        detectors = [listen() for _ in range(self._count)]
        self.program = world.start(sys.executable, "-c", PROGRAM, *between, config, *map(address_of, detectors))
        self.streams: list[dict[str, str]] = json.loads(self.program.line())["streams"]
        pairs = []
        for stream, detector in zip(self.streams, detectors, strict=True):
            consumer = connect(stream["cons"])
            pairs.append((consumer, accept(detector)))
            detector.close()
        ManyStreams._seed += 2 * self._count
        self.traffic = Trickle(pairs, ManyStreams._seed)
        self.traffic.wait_for_more()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.traffic.close()
        self.release()

    def release(self) -> None:
        """Release all streams."""
        self.program.stop()

    def ends(self) -> dict[str, dict[str, Any]]:
        """Wait until the producers have been told why their streams have ended; return that, by uid."""
        found: dict[str, dict[str, Any]] = {}
        while len(found) < len(self.streams):
            told = json.loads(self.program.line())
            if told["role"] == PROD:
                found[told["uid"]] = told
        return found
