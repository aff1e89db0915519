"""Take the pictures of the status page in docs/_static/: `python tests/e2e/record_screenshots.py`, two minutes.

Two facilities run as real processes on loopback, with streams that carry data at different rates.
"""

from __future__ import annotations

import io
import math
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from PIL import Image

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import Requested, World, free_ports

from support.applications import accept, address_of, connect, listen
from support.browser import browser
from support.facilities import HOST
from support.programs import many_processes

FOLDER = Path(__file__).parents[2] / "docs" / "_static"
SECONDS = 100.0
"""For which data flow before the pictures are taken."""
STREAMS = (
    ("beamline 7 tomography", 4, "2Gbit", 180.0, 9.0),
    ("cryo-EM 2, session 1184", 2, "1Gbit", 60.0, 23.0),
    ("light sheet, embryo 3", 1, "500Mbit", 25.0, 5.0),
)
"""Label, channels, reserved rate, Mbit/s that flow on average, and the seconds of a cycle."""


def send(stack: ExitStack, listeners: list[str], producer: object, mbit: float, cycle: float) -> None:
    """Send data through a stream until the stack is closed."""
    consumers = [connect(one) for one in listeners]
    producers = [accept(producer) for _ in consumers]  # type: ignore[arg-type]
    over = threading.Event()

    def push() -> None:
        began = time.monotonic()
        while not over.wait(0.05):
            share = 1.0 + 0.6 * math.sin((time.monotonic() - began) / cycle) + 0.2 * math.sin(time.monotonic() * 1.7)
            for sock in producers:
                with suppress(OSError):
                    sock.sendall(bytes(int(share * mbit * 1e6 / 8 * 0.05 / len(producers))))

    def pull(number: int) -> None:
        with suppress(OSError):
            while consumers[number].recv(1 << 20):
                consumers[number].sendall(bytes(200))

    threads = [
        threading.Thread(target=push),
        *(threading.Thread(target=pull, args=(n,)) for n in range(len(consumers))),
    ]
    for thread in threads:
        thread.start()

    def stop() -> None:
        over.set()
        for sock in (*producers, *consumers):
            sock.close()
        for thread in threads:
            thread.join(10)

    stack.callback(stop)


def streaming(
    stack: ExitStack, world: World, label: str, channels: int, rate: str
) -> tuple[Requested, list[str], object]:
    """Set up a stream, and return it with the consumer's listeners and the producer's one."""
    producer = stack.enter_context(listen())
    requested = stack.enter_context(world.request(channels, rate, "--label", label))
    world.prod(requested.join["PROD"], [address_of(producer)]).end()
    listeners = world.cons_listeners(requested.join["CONS"])
    requested.streaming()
    return requested, listeners, producer


def save(picture: bytes, file: Path) -> None:
    """Write a picture with few colours, so that it is small."""
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(160, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size // 1024} KiB")


def main() -> None:
    """Take the pictures."""
    port = free_ports()
    http = {"settings": {"http": {"listen": f"{HOST}:{port}"}}}
    with tempfile.TemporaryDirectory() as folder, many_processes(), ExitStack() as stack:
        world = stack.enter_context(World(Path(folder), lab={"gateways": 2, "ports": 16, **http}, centre={"ports": 32}))
        window = stack.enter_context(browser())
        window.size(1280, 860)
        window.open(f"http://{HOST}:{port}/")
        first = None
        for label, channels, rate, mbit, cycle in STREAMS:
            requested, listeners, producer = streaming(stack, world, label, channels, rate)
            first = first or requested
            send(stack, listeners, producer, mbit, cycle)
        stack.enter_context(world.request(2, "1Gbit", "--label", "tokamak shot 40318"))
        with world.request(1, "100Mbit", "--label", "alignment"):
            pass
        world.s2uc("request", "--prod", world.lab.s2cs, "--cons", world.centre.s2cs, "--rate", "900Gbit", check=False)
        time.sleep(SECONDS)
        assert first is not None
        save(window.picture(), FOLDER / "status-page.png")
        window.open(f"http://{HOST}:{port}/streams/{first.uid}")
        window.size(1280, 1000)
        time.sleep(5)
        save(window.picture(), FOLDER / "stream-page.png")
        window.size(390, 844)
        window.prefer("dark")
        window.open(f"http://{HOST}:{port}/")
        time.sleep(3)
        save(window.picture(), FOLDER / "status-page-phone.png")


if __name__ == "__main__":
    main()
