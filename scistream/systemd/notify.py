"""Notify the service manager, as sd_notify(3) describes: ready, reloading, stopping, status, watchdog."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from scistream import timing

_SECOND = 1_000_000
"""Microseconds, the unit of systemd."""


class ServiceManager:
    """The service manager that started this process. If it wants no notifications, nothing happens.

    The variables are removed from the environment, so that programs which this process starts do not use them.

    :param environ: the environment of this process.
    """

    log = Logger()

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        if address and address[0] not in "/@":
            self.log.warn("NOTIFY_SOCKET={address} is not the address of a local socket: ignored", address=address)
            self._address = ""
        self._failed = False
        self.watchdog = _watchdog(environ) if self._address else 0.0
        """The seconds within which the service manager expects a sign of life; 0: it expects none."""

    @property
    def is_there(self) -> bool:
        """True if the service manager wants notifications."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Report that the start, or a reload, is finished."""
        self._send(f"READY=1\nSTATUS={_line(status)}")

    def reloading(self) -> None:
        """Report that a reload begins; `ready` reports its end."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str) -> None:
        """Report that the process is about to end."""
        self._send(f"STOPPING=1\nSTATUS={_line(status)}")

    def status(self, text: str) -> None:
        """Set the line that ``systemctl status`` shows."""
        self._send(f"STATUS={_line(text)}")

    def ask_for_time(self, seconds: float) -> None:
        """Ask for so much time, from now on, before the service manager kills a process that takes long to stop."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * _SECOND)}")

    def alive(self) -> None:
        """Give a sign of life."""
        self._send("WATCHDOG=1")

    def _send(self, fields: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(timing.NOTIFY)
                sock.connect(self._address)
                sock.sendall(fields.encode())
        except OSError as problem:
            if not self._failed:
                self.log.warn(
                    "the service manager cannot be notified at {address}: {reason}; later failures are not logged",
                    address=self._address.replace("\0", "@"),
                    reason=problem.strerror or str(problem),
                )
            self._failed = True
        else:
            self._failed = False


def _line(text: str) -> str:
    return " ".join(text.split())


def _watchdog(environ: MutableMapping[str, str]) -> float:
    """Return the interval of the watchdog of this process in seconds, or 0."""
    microseconds, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(microseconds) / _SECOND


class Heartbeat:
    """Gives signs of life from the reactor, so that a process whose reactor is stuck is restarted; keeps the status.

    :param reactor: an `IReactorTime`.
    :param status: returns the line that ``systemctl status`` shows.
    """

    def __init__(self, reactor: Any, manager: ServiceManager, status: Callable[[], str]) -> None:
        self._manager = manager
        self._status = status
        self._told = ""
        self._reactor = reactor
        self._calls: list[tuple[LoopingCall, float]] = []
        if manager.is_there:
            self._calls.append((LoopingCall(self._tell_status), timing.STATUS))
        if manager.watchdog:
            self._calls.append((LoopingCall(manager.alive), manager.watchdog / 2))
        for call, _ in self._calls:
            call.clock = reactor

    def start(self) -> None:
        """Begin. The first sign of life comes at once."""
        for call, interval in self._calls:
            call.start(interval)

    def ask_for_time(self) -> None:
        """Keep asking for more time to stop, until the process ends or its reactor is stuck."""
        if self._manager.is_there:
            call = LoopingCall(self._manager.ask_for_time, timing.MORE_TIME)
            call.clock = self._reactor
            call.start(timing.STATUS)
            self._calls.append((call, timing.STATUS))

    def stop(self) -> None:
        """Stop giving signs of life."""
        for call, _ in self._calls:
            if call.running:
                call.stop()

    def _tell_status(self) -> None:
        now = self._status()
        if now != self._told:
            self._told = now
            self._manager.status(now)
