"""The demonstration's consumer: an ordinary TCP client that reads frames from each listener and checks every one.

Run ``python -m scistream.demo.consumer HOST:PORT [HOST:PORT ...]`` with one listener for each channel, in order.
Without arguments it takes the JSON list in the environment variable ``SCISTREAM_LISTENERS``. It prints a report as one
line of JSON, and its exit status is 0 only if it found no fault.
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
_MAX_FAULTS_REPORTED = 10


class ConsumerChannel(threading.Thread):
    """A thread that reads one channel to its end."""

    def __init__(self, number: int, listeners: Sequence[Address], timeout: float) -> None:
        super().__init__(name=f"channel-{number}", daemon=True)
        self.address = listeners[number]
        self.checker = FrameChecker(number, len(listeners))
        self.first_byte: float | None = None
        self.last_byte: float | None = None
        self._timeout = timeout

    def run(self) -> None:
        """Connect and read; faults are in `checker`."""
        try:
            connection = socket.create_connection(self.address, timeout=self._timeout)
        except OSError as error:
            self.checker.ended(f"not made ({self.address}: {error.strerror or error})")
            return
        with connection:
            self.checker.ended(self._read(connection))

    def _read(self, connection: socket.socket) -> str:
        """Read until the channel is finished, and return how the connection ended."""
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
    """Return the report to print. `seconds` is the time from the first byte to the last, over all channels."""
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
        "faults": [fault.text for checker in checkers for fault in checker.faults][:_MAX_FAULTS_REPORTED],
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
    """Return the addresses in the arguments, or in the environment if there are no arguments.

    :raises ValueError: if there are none, or a text is not an address.
    """
    if not texts:
        value = os.environ.get(LISTENERS_VARIABLE)
        if value is None:
            raise ValueError(f"no listener given: give HOST:PORT, or set {LISTENERS_VARIABLE} to a JSON list")
        try:
            texts = json.loads(value)
        except ValueError:
            texts = []
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f'{LISTENERS_VARIABLE} is {value!r}: set it to a JSON list of "HOST:PORT"')
    return [Address.parse(text) for text in texts]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="consumer", description="Read frames from each listener and check every one.")
    parser.add_argument("listener", nargs="*", metavar="HOST:PORT", help="one for each channel, in order")
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="S", help="give up after so many silent seconds (%(default)s)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the consumer and return its exit status: 0 if it found no fault, 1 if it did, 2 for wrong usage."""
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

    result = report(channels)
    print(json.dumps(result), flush=True)
    for text in result["faults"]:
        print(f"consumer: {text}", file=sys.stderr)
    return 1 if result["fault_count"] else 0


if __name__ == "__main__":
    sys.exit(main())
