"""Run the demonstration: start two facilities, stream from one program to another through them, release the stream.

It uses what a user would use: the library of S2UC, and ``appctrl`` for each program.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from scistream import timing
from scistream.demo.children import Child, Children
from scistream.demo.facilities import HOST, DemoError, DemoFacility, DemoPorts
from scistream.demo.view import ChannelSnapshot, Snapshot, Summary
from scistream.pki.register import PkiError
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, ChannelFigures
from scistream.s2uc.client import Client, Stream

_APPCTRL = [sys.executable, "-P", "-c", "from scistream.app.cli import main; main()"]
_DETECTOR = [sys.executable, "-P", "-m", "scistream.demo.detector"]
_CONSUMER = [sys.executable, "-P", "-m", "scistream.demo.consumer"]


@dataclass(frozen=True)
class DemoOptions:
    """The options of the demonstration.

    :param total: bytes to stream, or None to stream for `seconds`.
    :param num_conn: number of channels.
    :param rate: rate to request, in Mbit/s.
    """

    total: int | None
    seconds: float | None
    num_conn: int
    rate: float


class Demo:
    """One demonstration.

    :param show: called with each new snapshot of the stream.
    """

    def __init__(self, reactor: Any, options: DemoOptions, show: Callable[[Snapshot], None]) -> None:
        self._reactor = reactor
        self._options = options
        self._show = show
        self._began = reactor.seconds()
        self._running: Deferred[Summary] | None = None
        self._stopped: DemoError | None = None
        self._ending = False
        self._streaming = False
        self._meter = _RateMeter(reactor.seconds)
        self._channels: Sequence[ChannelSnapshot] = ()
        self._bytes = 0
        self._stall_timer: Any = None

    def start(self) -> Deferred[Summary]:
        """Start the demonstration.

        :returns: fires with the summary, or fails with a `DemoError`. All processes have ended by then.
        """
        self._running = Deferred.fromCoroutine(self._in_folder())
        return self._running

    def stop(self, problem: DemoError) -> None:
        """End the demonstration early with this error. If there are several, the first one is reported."""
        if not self._ending:
            self._stopped = self._stopped or problem
            if self._running is not None:
                self._running.cancel()

    async def _in_folder(self) -> Summary:
        with TemporaryDirectory(prefix="scistream-demo-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            children = Children(self._reactor, folder)
            try:
                return await self._run(folder, children)
            except StreamError as error:
                raise self._stopped or DemoError(f"the stream failed: {error}", children.tails()) from error
            except Exception as error:
                if self._stopped is not None:
                    raise self._stopped from None
                if isinstance(error, OSError | PkiError):
                    raise DemoError(str(error)) from error
                raise
            finally:
                self._ending = True
                await children.end_all()

    async def _run(self, folder: Path, children: Children) -> Summary:
        options = self._options
        ports = DemoPorts()
        lab = DemoFacility(folder / "lab", "Demo Light Source", "lab", options.num_conn, options.rate, ports)
        centre = DemoFacility(
            folder / "centre", "Demo Computing Centre", "centre", options.num_conn, options.rate, ports
        )
        user = lab.user("ada@lab.example")

        self._update("starting two facilities")
        await self._start_facilities(children, lab, centre)

        client = Client(
            certificate=user.certificate,
            key=user.key,
            authorities=[lab.authority, centre.authority],
            reactor=self._reactor,
            remember=False,
        )
        try:
            return await self._use(client, lab, centre, children, ports)
        finally:
            await self._bounded(client.close().deferred, timing.DEMO_CLOSE)

    async def _use(
        self, client: Client, lab: DemoFacility, centre: DemoFacility, children: Children, ports: DemoPorts
    ) -> Summary:
        """Do what a user does: request a stream, start the applications with the join strings, wait, release."""
        options = self._options
        self._update("requesting a stream")
        requested_at = self._reactor.seconds()
        with self._within(timing.DEMO_STEP, "the facilities have not answered the request", children):
            stream = await client.request(
                prod=str(lab.s2cs), cons=str(centre.s2cs), num_conn=options.num_conn, rate=options.rate, label="demo"
            )
        self._update("waiting for the applications")
        detector, consumer = self._start_applications(children, stream, ports)
        with self._within(timing.DEMO_STEP, "the stream was not set up", children):
            await stream.provisioned()
        setup = self._reactor.seconds() - requested_at
        self._streaming = True
        with self._within(timing.DEMO_BYTES, "no byte has arrived", children) as self._stall_timer:
            await self._watch(stream, detector, consumer)
        self._stall_timer = None
        self._update("Releasing")
        with self._within(timing.DEMO_STEP, "the facilities have not released the stream", children):
            released = await self._release(stream)
        self._update(stream.state)
        return _summary(options, stream, detector, consumer, setup, released)

    # -- the parts

    async def _start_facilities(self, children: Children, *facilities: DemoFacility) -> None:
        """Start the gateways first, so that each control server finds its gateway."""
        trusted = [facility.authority for facility in facilities]
        for facility in facilities:
            facility.start_gateway(children, self._server_ended)
        for facility in facilities:
            await facility.gateway_ready(self._reactor)
        for facility in facilities:
            facility.start_server(children, trusted, self._server_ended)
        for facility in facilities:
            await facility.server_ready(self._reactor)

    def _start_applications(self, children: Children, stream: Stream, ports: DemoPorts) -> tuple[Child, Child]:
        options = self._options
        first = ports.take(options.num_conn)
        listen = [f"{HOST}:{first + channel}" for channel in range(options.num_conn)]
        amount = ["--bytes", str(options.total)] if options.total is not None else ["--seconds", str(options.seconds)]
        listen_options = [word for address in listen for word in ("--listen", address)]
        detector = children.start(
            "detector",
            [*_APPCTRL, "prod", *listen_options, "--", *_DETECTOR, *listen_options, *amount],
            {"SCISTREAM_JOIN": stream.join[PROD]},
            on_end=self._application_ended,
        )
        consumer = children.start(
            "consumer",
            [*_APPCTRL, "cons", "--", *_CONSUMER],
            {"SCISTREAM_JOIN": stream.join[CONS]},
            on_end=self._application_ended,
        )
        return detector, consumer

    async def _watch(self, stream: Stream, detector: Child, consumer: Child) -> None:
        """Show the channels until both applications have ended, then show their rates over the whole time."""
        self._meter, whole_time = _RateMeter(self._reactor.seconds), _RateMeter(self._reactor.seconds)
        polling = LoopingCall(lambda: Deferred.fromCoroutine(self._poll(stream)))
        polling.clock = self._reactor
        polled = polling.start(timing.DEMO_POLL).addCallbacks(_nothing, _no_answer)
        try:
            await consumer.ended()
            await self._bounded(detector.ended(), timing.DEMO_DETECTOR)
        finally:
            if polling.running:
                polling.stop()
        if stream.state != "Streaming":
            await stream.ended()
        await self._bounded(polled, timing.DEMO_LAST_STATUS)
        self._meter = whole_time
        await self._poll(stream)

    async def _poll(self, stream: Stream) -> None:
        status = await stream.status()
        if CONS in status:
            self._update(stream.state, self._meter.read(status[CONS].figures))
            arrived = sum(channel.bytes for channel in self._channels)
            if arrived > self._bytes and self._stall_timer is not None and self._stall_timer.active():
                self._bytes = arrived
                self._stall_timer.reset(timing.DEMO_BYTES)

    async def _release(self, stream: Stream) -> bool:
        """Release the stream. Return True if both sides report that it is released."""
        try:
            await stream.release()
            status = await stream.status()
        except StreamError as error:
            self._update(f"not released: {error.msg}")
            return False
        return {role: status[role].state for role in status} == {PROD: "Released", CONS: "Released"}

    @contextmanager
    def _within(self, seconds: float, what: str, children: Children) -> Iterator[Any]:
        """Stop the demonstration if the block takes longer than this. Yield the timer, which may be reset.

        :param what: what has not happened, for the error.
        """

        def over() -> None:
            self.stop(DemoError(f"{what} within {seconds:g} s", children.tails()))

        limit = self._reactor.callLater(seconds, over)
        try:
            yield limit
        finally:
            if limit.active():
                limit.cancel()

    def _bounded(self, waiting: Deferred[None], seconds: float) -> Deferred[None]:
        """Return a Deferred that fires when `waiting` has fired or failed, or when the time is over.

        Cancelling it does not cancel `waiting`.
        """
        over: Deferred[None] = Deferred()

        def end(_: object = None) -> None:
            if not over.called:
                over.callback(None)

        limit = self._reactor.callLater(seconds, end)
        waiting.addBoth(end)
        return over.addBoth(_then_cancel, limit)

    def _server_ended(self, child: Child) -> None:
        self.stop(DemoError(f"{child.name} ended unexpectedly ({child.end})", child.tail()))

    def _application_ended(self, child: Child) -> None:
        if not self._streaming:
            self.stop(DemoError(f"the {child.name} ended before the stream was ready ({child.end})", child.tail()))
            return
        try:
            _report(child)
        except DemoError as problem:
            self.stop(problem)

    def _update(self, state: str, channels: Sequence[ChannelSnapshot] | None = None) -> None:
        if channels is not None:
            self._channels = channels
        self._show(Snapshot(state, self._reactor.seconds() - self._began, self._channels))


class _RateMeter:
    """Computes rates from the counters of the channels."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._at = seconds()
        self._bytes: dict[int, int] = {}

    def read(self, figures: Sequence[ChannelFigures]) -> list[ChannelSnapshot]:
        """Return a snapshot of each channel, with its rate since the last call."""
        now = self._seconds()
        passed = max(now - self._at, 1e-6)
        snapshots = [
            ChannelSnapshot(
                channel.channel,
                channel.connections,
                channel.bytes_to_consumer,
                (channel.bytes_to_consumer - self._bytes.get(channel.channel, 0)) * 8e-9 / passed,
            )
            for channel in figures
        ]
        self._at = now
        self._bytes = {channel.channel: channel.bytes_to_consumer for channel in figures}
        return snapshots


def _summary(
    options: DemoOptions, stream: Stream, detector: Child, consumer: Child, setup: float, released: bool
) -> Summary:
    received, sent = _report(consumer), _report(detector)
    return Summary(
        bytes=received["bytes"],
        seconds=received["seconds"],
        gbit_per_s=round(received["bytes"] * 8e-9 / received["seconds"], 3) if received["seconds"] else 0.0,
        setup_seconds=round(setup, 6),
        protocol_seconds=round(stream.process_seconds, 6),
        num_conn=options.num_conn,
        frames=received["frames"],
        frames_lost=sent["frames"] - received["frames"],
        frames_repeated=received["frames_repeated"],
        frames_corrupt=received["frames_corrupt"],
        sha256_sent=sent["sha256"],
        sha256_received=received["sha256"],
        released=released,
        faults=received["faults"],
    )


def _report(child: Child) -> dict[str, Any]:
    """Return the report that an application has printed as its last line.

    :raises DemoError: if there is no report.
    """
    for line in reversed(child.out.read_text(errors="replace").splitlines()):
        try:
            report = json.loads(line)
        except ValueError:
            continue
        if isinstance(report, dict) and "sha256" in report:
            return report
    raise DemoError(f"the {child.name} ended without a report ({child.end or 'it was still running'})", child.tail())


def _then_cancel(result: Any, call: Any) -> Any:
    if call.active():
        call.cancel()
    return result


def _nothing(_looking: LoopingCall) -> None:
    """Do nothing when the polling stops."""


def _no_answer(failure: Failure) -> None:
    """Ignore a server that gives no figures: the table goes without them."""
    failure.trap(StreamError, CancelledError)
