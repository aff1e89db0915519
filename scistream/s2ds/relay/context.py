"""What relays share: the resources of their element, and the target of their channel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from OpenSSL import SSL

from scistream.protocol.address import Address
from scistream.protocol.messages import PROD, Cause, Role
from scistream.s2ds.relay.buffers import Buffers, Pipes
from scistream.s2ds.relay.dead_peers import DeadPeerDetector
from scistream.s2ds.relay.poller import Poller, poller_of
from scistream.s2ds.relay.prod_app_start import ProdAppStart
from scistream.s2ds.relay.target_names import Names
from scistream.s2ds.relay.tickets import Tickets

PIPE_BUFFERS = 4
"""The size of a pipe in buffers. It may be large, since bytes in a pipe are not copied and do not fill the caches."""

SMALL_BUFFER = 65536
"""The size, in bytes, of the buffers of plain connections that carry small messages."""


@dataclass(frozen=True)
class ChannelTarget:
    """The target of the connections of one channel.

    :param address: where ProdApp is, at the producer's side; None at the consumer's.
    :param wan_address: where the other gateway is, if this one dials it; None if this one is dialled.
    :param tls_context: the TLS context of the WAN leg: a client's if this gateway dials, a server's otherwise. With
        None both legs are plain TCP, which only benchmarks and tests use: a stream always has a context.
    :param start: the start of ProdApp, at the producer's side.
    :param own_ports: ports of this gateway that are allowed as targets.
    :param other_addresses: other addresses of ProdApp, for when it does not answer.
    :param tickets: the tickets of the connections under the TLS context.
    """

    uid: str
    role: Role
    channel: int
    address: Address | None
    wan_address: Address | None
    tls_context: SSL.Context | None
    start: ProdAppStart = field(default_factory=ProdAppStart)
    own_ports: frozenset[int] = frozenset()
    other_addresses: tuple[Address, ...] = ()
    tickets: Tickets | None = None

    @property
    def dials_wan(self) -> bool:
        """True if this gateway dials the other one."""
        return self.wan_address is not None

    @cached_property
    def program(self) -> str:
        """A readable name of ProdApp."""
        places = (self.address, *self.other_addresses)
        return f"ProdApp at {' or '.join(map(str, places))}"

    @cached_property
    def gateway(self) -> str:
        """A readable name of the other gateway."""
        return "the other gateway" + (f" at {self.wan_address}" if self.wan_address is not None else "")

    @cached_property
    def peer_name(self) -> str:
        """A readable name of what the connections go to."""
        return self.program if self.role == PROD else self.gateway


@dataclass(eq=False)
class RelayContext:
    """The resources and settings that the relays of an element share; times in seconds."""

    reactor: Any
    buffers: Buffers
    dead_peers: DeadPeerDetector
    dial_timeout: float
    handshake_timeout: float
    wan_timeout: float
    lan_congestion: str
    wan_congestion: str
    names: Names
    multipath: bool = False
    proxy: Address | None = None
    """The HTTP proxy through which other gateways are dialled."""
    names_of_proxy: Callable[[], bool] = bool
    """Whether the proxy looks up the names of other gateways: only if this gateway may dial every address."""
    mixed_paths: bool = False
    """True if the gateway has paths of both IPv4 and IPv6."""
    poller: Poller = field(init=False)
    small_buffers: Buffers = field(init=False)
    pipes: Pipes = field(init=False)
    farewells: dict[Any, None] = field(init=False, default_factory=dict)
    """The connections that were answered with an ERROR and are not closed yet, the oldest first."""

    def __post_init__(self) -> None:
        self.poller = poller_of(self.reactor)
        self.small_buffers = Buffers(min(SMALL_BUFFER, self.buffers.size))
        self.pipes = Pipes(PIPE_BUFFERS * self.buffers.size)

    def change(self, wan_timeout: float, lan_congestion: str, wan_congestion: str, proxy: Address | None) -> None:
        """Apply other settings to later connections, and the timeout to all of them."""
        self.wan_timeout = wan_timeout
        self.dead_peers.set_timeout(wan_timeout)
        self.lan_congestion = lan_congestion
        self.wan_congestion = wan_congestion
        self.proxy = proxy


class ConnectionEnding(NamedTuple):
    """The end of a relay, or of a connection to another gateway that no relay has taken."""

    clean: bool
    reason: str = ""
    """A sentence that is the same for all connections that end for this reason."""
    cause: Cause = "gateway"
    detail: str = ""
    """Further details, for the log only."""
