"""The settings of the elements of a gateway, as the initiator passes them to each process."""

from __future__ import annotations

from msgspec import Struct, field

from scistream import timing
from scistream.s2ds.elements.ready import ReadySetting
from scistream.shared_settings import LOOPBACK


class ElementSettings(Struct, frozen=True, kw_only=True):
    """The settings of all elements of a gateway; times in seconds.

    :ivar wan_timeout: how long the WAN may be interrupted before connections are reset.
    :ivar dial_timeout: the time limit for a connection to the target.
    :ivar handshake_timeout: the time limit for the TLS handshake on the WAN.
    :ivar lan_congestion: the congestion control of connections to applications; empty: the system's.
    :ivar wan_congestion: the congestion control of connections to other gateways; empty: the system's.
    :ivar buffer_size: the number of bytes in flight in each direction of a connection, at most.
    :ivar wan_cipher: the preferred cipher on the WAN.
    :ivar wan_networks: the networks in which other gateways may be dialled.
    :ivar ready: the connections to keep ready for each channel, if this gateway dials the other one.
    :ivar control: the port on which this gateway listens for its controller.
    :ivar lent: ranges of the ports that this gateway lends to streams, both ends included.
    :ivar multipath: whether connections to other gateways may use several paths.
    :ivar mixed_paths: whether these are of both IPv4 and IPv6.
    :ivar proxy: the HOST:PORT of the HTTP proxy through which other gateways are dialled; empty for none.
    """

    wan_timeout: float = 60.0
    dial_timeout: float = field(default_factory=lambda: timing.DATA_DIAL)
    handshake_timeout: float = field(default_factory=lambda: timing.DATA_HANDSHAKE)
    lan_congestion: str = ""
    wan_congestion: str = ""
    buffer_size: int = 262144
    wan_cipher: str = "aes"
    wan_networks: list[str] = field(default_factory=lambda: list(LOOPBACK))
    ready: ReadySetting = 2
    control: int = 0
    lent: list[tuple[int, int]] = []
    multipath: bool = False
    mixed_paths: bool = False
    proxy: str = ""
