"""What a user may ask of one S2CS about all streams that it lets her see: an administrator's view of a facility."""

from __future__ import annotations

from scistream.wire.errors import StreamError
from scistream.wire.link import UNSENT, Dialer
from scistream.wire.messages import Rel, Status, StreamStatus

PATIENCE = 30.0


async def streams_at(link: Dialer) -> list[StreamStatus]:
    """All streams that are not released, page by page.

    :raises StreamError: if there is no answer, or a refusal.
    """
    found: list[StreamStatus] = []
    after: str | None = None
    while True:
        answer = await link.ask(Status(uid=None, role=None, seq=UNSENT, after=after), PATIENCE)
        found += answer.streams or []
        after = answer.more
        if after is None:
            return found


async def release_at(link: Dialer, uid: str) -> list[StreamStatus]:
    """Release what there is of a stream, in both roles; what it was before.

    :raises StreamError: if there is no answer, or a refusal.
    """
    answer = await link.ask(Status(uid=uid, role=None, seq=UNSENT), PATIENCE)
    sides = answer.streams or []
    if not sides:
        raise StreamError("unknown-uid", f"no stream {uid} was asked for there")
    for side in sides:
        await link.ask(Rel(uid=uid, role=side.role, seq=UNSENT), PATIENCE)
    return sides
