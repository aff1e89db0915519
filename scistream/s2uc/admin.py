"""Ask one S2CS about the streams that it lets a user see: for an administrator, all streams of the facility.

The time and the memory that this takes are bounded, however the S2CS answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from scistream import timing
from scistream.links.dialer import Dialer
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import UNSENT, Drain, DrainProgress, Rel, Status, StreamStatus

MAX_LIST = 64 * 1024 * 1024
"""The most bytes of a list. A stream with one channel takes about 500."""


async def streams_at(link: Dialer, warned: Callable[[list[str]], None]) -> list[StreamStatus]:
    """Return all streams that are not released, asking for one page after the other.

    :param warned: takes what the S2CS warns of.
    :raises StreamError: if the S2CS does not answer or refuses, or the list is too long.
    """
    found: list[StreamStatus] = []
    size, after, deadline = 0, None, link.clock.seconds() + timing.WHOLE_LIST
    while True:
        left = deadline - link.clock.seconds()
        if left <= 0 or size > MAX_LIST:
            limit = f"{MAX_LIST >> 20} MiB" if size > MAX_LIST else f"{timing.WHOLE_LIST:g} s"
            raise _wrong(link, f"its list of streams is not complete after {limit}")
        answer = await link.ask(Status(uid=None, role=None, seq=UNSENT, after=after), min(timing.PAGE_OF_LIST, left))
        size += len(msgspec.json.encode(answer))
        found += answer.streams or []
        warned(answer.warnings or [])
        if answer.more is None:
            return found
        if not answer.streams or (after is not None and answer.more <= after):
            raise _wrong(link, "a page of its list of streams does not follow the page before")
        after = answer.more


async def stream_at(link: Dialer, uid: str, *, events: bool = False) -> list[StreamStatus]:
    """Return the status of each side of a stream that is at one S2CS.

    :param events: ask for what has happened to the stream, too.
    :raises StreamError: if the S2CS does not answer, refuses, or has no such stream.
    """
    answer = await link.ask(Status(uid=uid, role=None, seq=UNSENT, events=events), timing.PAGE_OF_LIST)
    sides = {side.role: side for side in answer.streams or [] if side.uid == uid}
    if not sides:
        raise StreamError("unknown-uid", f"the S2CS at {link.peer_name} has no stream {uid}")
    return list(sides.values())


async def release_at(link: Dialer, uid: str) -> list[StreamStatus]:
    """Release each side of a stream that is at one S2CS, and return their status from before.

    :raises StreamError: if the S2CS does not answer, refuses, or has no such stream.
    """
    sides = await stream_at(link, uid)
    for side in sides:
        await link.ask(Rel(uid=uid, role=side.role, seq=UNSENT), timing.PAGE_OF_LIST).addTimeout(
            timing.WHOLE_LIST, link.clock, lambda *_: _still(link)
        )
    return sides


async def drain_at(
    link: Dialer, action: Literal["start", "undo", "show"], gateway: str | None, within: float | None
) -> list[DrainProgress]:
    """Begin or end a drain at an S2CS, or only ask, and return what is drained there.

    :raises StreamError: if the S2CS does not answer or refuses, or is of a version that cannot drain.
    """
    command = Drain(seq=UNSENT, action=action, gateway=gateway, within=within)
    try:
        answer = await link.ask(command, timing.PAGE_OF_LIST)
    except StreamError as error:
        if error.code == "bad-message" and "cmd" in error.msg:
            what = f"it runs a version of SciStream that cannot drain ({error.msg}): upgrade it, or stop it at once"
            raise _wrong(link, what) from None
        raise
    if answer.draining is None:
        raise _wrong(link, "its answer does not say what is being drained")
    return answer.draining


def _still(link: Dialer) -> None:
    raise _wrong(link, f"it is still Releasing after {timing.WHOLE_LIST:g} s: a gateway there does not answer")


def _wrong(link: Dialer, what: str) -> StreamError:
    return StreamError("gateway-failed", f"the S2CS at {link.peer_name}: {what}")
