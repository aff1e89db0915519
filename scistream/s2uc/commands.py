"""The commands of `s2uc` that change or await a stream. Each returns the exit status of the process.

The options are parsed in cli.py; the commands that show streams are in show.py.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import click
import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from scistream import timing
from scistream.cli_support import failure_names, name_in_failure
from scistream.config import ConfigError
from scistream.protocol.errors import StreamError, printable
from scistream.protocol.messages import CONS, PROD
from scistream.s2uc.client import Client, Requested, Stream
from scistream.s2uc.history import RememberedStream, StreamHistory
from scistream.s2uc.lifetime import until_released
from scistream.s2uc.options import OutputOptions, RequestOptions
from scistream.s2uc.output import (
    print_end,
    progress,
    reaching,
    tell,
    unknown_stream,
)
from scistream.s2uc.show import whole_uid_at
from scistream.s2uc.stream import DIALERS, SIDE
from scistream.standard_streams import check_output
from scistream.units import clock_time, short_seconds

# -- request and attach


async def request_stream(client: Client, options: RequestOptions, output: OutputOptions) -> int:
    """Request a stream, print its join strings, and wait until it streams. Release it if anything fails.

    With `output.waits_for_release` stay until the stream is over.
    """
    check_output()
    with failure_names(uid=options.uid):
        if any(earlier.uid == options.uid for earlier in StreamHistory().all()):
            raise StreamError(
                "uid-in-use",
                f"you have requested stream {options.uid} already: check it with `s2uc status`, end it with "
                "`s2uc release`, or choose another uid",
            )
        requested = client.request(**msgspec.structs.asdict(options))
    stream = requested.stream
    await _or_release(client, stream, _set_up(client, requested, output), output)
    if output.waits_for_release:
        return await until_released(stream, lambda: _release_briefly(client, stream, output), output.as_json)
    return 0


async def attach_stream(client: Client, uid: str, output: OutputOptions) -> int:
    """Continue a request whose `s2uc` was lost, until the stream streams. Release it if anything fails."""
    check_output()
    with failure_names(uid=uid):
        remembered = StreamHistory().find(uid, changes=True)
        stream = client.remembered(remembered.uid, prod=remembered.prod, cons=remembered.cons)
    await _or_release(client, stream, _attach(client, stream), output)
    _print_streaming(stream, output)  # outside `_or_release`: output that is lost does not end a stream that works
    return 0


async def _or_release(client: Client, stream: Stream, work: Coroutine[Any, Any, None], output: OutputOptions) -> None:
    """Run a coroutine within the user's time limit; if it fails for any reason, release the stream."""

    def why_late(timeout: float) -> str:
        return f"not streaming after {timeout:g} s of waiting for {stream.waits_for}, so the stream is released"

    try:
        await _within(client, work, output.timeout, why_late)
    except GeneratorExit:
        raise
    except BaseException as problem:
        was_reached = stream.was_reached
        released = await _release_briefly(client, stream, output)
        if released and isinstance(problem, CancelledError):
            tell("both sides are released" if was_reached else "nothing was reserved")
        name_in_failure(uid=stream.uid, released=released)
        raise


async def _within(
    client: Client, working: Coroutine[Any, Any, None], timeout: float | None, why_late: Callable[[float], str]
) -> None:
    """Run a coroutine to its end, or cancel it after `timeout` seconds.

    :param why_late: returns the message of the error; called before the coroutine is cancelled.
    :raises StreamError: `timeout`, if the time is over.
    """
    work = Deferred.fromCoroutine(working)
    too_late: list[StreamError] = []

    def give_up(seconds: float) -> None:
        too_late.append(StreamError("timeout", why_late(seconds)))
        work.cancel()

    timer = client.reactor.callLater(timeout, give_up, timeout) if timeout is not None else None
    try:
        await work
    except CancelledError:
        if too_late:
            raise too_late[0] from None
        raise
    finally:
        if timer is not None and timer.active():
            timer.cancel()


async def _set_up(client: Client, requested: Requested, output: OutputOptions) -> None:
    with progress(client, lambda: requested.stream.waits_for):
        stream = await requested
    _print_joins(stream, output)
    with progress(client, lambda: stream.waits_for):
        await stream.provisioned()
    _print_streaming(stream, output)


async def _attach(client: Client, stream: Stream) -> None:
    with progress(client, lambda: stream.waits_for):
        await stream.attach()
        if stream.state != "Streaming":
            tell(
                "join strings are not stored: if the applications do not have theirs, release this stream and request "
                "a new one"
            )
        await stream.provisioned()


async def _release_briefly(client: Client, stream: Stream, output: OutputOptions) -> bool:
    """Release both sides, waiting a short time only. Return True if both have confirmed it."""
    timer = client.reactor.callLater(timing.INTERRUPTED_RELEASE, stream.abandon)
    try:
        await stream.release()
    except StreamError as error:
        tell(f"warning: {error.msg}; try `s2uc release {stream.uid}` later")
        return False
    finally:
        if timer.active():
            timer.cancel()
        for file in output.written:
            with suppress(OSError):
                file.unlink()
    return True


def _print_joins(stream: Stream, output: OutputOptions) -> None:
    """Print what both sides have reserved, and print the join strings or write them to files.

    :raises ConfigError: if a join file cannot be written.
    """
    files = output.join_files(stream.uid)
    if output.join_dir is not None:
        try:
            output.join_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            StreamHistory().note_join_files(stream.uid, files.values())
            for role, join in stream.join.items():
                with open(os.open(files[role], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    output.written.append(files[role])
                    file.write(join + "\n")
        except OSError as problem:
            raise ConfigError(f"{problem.filename}: cannot be written: {problem.strerror}") from None
    if output.as_json:
        joins = {"join_files": {role: str(file) for role, file in files.items()}} if files else {"join": stream.join}
        reserved = {"uid": stream.uid, "state": "Reserved", "seconds_left": round(stream.seconds_left, 3)}
        click.echo(json.dumps({**reserved, "listeners": stream.listeners, **joins}))
        return
    click.echo(f"uid: {stream.uid}")
    click.echo(f"ends: {clock_time(time.time() + stream.seconds_left)}, in {short_seconds(stream.seconds_left)}")
    for role in (PROD, CONS):
        click.echo(f"# for the {SIDE[role]}, {'in a file' if files else 'a secret to paste where it starts'}:")
        click.echo(f"export SCISTREAM_JOIN={shlex.quote(stream.join[role])}" if not files else str(files[role]))
    for role in (PROD, CONS):
        click.echo(printable(f"{SIDE[role]} side listens on {', '.join(stream.listeners[role])}"))
    sys.stdout.flush()


def _print_streaming(stream: Stream, output: OutputOptions) -> None:
    """Print the connection map of a stream that streams."""
    if output.as_json:
        result = {
            "uid": stream.uid,
            "state": stream.state,
            "seconds_left": round(stream.seconds_left, 3),
            "connection_map": stream.connection_map,
            "wan_dialer": stream.wan_dialer,
            "unused_listeners": stream.unused_listeners,
            "process_seconds": round(stream.process_seconds, 6),
        }
        click.echo(json.dumps(result))
        return
    for listener, target in stream.connection_map.items():
        click.echo(f"{listener} --> {target}")
    if stream.wan_dialer == PROD:
        click.echo(f"over the WAN, {DIALERS[PROD]}")
    if stream.unused_listeners:
        click.echo(f"more listeners than channels; not used: {', '.join(stream.unused_listeners)}")
    click.echo(f"*** Process time: {stream.process_seconds:.3f} sec.")


# -- release


async def release_stream(client: Client, uid: str, as_json: bool = False) -> int:
    """Release a stream at both facilities. A stream that is already released is no failure."""
    with failure_names(uid=uid):
        if (released := StreamHistory().was_released(uid)) is not None:
            print_end(released, "Released", as_json, f"{released} is already released", already=True)
            return 0
        remembered = StreamHistory().find(uid, changes=True)
        stream = client.remembered(remembered.uid, prod=remembered.prod, cons=remembered.cons)
    with failure_names(uid=remembered.uid):
        try:
            with progress(client, lambda: stream.waits_for):
                await stream.release()
        except CancelledError:
            stream.abandon()
            await stream.release()  # raises an error that names the side which has not confirmed
        unknown = stream.unknown_at
        if len(unknown) == len(stream.servers):
            raise unknown_stream(remembered)
    for role, address in unknown.items():
        tell(f"the {SIDE[role]} side at {address} has no stream of yours with this uid")
    print_end(remembered.uid, "Released", as_json, f"released {remembered.uid}", already=False)
    return 0


async def release_at(client: Client, s2cs: str, uid: str, as_json: bool = False) -> int:
    """Release what one S2CS has of a stream: for an administrator, of any user."""
    with failure_names(uid=uid), reaching(client, s2cs):
        uid = await whole_uid_at(client, s2cs, uid, changes=True)
        sides = await client.release_at(s2cs, uid)
    if as_json:
        released = [{"role": side.role, "owner": side.owner} for side in sides]
        print_end(uid, "Released", as_json, "", sides=released)
        return 0
    for side in sides:
        click.echo(printable(f"released {uid} ({side.role}) of {side.owner}"))
    return 0


# -- wait


async def wait_for_stream(client: Client, uid: str, timeout: float | None, as_json: bool = False) -> int:
    """Wait until a stream streams at both facilities, `timeout` seconds at most. The stream is left as it is."""
    with failure_names(uid=uid):
        remembered = StreamHistory().find(uid)
        stream = client.remembered(remembered.uid, prod=remembered.prod, cons=remembered.cons)
    waiting = _UntilStreaming(client, remembered, stream)
    with failure_names(uid=remembered.uid), progress(client, waiting.waits_for):
        await _within(
            client,
            waiting.run(),
            timeout,
            lambda seconds: f"not streaming after {seconds:g} s of waiting for {waiting.waits_for()}",
        )
    print_end(remembered.uid, "Streaming", as_json, f"{remembered.uid} is Streaming")
    return 0


class _UntilStreaming:
    """Asks both sides for the state of a stream until both are Streaming."""

    def __init__(self, client: Client, remembered: RememberedStream, stream: Stream) -> None:
        self._reactor = client.reactor
        self._remembered = remembered
        self._stream = stream
        self._asked_at = client.reactor.seconds()
        self._states = ""

    def waits_for(self) -> str:
        """Return which side has not answered for a while, or else the states that both sides reported last."""
        if not self._states or self._reactor.seconds() - self._asked_at > timing.SILENT_SIDE:
            return self._stream.waits_for
        return f"the applications or the user: {self._states}"

    async def run(self) -> None:
        """Return when both sides are Streaming.

        :raises StreamError: if the stream is over at a side, or a side does not answer.
        """
        while True:
            self._asked_at = self._reactor.seconds()
            sides = await self._stream.status()
            if not sides:
                raise unknown_stream(self._remembered)
            for role in (PROD, CONS):
                state = sides[role].state if role in sides else "unknown"
                if state in ("Releasing", "Released", "unknown"):
                    last = sides[role].last_error if role in sides else None
                    reason = f": {last.code}: {last.msg}" if last is not None else ""
                    raise StreamError("wrong-state", f"the {SIDE[role]} side is {state}{reason}")
            if all(side.state == "Streaming" for side in sides.values()):
                return
            self._states = ", ".join(f"{SIDE[role]} {side.state}" for role, side in sides.items())
            await deferLater(self._reactor, timing.WATCH_POLL)
