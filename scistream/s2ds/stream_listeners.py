"""The listeners of a stream on one side of a gateway: one for each channel, on ports that `ListenPorts` lends.

Each stream has those that its RESP announces: on the LAN at a consumer's gateway, on the WAN at a producer's. If the
producer's gateways dial, a consumer's gateway has others for them on its WAN, too.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

from scistream.protocol.address import Address
from scistream.s2ds.ports import ONE_PATH, ChannelListener, ListenPorts, Paths
from scistream.s2ds.settings import LegSettings

OnAccept = Callable[[socket.socket, tuple[Any, ...]], None]
"""Called with a connection's socket and the address of its peer."""


class StreamListeners:
    """One listener for each channel, once they are reserved.

    The ports are lent until `release`, which is later than the end of the listeners: another stream that gets one of
    the ports overwrites the figures in its slot.

    :param reactor: an `IReactorFDSet` and `IReactorTime`.
    :param leg: where to bind, and what to announce.
    :param paths: how to use the paths of the WAN.
    """

    def __init__(self, reactor: Any, ports: ListenPorts, leg: LegSettings, paths: Paths = ONE_PATH) -> None:
        self._reactor = reactor
        self._ports = ports
        self._leg = leg
        self._paths = paths
        self.by_channel: dict[int, ChannelListener] = {}
        """The listeners, until they are taken."""
        self._numbers: dict[int, int] = {}
        self._lent: list[socket.socket] = []

    def __bool__(self) -> bool:
        return bool(self.by_channel)

    def reserve(
        self, channels: Sequence[int], chosen: Sequence[int] | None = None, excluded: Container[int] = ()
    ) -> None:
        """Reserve a listener for each channel. They accept nothing yet.

        :param chosen: the numbers of the ports, in the order of the channels, if the user has chosen them.
        :param excluded: ports that must not be used.
        :raises StreamError: `no-ports` or `gateway-failed`, with nothing reserved.
        """
        if chosen is None:
            self._lent = self._ports.reserve(self._leg.bind, len(channels), excluded, self._paths)
        else:
            self._lent = self._ports.reserve_chosen(self._leg.bind, chosen, excluded, self._paths)
        for channel, sock in zip(channels, self._lent, strict=True):
            self.by_channel[channel] = ChannelListener(self._reactor, sock, self._ports.beside(sock))
            self._numbers[channel] = sock.getsockname()[1]

    @property
    def ports(self) -> dict[int, int]:
        """The port of each channel; empty once the listeners are taken."""
        return {channel: self._numbers[channel] for channel in self.by_channel}

    @property
    def announced(self) -> dict[str, int]:
        """The channels by the addresses that are announced to others, in the order of the channels."""
        return {str(Address(self._leg.advertised, port)): channel for channel, port in self.ports.items()}

    def start(self, on_accept: Callable[[int], OnAccept], has_room: Callable[[int], Callable[[], bool]]) -> None:
        """Listen on all channels, or replace what was given before.

        :param on_accept: returns what is called with the connections of a channel.
        :param has_room: returns what says whether a channel may accept another connection now.
        :raises StreamError: `gateway-failed` if another program has started to listen there.
        """
        for channel, listener in self.by_channel.items():
            listener.start(on_accept(channel), has_room(channel))

    def take(self) -> Iterable[ChannelListener]:
        """Forget the listeners, and return them so that they can be stopped."""
        taken, self.by_channel = self.by_channel, {}
        return taken.values()

    def release(self) -> None:
        """Return the ports. Idempotent."""
        lent, self._lent = self._lent, []
        for sock in lent:
            self._ports.release(sock)
