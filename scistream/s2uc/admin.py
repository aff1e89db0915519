"""What a user may ask of one S2CS about all streams that it lets her see: an administrator's view of a facility.

However an S2CS answers, this comes to an end: in time, and before it has taken much memory.
"""

from __future__ import annotations

import msgspec

from scistream import timing
from scistream.links.dialer import Dialer
from scistream.links.outbox import UNSENT
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import Rel, Status, StreamStatus

MAX_LIST = 64 * 1024 * 1024
"""Bytes of a list. A stream of one channel takes about 500."""


async def streams_at(link: Dialer) -> list[StreamStatus]:
    """All streams that are not released, page by page.

    :raises StreamError: if there is no answer, or a refusal, or no end.
    """
    found: list[StreamStatus] = []
    size, after, deadline = 0, None, link.clock.seconds() + timing.LIST
    while True:
        left = deadline - link.clock.seconds()
        if left <= 0 or size > MAX_LIST:
            end = f"{MAX_LIST >> 20} MiB" if size > MAX_LIST else f"{timing.LIST:g} s"
            raise _wrong(link, f"its list of streams does not come to an end within {end}")
        answer = await link.ask(Status(uid=None, role=None, seq=UNSENT, after=after), min(timing.PAGE_OF_LIST, left))
        size += len(msgspec.json.encode(answer))
        found += answer.streams or []
        if answer.more is None:
            return found
        if not answer.streams or (after is not None and answer.more <= after):
            raise _wrong(link, "its list of streams does not go on where it broke off")
        after = answer.more


async def stream_at(link: Dialer, uid: str) -> list[StreamStatus]:
    """What one S2CS has of a stream, a role at a time.

    :raises StreamError: if there is no answer, or a refusal, or no such stream.
    """
    answer = await link.ask(Status(uid=uid, role=None, seq=UNSENT), timing.PAGE_OF_LIST)
    sides = {side.role: side for side in answer.streams or [] if side.uid == uid}
    if not sides:
        raise StreamError("unknown-uid", f"no stream {uid} was asked for there")
    return list(sides.values())


async def release_at(link: Dialer, uid: str) -> list[StreamStatus]:
    """Release what there is of a stream, in both roles; what it was before.

    :raises StreamError: if there is no answer, or a refusal.
    """
    sides = await stream_at(link, uid)
    for side in sides:
        await link.ask(Rel(uid=uid, role=side.role, seq=UNSENT), timing.PAGE_OF_LIST).addTimeout(
            timing.LIST, link.clock, lambda *_: _still(link)
        )
    return sides


def _still(link: Dialer) -> None:
    raise _wrong(link, f"it is still Releasing after {timing.LIST:g} s: a gateway there does not answer")


def _wrong(link: Dialer, what: str) -> StreamError:
    return StreamError("gateway-failed", f"the S2CS at {link.peer_name}: {what}")
