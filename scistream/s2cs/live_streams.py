"""The live streams of an S2CS, indexed by key, owner, link and gateway, and in the order of pages of Status."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from scistream.links.link import Link
from scistream.paging import PageOrder
from scistream.protocol.messages import StreamKey
from scistream.s2cs.in_use import GatewayUse, OwnerUse, is_counted, stream_use
from scistream.s2cs.stream import ServerStream


class _OfOwner:
    """The streams of one owner."""

    def __init__(self) -> None:
        self.pages = PageOrder()
        self.use = OwnerUse()


class _AtGateway:
    """The streams that may use ports of one gateway, and how much they use there."""

    def __init__(self) -> None:
        self.streams: dict[StreamKey, ServerStream] = {}
        self.use = GatewayUse()


class LiveStreams(dict[StreamKey, ServerStream]):
    """The live streams by key. Only `add` and `remove` may change the dictionary."""

    def __init__(self, streams: Iterable[ServerStream] = ()) -> None:
        super().__init__()
        self._of_owner: dict[str, _OfOwner] = {}
        self._at_gateway: dict[str, _AtGateway] = {}
        self._gateways: dict[StreamKey, set[str]] = {}
        self._of_link: dict[Link, dict[StreamKey, ServerStream]] = {}
        self._links: dict[StreamKey, set[Link]] = {}
        self._pages = PageOrder()
        for stream in streams:
            self.add(stream)

    def add(self, stream: ServerStream) -> None:
        """Add a stream that has begun."""
        key = stream.record.key
        self[key] = stream
        self._pages.add(key)
        self._of_owner.setdefault(stream.record.owner, _OfOwner()).pages.add(key)
        self.note_use(stream)

    def remove(self, stream: ServerStream) -> None:
        """Remove a stream that is over. Do nothing if the stream is not here, or if another one has its key now."""
        key, owner = stream.record.key, stream.record.owner
        if self.get(key) is not stream:
            return
        self._note_gateways(stream, ())
        del self._gateways[key]
        of_owner = self._of_owner[owner]
        of_owner.pages.remove(key)
        of_owner.use.drop(key)
        if not of_owner.pages:
            del self._of_owner[owner]
        for link in self._links.pop(key, ()):
            del self._of_link[link][key]
        self._pages.remove(key)
        del self[key]

    # -- usage

    def note_use(self, stream: ServerStream) -> None:
        """Count what a stream uses, by its record. Call this whenever the record changes."""
        record = stream.record
        if self.get(record.key) is not stream:
            return
        if record.request is not None and is_counted(record):
            self._of_owner[record.owner].use.put(record.key, record.request.rate)
            self._note_gateways(stream, record.plan.keys())
        else:
            self._of_owner[record.owner].use.drop(record.key)
            self._note_gateways(stream, ())

    def _note_gateways(self, stream: ServerStream, names: Collection[str]) -> None:
        key = stream.record.key
        for name in self._gateways.get(key, set()).difference(names):
            self._at_gateway[name].use.drop(key)
            del self._at_gateway[name].streams[key]
            if not self._at_gateway[name].streams:
                del self._at_gateway[name]
        for name in names:
            at_gateway = self._at_gateway.setdefault(name, _AtGateway())
            at_gateway.streams[key] = stream
            at_gateway.use.put(key, stream_use(stream.record, name))
        self._gateways[key] = set(names)

    def use_of_gateway(self, name: str) -> GatewayUse:
        """Return what all streams together use on a gateway."""
        return self._at_gateway[name].use if name in self._at_gateway else GatewayUse()

    def use_of_owner(self, owner: str) -> OwnerUse:
        """Return the usage of an owner."""
        return self._of_owner[owner].use if owner in self._of_owner else OwnerUse()

    # -- lookup

    def of_owner(self, owner: str, after: str = "") -> Iterator[ServerStream]:
        """Yield the streams of an owner that come after a page key, in the order of pages."""
        if owner in self._of_owner:
            yield from map(self.__getitem__, self._of_owner[owner].pages.after(after))

    def after(self, page_key: str) -> Iterator[ServerStream]:
        """Yield all streams that come after a page key, in the order of pages."""
        yield from map(self.__getitem__, self._pages.after(page_key))

    def at_gateway(self, name: str) -> list[ServerStream]:
        """Return the streams that may use ports of a gateway."""
        return list(self._at_gateway[name].streams.values()) if name in self._at_gateway else []

    def note_link(self, stream: ServerStream, link: Link) -> None:
        """Note that a link has sent a command about a stream."""
        key = stream.record.key
        if self.get(key) is stream:
            self._links.setdefault(key, set()).add(link)
            self._of_link.setdefault(link, {})[key] = stream

    def of_link(self, link: Link) -> list[ServerStream]:
        """Return the streams about which a link has sent commands."""
        return list(self._of_link.get(link, {}).values())

    def forget_link(self, link: Link) -> None:
        """Remove a link that is down from the index."""
        for key in self._of_link.pop(link, {}):
            self._links[key].discard(link)
