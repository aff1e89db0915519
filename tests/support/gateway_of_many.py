"""Thousands of streams of an S2CS without their applications: records in its store, and a gateway with figures.

The gateway answers over plain TCP on loopback, and holds no port and no connection of any stream.
"""

from __future__ import annotations

import json
import math
import random
import socketserver
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scistream.paging import page_key
from scistream.protocol.address import Address
from scistream.protocol.messages import CONS, PROD, Req, Role
from scistream.s2cs.record import Record
from scistream.s2cs.store.database import Store

GATEWAY = "dtn1"
BOOT = "0" * 32
OWNERS = ("ada@lab.example", "grace@centre.example", "emmy@lab.example", "lise@source.example")
LABELS = ("", "beamline 7 tomography", "cryo-EM 2", "tokamak shot 40318", "sky survey", "light sheet")


def fill(file: Path, count: int, gateway: str = GATEWAY, seed: int = 1) -> list[Record]:
    """Write the records of streams into a new store; most are streaming, some wait for somebody.

    :returns: the records.
    """
    chance, now = random.Random(seed), time.time()
    records = [_record(number, chance, gateway, now) for number in range(count)]
    store = Store(file)
    try:
        for record in records:
            store.save(record)
    finally:
        store.close()
    return records


def _record(number: int, chance: random.Random, gateway: str, now: float) -> Record:
    uid = str(uuid.UUID(int=chance.getrandbits(128), version=4))
    role: Role = PROD if chance.random() < 0.5 else CONS
    channels = list(range(chance.choice((1, 1, 2, 4))))
    label = chance.choice(LABELS)
    age = chance.expovariate(1 / 7200)
    listeners = {channel: f"127.0.0.1:{20000 + (number * 4 + channel) % 40000}" for channel in channels}
    state = "Streaming" if chance.random() < 0.85 else chance.choice(("Listening", "Ready"))
    app = ["127.0.0.1:9000"]
    return Record(
        uid=uid,
        role=role,
        owner=f"{chance.choice(OWNERS)} (sha256:{'0' * 64})",
        state=state,
        request=Req(
            uid=uid,
            role=role,
            seq=1,
            num_conn=len(channels),
            rate=float(chance.choice((10, 25, 40))),
            app_key_hash="0" * 64,
            label=f"{label} {number}" if label else None,
        ),
        plan={gateway: channels},
        boots={gateway: BOOT},
        listeners=listeners,
        csr={gateway: ""},
        app_listeners=app if role == PROD else [],
        greeted=state != "Listening",
        generation=1 if state == "Streaming" else 0,
        connection_map=dict.fromkeys(listeners.values(), app[0]) if state == "Streaming" else {},
        life=86400.0,
        expires_at=now - age + 86400.0,
        hello_by=now + 3600.0,
        started_at=now - age / 2 if state == "Streaming" else 0.0,
        state_since=now - age / 2,
    )


class _Lines(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            command = json.loads(line)
            if command.get("cmd") == "Status":
                answer = self.server.many.status(command)  # type: ignore[attr-defined]
                self.wfile.write(json.dumps(answer).encode() + b"\n")


class GatewayOfMany:
    """A gateway that reports figures of all these streams, whose totals grow with time."""

    def __init__(self, records: list[Record]) -> None:
        self._records = {page_key(record.key): record for record in records}
        self._order = sorted(self._records)
        self._began = time.monotonic()
        self.pages = 0
        """Pages of Status that it has answered."""

    def status(self, command: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to Status."""
        self.pages += 1
        after, limit = command.get("after") or "", command.get("limit", 20)
        if command.get("uid"):
            keys = [key for key in self._order if key.startswith(command["uid"])]
        else:
            keys = [key for key in self._order if key > after]
        page = keys[:limit]
        answer = {
            "cmd": "RESP",
            "uid": command.get("uid"),
            "seq": command["seq"],
            "state": "",
            "msg": f"{len(page)} streams",
            "boot": BOOT,
            "streams": [self._of(key) for key in page],
            "room": {"ports": 40000, "rate": 400000.0},
        }
        if len(keys) > limit:
            answer["more"] = page[-1]
        return answer

    def _of(self, key: str) -> dict[str, Any]:
        record = self._records[key]
        assert record.request is not None
        seconds = time.monotonic() - self._began
        share = record.request.rate * 1e6 / 8 / record.request.num_conn
        is_streaming = record.state == "Streaming"
        figures = [
            {
                "channel": channel,
                "bytes_to_consumer": int(share * (0.6 * seconds + 4 * math.sin(seconds / 20 + record.hello_by % 7)))
                + 2**26
                if is_streaming
                else 0,
                "bytes_to_producer": int(seconds * share * 0.01) if is_streaming else 0,
                "connections": 2 if is_streaming else 0,
                "accepted": 3 if is_streaming else 0,
                "rtt_ms": 11.0,
                "retransmits": int(seconds),
            }
            for channel in record.plan[GATEWAY]
        ]
        return {
            "uid": record.uid,
            "role": record.role,
            "state": "Armed" if is_streaming else "Listening",
            "channels": record.plan[GATEWAY],
            "figures": figures,
            "rate": record.request.rate,
        }


@contextmanager
def listening(records: list[Record], port: int) -> Iterator[GatewayOfMany]:
    """Run such a gateway on loopback in a thread."""
    many = GatewayOfMany(records)
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", port), _Lines) as server:
        server.daemon_threads = True
        server.many = many  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield many
        finally:
            server.shutdown()
            thread.join(10)


def address(port: int) -> Address:
    """Return an address on loopback."""
    return Address("127.0.0.1", port)
