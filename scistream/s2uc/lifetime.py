"""The commands of `s2uc` that are about the life of a stream: stay until it ends, and let it end later."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from twisted.internet.defer import CancelledError

from scistream.cli_support import failure_names
from scistream.protocol.errors import StreamError
from scistream.s2uc.client import Client, Stream
from scistream.s2uc.history import StreamHistory
from scistream.s2uc.output import print_end, progress, tell
from scistream.units import clock_time, short_seconds


async def until_released(stream: Stream, release: Callable[[], Awaitable[bool]], as_json: bool) -> int:
    """Wait until a stream that streams is over. If the command is interrupted, release the stream.

    :param release: releases both sides; returns False if a side has not confirmed it.
    :returns: the exit status: 0 if the stream was released, here or elsewhere.
    :raises StreamError: if the stream has failed or expired.
    """
    tell("waiting until the stream is released: Ctrl-C releases it")
    by = "another command"
    with failure_names(uid=stream.uid):
        try:
            await stream.ended()
        except CancelledError:
            if not await release():
                raise
            by = "this command"
        except StreamError as error:
            if error.code != "released":
                raise
    print_end(stream.uid, "Released", as_json, f"released {stream.uid} (by {by})", by=by)
    return 0


async def extend_stream(client: Client, uid: str, by: float, as_json: bool = False) -> int:
    """Let a stream end `by` seconds later at both facilities, or at neither."""
    with failure_names(uid=uid):
        remembered = StreamHistory().find(uid, changes=True)
        stream = client.remembered(remembered.uid, prod=remembered.prod, cons=remembered.cons)
    with failure_names(uid=remembered.uid), progress(client, lambda: stream.waits_for):
        left = await stream.extend(by)
    ends = clock_time(time.time() + left)
    text = f"{remembered.uid} ends: {ends}, in {short_seconds(left)}"
    print_end(remembered.uid, "Extended", as_json, text, seconds_left=round(left, 3))
    return 0
