"""The library of S2UC for programs without coroutines: every call returns when its result is there.

It works in plain scripts, in any thread, and in a notebook whose event loop already runs::

    with Client.from_config() as client:
        with client.request(prod="anl.example:5000", cons="ornl.example:5000", num_conn=4) as stream:
            start_jobs(stream.join["PROD"], stream.join["CONS"])
            stream.provisioned(timeout=600)
            ...

Each client has a thread of its own, in which a `scistream.s2uc.client.Client` does the work. Its calls may come from
several threads at the same time.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NoReturn, TypeVar

from twisted.logger import Logger

from scistream import timing
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import DrainProgress, Role, StreamStatus
from scistream.s2uc import client as asynchronous
from scistream.s2uc.client import (
    Facility,
    HappenedEvent,
    StateChange,
    StreamEvents,
    StreamFigures,
    StreamHandle,
    Subscription,
)
from scistream.s2uc.facilities import FacilityCheck
from scistream.s2uc.loop_thread import LoopThread
from scistream.s2uc.observers import check_callback
from scistream.s2uc.probe import Report
from scistream.s2uc.probe_side import Check
from scistream.units import DEFAULT_RATE

__all__ = [
    "Client",
    "Facility",
    "HappenedEvent",
    "StateChange",
    "Stream",
    "StreamEvents",
    "StreamFigures",
    "StreamHandle",
    "Subscription",
]

T = TypeVar("T")

_log = Logger()
_open: weakref.WeakSet[Client] = weakref.WeakSet()


class Client:
    """A user's client, whose calls block. The parameters are those of `scistream.s2uc.client.Client`.

    Use it in ``with``, or call `close` at the end. If Python exits without that, streams that a request has not
    returned are released, and a ResourceWarning is issued.

    Every call has a `timeout` in seconds, after which it raises the StreamError `timeout`; without one it takes as long
    as the library waits for the facilities. A call that ends early, also by Ctrl-C, is cancelled: a `request` then
    releases its stream, and all other calls leave it as it is.

    :raises StreamError: as `scistream.s2uc.client.Client`.
    """

    def __init__(
        self,
        *,
        certificate: Path | str | None = None,
        key: Path | str | None = None,
        authorities: Sequence[Path | str] = (),
        crl: Sequence[Path | str] = (),
        insecure: bool = False,
        facilities: Mapping[str, Facility] | None = None,
        names: Mapping[str, str] | None = None,
        remember: bool = True,
    ) -> None:
        self._begin(
            asynchronous.Client(
                certificate=certificate,
                key=key,
                authorities=authorities,
                crl=crl,
                insecure=insecure,
                facilities=facilities,
                names=names,
                remember=remember,
            )
        )

    @classmethod
    def from_config(cls, path: Path | str | None = None, *, remember: bool = True) -> Client:
        """Make a client with the certificates, and the names of facilities, that a configuration file has.

        :param path: the file; by default ``~/.config/scistream/s2uc.toml``, as for the command.
        :param remember: as for `Client`.
        :raises ConfigError: if the file cannot be read, has a wrong setting, or names no certificates.
        """
        client = cls.__new__(cls)
        client._begin(asynchronous.Client.from_config(path, remember=remember))
        return client

    def _begin(self, client: asynchronous.Client) -> None:
        self._client = client
        self._thread = LoopThread()
        self._abandoned = weakref.finalize(self, _close_abandoned, client, self._thread)
        self._abandoned.atexit = False  # `_close_at_exit` does it, and waits for it
        _open.add(self)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled.

        :raises TypeError: with the remedy.
        """
        raise TypeError("a Client cannot be pickled, since it has links: make one in each process")

    def close(self, timeout: float | None = None) -> None:
        """Close the links as soon as no release is in progress, and end the thread. Idempotent.

        Streams that `request` has returned continue without the client. Calls that still wait in other threads raise
        the StreamError `wrong-state`.

        :raises StreamError: `timeout`. The links are closed nevertheless.
        """
        if self._abandoned.detach() is None:
            return
        _open.discard(self)
        try:
            self._run(self._client.close, timeout, "the release of its streams")
        finally:
            self._thread.stop()

    def request(
        self,
        *,
        prod: str,
        cons: str,
        num_conn: int = 1,
        rate: float | str = DEFAULT_RATE,
        uid: str | None = None,
        expires: float | None = None,
        hello_timeout: float | None = None,
        app_from: Sequence[str] | None = None,
        label: str | None = None,
        listen_ports: Mapping[Role, Sequence[int]] | None = None,
        wan_dialer: Role | None = None,
        timeout: float | None = None,
    ) -> Stream:
        """Request a stream from both facilities, and return it once both have reserved.

        The parameters and errors are those of `scistream.s2uc.client.Client.request`.

        :raises StreamError: also `timeout`. The stream is released then.
        """
        requested: list[asynchronous.Stream] = []

        def ask() -> asynchronous.Requested:
            asking = self._client.request(
                prod=prod,
                cons=cons,
                num_conn=num_conn,
                rate=rate,
                uid=uid,
                expires=expires,
                hello_timeout=hello_timeout,
                app_from=app_from,
                label=label,
                listen_ports=listen_ports,
                wan_dialer=wan_dialer,
            )
            requested.append(asking.stream)
            return asking

        def release() -> None:
            for stream in requested:
                stream._effects.machine.release()

        try:
            return Stream(self, self._run(ask, timeout, lambda: requested[0].waits_for if requested else "a thread"))
        except BaseException:  # also if the stream is reserved, and Ctrl-C came before it could be returned
            self._thread.call_soon(release)
            raise

    def remembered(self, uid: str, *, prod: str, cons: str) -> Stream:
        """Return a stream that was requested earlier, as `scistream.s2uc.client.Client.remembered`."""
        return Stream(self, self._read(lambda: self._client.remembered(uid, prod=prod, cons=cons)))

    def attach(self, handle: StreamHandle, timeout: float | None = None) -> Stream:
        """Go on with a stream of this process or another, as `scistream.s2uc.client.Client.attach`."""
        return Stream(self, self._run(lambda: self._client.attach(handle), timeout, "the facilities"))

    def probe(
        self,
        *,
        prod: str,
        cons: str,
        num_conn: int = 1,
        rate: float | str = DEFAULT_RATE,
        seconds: float | None = None,
        listen_ports: Mapping[Role, Sequence[int]] | None = None,
        wan_dialer: Role | None = None,
        tell: Callable[[Check], None] | None = None,
        timeout: float | None = None,
    ) -> Report:
        """Test whether a stream can be set up, and how fast, as `scistream.s2uc.client.Client.probe`.

        `tell` is called in the client's own thread, so it must not use the client.
        """

        def ask() -> Awaitable[Report]:
            return self._client.probe(
                prod=prod,
                cons=cons,
                num_conn=num_conn,
                rate=rate,
                seconds=seconds,
                listen_ports=listen_ports,
                wan_dialer=wan_dialer,
                tell=tell,
            )

        return self._run(ask, timeout, "the probe")

    def streams_at(self, s2cs: str, timeout: float | None = None) -> list[StreamStatus]:
        """List the streams at an S2CS, as `scistream.s2uc.client.Client.streams_at`."""
        return self._run(lambda: self._client.streams_at(s2cs), timeout, s2cs)

    def stream_at(self, s2cs: str, uid: str, timeout: float | None = None) -> list[StreamStatus]:
        """Ask one S2CS about a stream, as `scistream.s2uc.client.Client.stream_at`."""
        return self._run(lambda: self._client.stream_at(s2cs, uid), timeout, s2cs)

    def events_at(self, s2cs: str, uid: str, timeout: float | None = None) -> StreamEvents:
        """Ask one S2CS what has happened to a stream, as `scistream.s2uc.client.Client.events_at`."""
        return self._run(lambda: self._client.events_at(s2cs, uid), timeout, s2cs)

    def release_at(self, s2cs: str, uid: str, timeout: float | None = None) -> list[StreamStatus]:
        """Release one S2CS's side of a stream, as `scistream.s2uc.client.Client.release_at`."""
        return self._run(lambda: self._client.release_at(s2cs, uid), timeout, s2cs)

    def drain_at(
        self,
        s2cs: str,
        action: Literal["start", "undo", "show"],
        gateway: str | None = None,
        within: float | None = None,
        timeout: float | None = None,
    ) -> list[DrainProgress]:
        """Let a gateway or an S2CS get no new streams, as `scistream.s2uc.client.Client.drain_at`."""
        return self._run(lambda: self._client.drain_at(s2cs, action, gateway, within), timeout, s2cs)

    def reason_at(self, s2cs: str) -> str:
        """Say why an S2CS cannot be reached, as `scistream.s2uc.client.Client.reason_at`."""
        return self._read(lambda: self._client.reason_at(s2cs))

    @property
    def names(self) -> dict[str, str]:
        """HOST:PORT of the S2CS of each facility that has a name."""
        return self._client.names

    def check_facilities(self, *facilities: str, timeout: float | None = None) -> list[FacilityCheck]:
        """Find out which facilities answer, as `scistream.s2uc.client.Client.check_facilities`."""
        return self._run(lambda: self._client.check_facilities(*facilities), timeout, "the facilities")

    @property
    def warnings(self) -> dict[str, list[str]]:
        """Warnings of the facilities, as `scistream.s2uc.client.Client.warnings`."""
        return self._read(lambda: self._client.warnings)

    # -- inside

    def _run(self, make: Callable[[], Awaitable[T]], timeout: float | None, waits_for: str | Callable[[], str]) -> T:
        late = waits_for if callable(waits_for) else lambda: str(waits_for)
        return self._thread.run(make, timeout, late)

    def _read(self, read: Callable[[], T]) -> T:
        """Return what a function returns in the client's thread, or in this one if the client is closed."""

        async def made() -> T:
            return read()

        return self._run(made, None, "its thread") if self._thread.is_usable else read()


class Stream:
    """A stream, made by `Client.request`, `Client.attach` or `Client.remembered`.

    ``with`` releases it at the end. All members are those of `scistream.s2uc.client.Stream`, and each call has a
    `timeout` in seconds.

    :ivar uid: the UUID of the stream.
    """

    def __init__(self, client: Client, stream: asynchronous.Stream) -> None:
        self.uid = stream.uid
        self._client = client
        self._stream = stream

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: object, raised: BaseException | None, _: object) -> None:
        """Release the stream. If that fails after an exception, it is logged, and the exception goes on."""
        try:
            self.release()
        except StreamError as error:
            if raised is None:
                raise
            _log.warn("uid={uid} {reason}", uid=self.uid, reason=error.msg)

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled.

        :raises TypeError: with the remedy.
        """
        self._stream.__reduce__()

    @property
    def state(self) -> str:
        """The state, as the protocol names it: Reserved, Provisioning, Updating, Streaming, ..."""
        return self._read(lambda: self._stream.state)

    @property
    def waits_for(self) -> str:
        """The end of the sentence "waiting for ...": what is missing before the stream is streaming or released."""
        return self._read(lambda: self._stream.waits_for)

    @property
    def was_reached(self) -> bool:
        """True if any side may know of the stream."""
        return self._read(lambda: self._stream.was_reached)

    @property
    def unknown_at(self) -> dict[Role, Address]:
        """After a release: the S2CS of each side that had no stream of this user with this uid."""
        return self._read(lambda: self._stream.unknown_at)

    @property
    def generation(self) -> int:
        """The generation of the targets that were set last; 0 before any were set."""
        return self._read(lambda: self._stream.generation)

    @property
    def connection_map(self) -> dict[str, str]:
        """The target of each listener, for the listeners of both sides; empty before ProdApp's Hello."""
        return self._read(lambda: self._stream.connection_map)

    @property
    def listeners(self) -> dict[Role, list[str]]:
        """The HOST:PORT on which the gateways of each side listen, one for each channel, in order."""
        return self._read(lambda: self._stream.listeners)

    @property
    def wan_dialer(self) -> Role:
        """The side whose gateways dial the others over the WAN, ``"PROD"`` or ``"CONS"``."""
        return self._read(lambda: self._stream.wan_dialer)

    @property
    def unused_listeners(self) -> list[str]:
        """The listeners of ProdApp that no channel leads to."""
        return self._read(lambda: self._stream.unused_listeners)

    @property
    def seconds_left(self) -> float:
        """Seconds until the stream expires: the shorter of the times that both facilities have granted."""
        return self._read(lambda: self._stream.seconds_left)

    @property
    def process_seconds(self) -> float:
        """Seconds that the protocol took from REQ to the last RESP, without the wait for ProdApp's Hello."""
        return self._read(lambda: self._stream.process_seconds)

    @property
    def join(self) -> dict[Role, str]:
        """The join string for the application of each side. They are secrets."""
        return self._read(lambda: self._stream.join)

    def handle(self, *, secrets: bool = False) -> StreamHandle:
        """Return what another process needs to go on with the stream (`Client.attach`). It can be pickled.

        :param secrets: include the join strings. Whoever has them can take the place of an application.
        """
        return self._read(lambda: self._stream.handle(secrets=secrets))

    def attach(self, timeout: float | None = None) -> None:
        """Continue a stream that `Client.remembered` returned, as `scistream.s2uc.client.Stream.attach`."""
        self._run(self._stream.attach, timeout)

    def provisioned(self, timeout: float | None = None) -> dict[str, str]:
        """Wait until both sides stream, and return the connection map: the target of each listener.

        :raises StreamError: if the stream fails or is released first; `timeout`, and the stream goes on.
        """
        return self._run(self._stream.provisioned, timeout)

    def extend(self, by: float, timeout: float | None = None) -> float:
        """Let the stream end `by` seconds later, as `scistream.s2uc.client.Stream.extend`. Return the seconds left."""
        return self._run(lambda: self._stream.extend(by), timeout)

    def release(self, timeout: float | None = None) -> None:
        """End the stream at both sides, as `scistream.s2uc.client.Stream.release`.

        :raises StreamError: if a side has not confirmed the release. With `timeout`, the facilities go on with it.
        """
        self._run(self._stream.release, timeout)

    def abandon(self) -> None:
        """Stop waiting for a release. The pending `release` then fails and names the sides that have not confirmed."""
        self._read(self._stream.abandon)

    def fail(self, error: StreamError) -> None:
        """End the stream at both sides with this error. Everything that waits for the stream fails with it."""
        self._read(lambda: self._stream.fail(error))

    def ended(self, timeout: float | None = None) -> None:
        """Wait until the stream is over.

        :raises StreamError: if the stream has failed or expired, that is if it was not ended by `release`; `timeout`,
            and the stream goes on.
        """
        self._run(self._stream.ended, timeout)

    def events(self, timeout: float | None = None) -> StreamEvents:
        """Return what has happened to the stream, as `scistream.s2uc.client.Stream.events`."""
        return self._run(self._stream.events, timeout)

    def status(self, timeout: float | None = None) -> dict[Role, StreamStatus]:
        """Return the status of each side as its facility reports it now.

        :raises StreamError: if a side does not answer, or refuses.
        """
        return self._run(self._stream.status, timeout)

    def sides(self, timeout: float | None = None) -> tuple[dict[Role, StreamStatus], dict[Role, StreamError]]:
        """Return the status of each side that can be reached within 5 s, and the reason for each that cannot."""
        return self._run(self._stream.sides, timeout)

    def on_state(self, callback: Callable[[StateChange], object]) -> Subscription:
        """Call `callback` after each change of the stream's state, in order, in a thread for callbacks.

        It may block, and use the client. If it raises an exception, that is logged, and the stream goes on.

        :raises TypeError: if it cannot be called, or is a coroutine function.
        """
        return self._subscribe("on_state", callback, self._stream.on_state, skips=False)

    def on_figures(
        self, callback: Callable[[StreamFigures], object], *, interval: float = timing.FIGURES_INTERVAL
    ) -> Subscription:
        """Call `callback` every `interval` seconds with the traffic of the stream, in the thread for callbacks.

        Figures that come while the callback is still busy with earlier ones are left out.

        :param interval: as for `scistream.s2uc.client.Stream.on_figures`.
        :raises StreamError: `bad-message`, if the interval is too short.
        :raises TypeError: if `callback` cannot be called, or is a coroutine function.
        """

        def subscribe(of_loop: Callable[[StreamFigures], object]) -> Subscription:
            return self._stream.on_figures(of_loop, interval=interval)

        return self._subscribe("on_figures", callback, subscribe, skips=True)

    # -- inside

    def _subscribe(
        self,
        name: str,
        callback: Callable[[T], object],
        subscribe: Callable[[Callable[[T], object]], Subscription],
        *,
        skips: bool,
    ) -> Subscription:
        """Subscribe a callback that is called in the thread for callbacks.

        :param skips: leave out an event that comes before the callback has returned from the one before.
        """
        check_callback(name, callback)
        thread, is_cancelled, is_busy = self._client._thread, threading.Event(), threading.Event()

        def of_caller(event: T) -> None:
            try:
                if not is_cancelled.is_set():
                    callback(event)
            finally:
                is_busy.clear()

        def of_loop(event: T) -> None:
            if not (skips and is_busy.is_set()):
                is_busy.set()
                thread.call_back(of_caller, event, name, self.uid)

        subscription = self._read(lambda: subscribe(of_loop))

        def cancel() -> None:
            is_cancelled.set()
            thread.call_soon(subscription.cancel)

        return Subscription(cancel)

    def _run(self, make: Callable[[], Awaitable[T]], timeout: float | None) -> T:
        return self._client._run(make, timeout, lambda: self._stream.waits_for)

    def _read(self, read: Callable[[], T]) -> T:
        return self._client._read(read)


def _close_abandoned(client: asynchronous.Client, thread: LoopThread) -> None:
    """Close the client of a blocking Client that nobody refers to any more, without waiting for it."""
    asynchronous._warn_unclosed()
    thread.stop_after(client.close)


@atexit.register
def _close_at_exit() -> None:
    """Close what is open when Python exits."""
    for client in list(_open):
        if client._thread.is_usable:
            with suppress(StreamError):
                client.close(timeout=timing.CLIENT_EXIT)
