"""The demonstration's consumer: an ordinary TCP client that reads frames from each listener and checks them all.

``python -m scistream.demo.consumer HOST:PORT [HOST:PORT ...]``, one listener a channel, in order; or with none, those
that the environment's ``SCISTREAM_LISTENERS`` holds as a JSON list. It prints its findings as one line of JSON and ends
with status 0 only if nothing at all was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from scistream.demo.frames import FrameChecker, whole_digest
from scistream.protocol.address import Address

LISTENERS_VARIABLE = "SCISTREAM_LISTENERS"
_FAULTS_SAID = 10


class ConsumerChannel(threading.Thread):
    """Reads one channel to its end."""

    def __init__(self, number: int, listeners: Sequence[Address], timeout: float) -> None:
        super().__init__(name=f"channel-{number}", daemon=True)
        self.address = listeners[number]
        self.checker = FrameChecker(number, len(listeners))
        self.first_byte: float | None = None
        self.last_byte: float | None = None
        self._timeout = timeout

    def run(self) -> None:
        try:
            connection = socket.create_connection(self.address, timeout=self._timeout)
        except OSError as error:
            self.checker.ended(f"not made ({self.address}: {error.strerror or error})")
            return
        with connection:
            self.checker.ended(self._read(connection))

    def _read(self, connection: socket.socket) -> str:
        """Read until the channel is finished; returns how the connection ended."""
        checker = self.checker
        while not checker.finished:
            try:
                count = connection.recv_into(checker.space())
            except ConnectionResetError:
                return "reset"
            except TimeoutError:
                return f"silent for {self._timeout:g} s"
            except OSError as error:
                return f"broken ({error.strerror or error})"
            if not count:
                return "closed"
            self.last_byte = time.monotonic()
            if self.first_byte is None:
                self.first_byte = self.last_byte
            checker.received(count)
        return "given up"


def report(channels: Sequence[ConsumerChannel]) -> dict[str, Any]:
    """What the channels have found, as it is printed. `seconds` runs from the first byte to the last."""
    checkers = [channel.checker for channel in channels]
    first = min((channel.first_byte for channel in channels if channel.first_byte is not None), default=0.0)
    last = max((channel.last_byte for channel in channels if channel.last_byte is not None), default=0.0)
    return {
        "bytes": sum(checker.bytes for checker in checkers),
        "frames": sum(checker.frames for checker in checkers),
        "frames_lost": sum(checker.lost for checker in checkers),
        "frames_repeated": sum(checker.repeated for checker in checkers),
        "frames_corrupt": sum(checker.corrupt for checker in checkers),
        "fault_count": sum(checker.fault_count for checker in checkers),
        "faults": [fault.text for checker in checkers for fault in checker.faults][:_FAULTS_SAID],
        "sha256": whole_digest([checker.sha256 for checker in checkers]),
        "seconds": round(last - first, 6),
        "channels": [
            {
                "channel": channel.checker.channel,
                "listener": str(channel.address),
                "bytes": channel.checker.bytes,
                "frames": channel.checker.frames,
                "sha256": channel.checker.sha256.hex(),
            }
            for channel in channels
        ],
    }


def _listeners(texts: Sequence[str]) -> list[Address]:
    """The addresses of the arguments, or else of the environment.

    :raises ValueError: with a sentence, if there are none or one is none.
    """
    if not texts:
        value = os.environ.get(LISTENERS_VARIABLE)
        if value is None:
            raise ValueError(f"there is no listener: give HOST:PORT, or a JSON list in {LISTENERS_VARIABLE}")
        try:
            texts = json.loads(value)
        except ValueError:
            texts = []
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f'{LISTENERS_VARIABLE} is {value!r}: it should be a JSON list of "HOST:PORT"')
    return [Address.parse(text) for text in texts]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="consumer", description="Read frames from each listener and check them all.")
    parser.add_argument("listener", nargs="*", metavar="HOST:PORT", help="one a channel, in order")
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="S", help="seconds of silence to bear (%(default)s)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the consumer; returns the exit status: 0 all is well, 1 a fault was found, 2 bad usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        listeners = _listeners(options.listener)
    except ValueError as error:
        parser.error(str(error))

    channels = [ConsumerChannel(number, listeners, options.timeout) for number in range(len(listeners))]
    for channel in channels:
        channel.start()
    for channel in channels:
        channel.join()
        if not channel.checker.finished:
            channel.checker.ended("abandoned by a failure of the consumer itself")

    findings = report(channels)
    print(json.dumps(findings), flush=True)
    for text in findings["faults"]:
        print(f"consumer: {text}", file=sys.stderr)
    return 1 if findings["fault_count"] else 0


if __name__ == "__main__":
    sys.exit(main())
