"""Draw docs/_static/watch.svg: the view of `s2uc watch` from a real run. Run this file; it takes a minute.

    .venv/bin/python tests/e2e/draw_watch.py

Two facilities run on this machine, and a producer sends at rates that change. The view is drawn by the same function as
on a terminal, and saved as a picture by rich.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import re
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
for folder in ("tests", "tests/e2e"):
    sys.path.insert(0, str(ROOT / folder))

from harness import World  # noqa: E402
from rich.console import Console  # noqa: E402

from scistream.s2uc import watch_view  # noqa: E402
from scistream.s2uc.client import Client  # noqa: E402
from scistream.s2uc.watch_history import WatchHistory, WatchMoment  # noqa: E402
from support.applications import accept, address_of, connect, listen  # noqa: E402

PICTURE = ROOT / "docs" / "_static" / "watch.svg"
COLUMNS, ROWS = 92, 30
SECONDS = 58.0
CHANNELS = 4
UID = "6857809e-18e6-4c61-81a4-3d698c907be6"


def main() -> None:
    """Stream for a minute, and draw the last moment."""
    with (
        tempfile.TemporaryDirectory() as folder,
        World(Path(folder)) as world,
        listen() as detector,
        world.request(CHANNELS, "10Gbit", "--label", "run 7", "--uid", UID) as requested,
    ):
        consumer = world.cons(requested.join["CONS"])
        world.prod(requested.join["PROD"], [address_of(detector)]).end()
        requested.streaming()
        listeners = json.loads(consumer.end().stdout)["listeners"]
        stop = threading.Event()
        sockets = []
        for listener in listeners:
            analysis = connect(listener)
            sockets += [analysis, accept(detector)]
        threads = [
            threading.Thread(target=work, args=(sock, stop, number // 2))
            for number, (sock, work) in enumerate(zip(sockets, [_read, _send] * CHANNELS, strict=True))
        ]
        for thread in threads:
            thread.start()
        history = asyncio.run(_watched(world, requested.uid))
        stop.set()
        for sock in sockets:
            sock.shutdown(2)
        for thread in threads:
            thread.join(10)
        for sock in sockets:
            sock.close()
    console = Console(width=COLUMNS, record=True, file=io.StringIO(), force_terminal=True)
    console.print(watch_view.picture(history, COLUMNS, ROWS))
    svg = console.export_svg(title="s2uc watch 6857")
    PICTURE.write_text(re.sub(r"\s*@font-face \{.*?\}\n", "", svg, flags=re.DOTALL))  # no request to another host
    print(f"wrote {PICTURE}")


def _read(sock: socket.socket, stop: threading.Event, _number: int) -> None:
    buffer = bytearray(1 << 20)
    while not stop.is_set() and sock.recv_into(buffer):
        pass


def _send(sock: socket.socket, stop: threading.Event, number: int) -> None:
    """Send at a rate that goes up and down."""
    block, started = bytes(1 << 18), time.monotonic()
    while not stop.is_set():
        passed = time.monotonic() - started
        blocks = 20 + 14 * math.sin(passed / 7 + number / 9) + (12 if 30 < passed < 40 else 0)
        for _ in range(round(blocks)):
            try:
                sock.sendall(block)
            except OSError:
                return
        stop.wait(0.25)


async def _watched(world: World, uid: str) -> WatchHistory:
    users = world.folder / "users"
    files = {"certificate": users / "ada.pem", "key": users / "ada.key"}
    authorities = [facility.authority for facility in world.facilities]
    history = WatchHistory(uid, "run 7")
    async with Client(**files, authorities=authorities, remember=False) as client:
        stream = client.remembered(uid, prod=world.lab.s2cs, cons=world.centre.s2cs)
        started = time.monotonic()
        while time.monotonic() - started < SECONDS:
            sides, failures = await stream.sides()
            moment = WatchMoment(time.monotonic(), sides, {role: error.msg for role, error in failures.items()})
            history.add(moment)
            await asyncio.sleep(2.0)
    return history


if __name__ == "__main__":
    main()
