"""The demonstration's detector: an ordinary TCP server that sends numbered frames to the client that connects.

Run ``python -m scistream.demo.detector --listen HOST:PORT [--listen ...] (--bytes N | --seconds S)``. There is one
listener, one thread and one connection for each channel. The detector prints its listeners as one line of JSON, and a
report as another when everything is sent. It knows nothing of SciStream.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from scistream import timing
from scistream.demo.frames import FRAME_BYTES, MAX_FRAME_BYTES, FrameMaker, whole_digest


class Plan:
    """How much to send: a number of bytes, or as much as possible within a time."""

    def __init__(self, total: int | None, seconds: float | None, frame_bytes: int, channels: int) -> None:
        self._total = total
        self._seconds = seconds
        self.frame_bytes = frame_bytes
        self._channels = channels
        self._lock = threading.Lock()
        self._deadline: float | None = None

    def begin(self) -> None:
        """Note a connection. The time starts with the first one."""
        with self._lock:
            if self._seconds is not None and self._deadline is None:
                self._deadline = time.monotonic() + self._seconds

    def frames(self, channel: int) -> Iterator[tuple[int, int]]:
        """Yield the (number, length in bytes) of each frame of a channel, until everything is sent."""
        number = channel
        while (length := self._length(number)) > 0:
            yield number, length
            number += self._channels

    def _length(self, number: int) -> int:
        if self._total is not None:
            return min(self.frame_bytes, self._total - number * self.frame_bytes)
        assert self._deadline is not None, "begin() comes first"
        return self.frame_bytes if time.monotonic() < self._deadline else 0


class DetectorChannel(threading.Thread):
    """A thread that waits for the connection of one channel and sends its frames."""

    def __init__(
        self, number: int, listener: socket.socket, plan: Plan, failed: threading.Event, timeout: float
    ) -> None:
        super().__init__(name=f"channel-{number}", daemon=True)
        self.maker = FrameMaker(number, plan.frame_bytes)
        self.error: str | None = "it failed by a fault of the detector itself"
        self._listener = listener
        self._plan = plan
        self._failed = failed
        self._timeout = timeout

    def run(self) -> None:
        """Accept and send; a failure is in `error`."""
        try:
            with self._listener:
                connection = self._accept()
            if connection is None:
                self.error = "no connection before another channel failed"
            else:
                with connection:
                    self._send(connection)
                self.error = None
        except OSError as error:
            sent = f"{self.maker.frames} frames ({self.maker.bytes} bytes)"
            self.error = f"the connection was lost after {sent}: {error}"
        finally:
            if self.error is not None:
                self._failed.set()

    def _accept(self) -> socket.socket | None:
        self._listener.settimeout(timing.DETECTOR_POLL)
        while not self._failed.is_set():
            try:
                connection, _peer = self._listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(self._timeout)
            return connection
        return None

    def _send(self, connection: socket.socket) -> None:
        self._plan.begin()
        for number, length in self._plan.frames(self.maker.channel):
            connection.sendall(self.maker.data(number, length))
        connection.sendall(self.maker.final())
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass  # the consumer sends nothing: it closes the connection when it has read everything


def listen(texts: Sequence[str]) -> list[socket.socket]:
    """Bind a listener to each address. Port 0 lets the system choose a port.

    :raises ValueError: if a text is not HOST:PORT.
    :raises OSError: if an address cannot be bound.
    """
    listeners = []
    for text in texts:
        host, port = _split(text)
        family, _type, _proto, _name, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        try:
            listeners.append(socket.create_server(where[:2], family=family))
        except OSError as error:
            raise OSError(f"cannot listen on {text}: {error.strerror or error}") from None
    return listeners


def _split(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _name(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _print_json(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="detector", description="Send numbered frames to the client that connects.")
    parser.add_argument("--listen", action="append", required=True, metavar="HOST:PORT", help="once for each channel")
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--bytes", type=int, help="payload bytes to send in total")
    amount.add_argument("--seconds", type=float, help="how long to send, from the first connection on")
    parser.add_argument(
        "--timeout",
        type=float,
        default=120.0,
        metavar="S",
        help="give up if the consumer reads nothing for so many seconds (%(default)s)",
    )
    parser.add_argument("--frame-bytes", type=int, default=FRAME_BYTES, help="payload of a frame (%(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the detector and return its exit status: 0 if all was sent, 1 if a connection failed, 2 for wrong usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not 1 <= options.frame_bytes <= MAX_FRAME_BYTES:
        parser.error(f"--frame-bytes is {options.frame_bytes}: give a number from 1 to {MAX_FRAME_BYTES}")
    try:
        listeners = listen(options.listen)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    _print_json({"listeners": [_name(listener) for listener in listeners]})

    plan = Plan(options.bytes, options.seconds, options.frame_bytes, len(listeners))
    failed = threading.Event()
    channels = [DetectorChannel(number, one, plan, failed, options.timeout) for number, one in enumerate(listeners)]
    for channel in channels:
        channel.start()
    for channel in channels:
        channel.join()

    for channel in channels:
        if channel.error is not None:
            print(f"detector: channel {channel.maker.channel}: {channel.error}", file=sys.stderr)
    makers = [channel.maker for channel in channels]
    _print_json(
        {
            "bytes": sum(maker.bytes for maker in makers),
            "frames": sum(maker.frames for maker in makers),
            "sha256": whole_digest([maker.sha256 for maker in makers]),
            "channels": [
                {
                    "channel": maker.channel,
                    "bytes": maker.bytes,
                    "frames": maker.frames,
                    "sha256": maker.sha256.hex(),
                }
                for maker in makers
            ],
        }
    )
    return 1 if failed.is_set() else 0


if __name__ == "__main__":
    sys.exit(main())
