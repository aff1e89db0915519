"""Two applications that exchange bytes until a test stops them, and notice a wrong byte at once."""

from __future__ import annotations

import errno
import selectors
import socket
import threading
from contextlib import suppress
from types import TracebackType

from scistream.protocol.address import Address
from support.applications import MIB, address_of, noise
from support.facilities import HOST
from support.waiting import PATIENCE, until

_PERIOD = MIB - 3
_PART = 64 * 1024
_LOOK_AGAIN = 0.05
_PARTS_AT_ONCE = 4
"""How many parts are sent for each that is received: all buffers on the way stay full."""
_PAUSE = 0.02
"""Seconds until the next parts, as long as the exchange is to go on: what a test waits for needs the processors."""
_RESET = (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN)  # as reading, writing and ending a direction say it
_PATTERNS: dict[tuple[str, int], bytes] = {}


def _pattern(sender: str, channel: int) -> bytes:
    """Return what an application repeats on a channel: random bytes that differ from those of every other channel."""
    key = sender, channel
    if key not in _PATTERNS:
        once = noise(_PERIOD, seed=2 * channel + (sender == "producer"))
        _PATTERNS[key] = once + once[:_PART]
    return _PATTERNS[key]


class End:
    """One end of a connection, which sends and receives until it is stopped.

    `how` says how it ended: "whole" if all bytes were right and both directions ended in order, "reset" if the bytes
    until then were right, otherwise what was wrong.
    """

    def __init__(self, sock: socket.socket, side: str, channel: int) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.side = side
        self.channel = channel
        self.sent = 0
        self.received = 0
        self.how: str | None = None
        self.ended = False  # it has received the end
        self._sending = True
        self._says = _pattern(side, channel)
        self._hears = _pattern("consumer" if side == "producer" else "producer", channel)

    def interest(self) -> int:
        """Return the events that a selector has to wait for."""
        reading = 0 if self.ended else selectors.EVENT_READ
        return reading | (selectors.EVENT_WRITE if self._sending else 0)

    def step(self, ready: int, enough: bool) -> None:
        """Go on, as far as that goes without waiting."""
        try:
            if ready & selectors.EVENT_READ and not self.ended:
                self._receive(enough)
            if ready & selectors.EVENT_WRITE and self._sending and self.how is None:
                self._send(enough)
        except BlockingIOError:
            return
        except OSError as problem:
            self.how = "reset" if problem.errno in _RESET else str(problem)
        if self.ended and not self._sending and self.how is None:
            self.how = "whole"

    def _receive(self, enough: bool) -> None:
        part = self.sock.recv(_PART)
        start = self.received % _PERIOD
        if part != self._hears[start : start + len(part)]:
            self.how = f"a wrong byte after {self.received}"
        self.received += len(part)
        self.ended = not part
        if self.ended and not enough:
            self.how = f"an end in order after {self.received}, and nobody had ended it"

    def _send(self, enough: bool) -> None:
        if enough:
            self.sock.shutdown(socket.SHUT_WR)
            self._sending = False
            return
        for _ in range(_PARTS_AT_ONCE):
            start = self.sent % _PERIOD
            self.sent += self.sock.send(self._says[start : start + _PART])

    def __str__(self) -> str:
        return f"{self.side} {self.channel}: {self.how}, sent {self.sent}, received {self.received}"


class Exchange:
    """The producer, with a listener for each channel, and the consumer, once its addresses are known.

    Use it as a context manager: it closes everything at the end.
    """

    def __init__(self, channels: int) -> None:
        self._listeners = [socket.create_server((HOST, 0)) for _ in range(channels)]
        self.listen = [address_of(listener) for listener in self._listeners]
        self.ends: list[End] = []
        self._joining: list[End] = []
        self._enough = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Exchange:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(PATIENCE)

    def connect(self, listeners: list[str]) -> bool:
        """Let the consumer connect on every channel; return False if a listener was missing."""
        for channel, listener in enumerate(listeners):
            address = Address.parse(listener)
            try:
                sock = socket.create_connection((address.host, address.port), timeout=PATIENCE)
            except OSError:
                return False
            self._joining.append(End(sock, "consumer", channel))
        return True

    def moved(self) -> int:
        """Bytes that have arrived so far, at the end where they are fewest; 0 as long as an end is missing."""
        ends = list(self.ends)
        return min(end.received for end in ends) if len(ends) == 2 * len(self._listeners) else 0

    def wait_for_more(self, count: int = 256 * 1024) -> None:
        """Wait until that many bytes more have arrived at every end."""
        goal = self.moved() + count
        until(lambda: self.moved() >= goal, lambda: f"{goal} bytes have not arrived everywhere:\n{self}")

    def is_reset(self) -> bool:
        """Return True if every connection there was has been reset."""
        ends = [*self.ends, *self._joining]
        return bool(ends) and all(end.how == "reset" for end in ends)

    def finish(self) -> str:
        """Let both applications end when they like: "whole" if all arrived, "reset" if both ends of all were reset.

        :raises AssertionError: if it is neither.
        """
        self._enough.set()
        until(lambda: not self._joining and all(end.how for end in self.ends), lambda: f"it does not end:\n{self}")
        for channel in range(len(self._listeners)):
            self._check(channel)
        whole = all(end.how == "whole" for end in self.ends)
        return "whole" if whole and self.moved() else "reset"

    def _check(self, channel: int) -> None:
        ends = {end.side: end for end in self.ends if end.channel == channel}
        how = {end.how for end in ends.values()}
        if how == {"whole"}:
            there, back = ends["producer"], ends["consumer"]
            assert (there.sent, back.sent) == (back.received, there.received), f"bytes are missing:\n{self}"
        else:
            assert how <= {"reset"}, f"the two ends of channel {channel} differ:\n{self}"

    def __str__(self) -> str:
        return "\n".join(map(str, [*self.ends, *self._joining]))

    # In the thread

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for channel, listener in enumerate(self._listeners):
                listener.setblocking(False)
                selector.register(listener, selectors.EVENT_READ, channel)
            while not self._over.is_set():
                for key, ready in selector.select(_LOOK_AGAIN):
                    if isinstance(key.data, End):
                        self._step(selector, key.data, ready)
                    else:
                        self._accept(selector, key.data)
                self._take_in(selector)
                if not self._enough.is_set():
                    self._over.wait(_PAUSE)
        for sock in (*self._listeners, *(end.sock for end in [*self.ends, *self._joining])):
            sock.close()

    def _accept(self, selector: selectors.BaseSelector, channel: int) -> None:
        with suppress(OSError):
            sock, _ = self._listeners[channel].accept()
            self._add(selector, End(sock, "producer", channel))

    def _take_in(self, selector: selectors.BaseSelector) -> None:
        while self._joining:
            self._add(selector, self._joining[0])
            del self._joining[0]

    def _add(self, selector: selectors.BaseSelector, end: End) -> None:
        selector.register(end.sock, end.interest(), end)
        self.ends.append(end)

    def _step(self, selector: selectors.BaseSelector, end: End, ready: int) -> None:
        end.step(ready, self._enough.is_set())
        if end.how is not None or not end.interest():
            selector.unregister(end.sock)
            end.sock.close()
        else:
            selector.modify(end.sock, end.interest(), end)
