"""How much each owner's streams have carried today, from what the gateways say. In memory only: it begins anew with
each run of the S2CS.
"""

from __future__ import annotations

from collections.abc import Callable

from scistream.wire.messages import StreamKey

_DAY = 86400.0


class Volume:
    """Bytes of this day, UTC, in both directions together, by owner.

    :param wall: seconds since the epoch.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._day = 0
        self._bytes: dict[str, int] = {}
        self._seen: dict[StreamKey, int] = {}

    def begin(self, key: StreamKey) -> None:
        """A stream is new: all that it will carry counts."""
        self._seen[key] = 0

    def note(self, key: StreamKey, owner: str, total: int) -> None:
        """What a stream has carried in all by now. Of one that ran before we did, only what is added from here on."""
        self._turn()
        added = max(0, total - self._seen.get(key, total))
        self._seen[key] = total
        self._bytes[owner] = self._bytes.get(owner, 0) + added

    def forget(self, key: StreamKey) -> None:
        """A stream is gone; what it has carried still counts."""
        self._seen.pop(key, None)

    def today(self, owner: str) -> int:
        """What an owner's streams have carried since midnight UTC, as far as the gateways have said."""
        self._turn()
        return self._bytes.get(owner, 0)

    def _turn(self) -> None:
        today = int(self._wall() // _DAY)
        if today != self._day:
            self._day, self._bytes = today, {}
