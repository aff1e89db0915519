"""Connections to a target that may have several addresses, tried until one answers or the time is up."""

from __future__ import annotations

import socket
from collections.abc import Callable

from twisted.internet.task import deferLater

from scistream import timing
from scistream.protocol.address import Address
from scistream.s2ds.relay.context import ChannelTarget, RelayContext
from scistream.s2ds.relay.leg import ConnectionBrokenError, DialRefusedError, ShortageError
from scistream.s2ds.relay.plain import dial
from scistream.s2ds.relay.proxy import dial_through


async def dial_target(
    context: RelayContext, target: ChannelTarget, on_sent: Callable[[Address], None], *, wan: bool
) -> socket.socket:
    """Connect to the other gateway or to ProdApp; while this machine lacks resources, try again for `dial_timeout`.

    :param on_sent: called when a connection request has been sent, with the address to which it goes.
    :param wan: True to connect to the other gateway.
    :raises ConnectionBrokenError: if no address answers; `DialRefusedError` if one refused the connection.
    """
    deadline = context.reactor.seconds() + context.dial_timeout
    while True:
        try:
            return await _dial_any(context, target, on_sent, deadline, wan=wan)
        except ShortageError:
            if context.reactor.seconds() + timing.DIAL_AGAIN > deadline:
                raise
        await deferLater(context.reactor, timing.DIAL_AGAIN)


async def _dial_any(
    context: RelayContext, target: ChannelTarget, on_sent: Callable[[Address], None], deadline: float, *, wan: bool
) -> socket.socket:
    """Connect to the first address of the target that answers; the time left is divided among the addresses."""
    name = target.gateway if wan else target.program
    main = target.wan_address if wan else target.address
    assert main is not None
    addresses = [main]
    if not (wan and context.names_of_proxy() and main.numeric is None):
        others = () if wan else target.other_addresses
        addresses = await context.names.addresses(main, target.own_ports, others, wan=wan)
    problem = ConnectionBrokenError(f"{name} has no address that this gateway can find and may dial", "wan")
    for tried, address in enumerate(addresses):
        seconds_left = max(timing.SHORTEST_DIAL, deadline - context.reactor.seconds()) / (len(addresses) - tried)
        try:
            if wan and context.proxy is not None:
                on_sent(address)
                return await dial_through(context, context.proxy, address, name, seconds_left)
            dialling = dial(
                context.reactor,
                context.poller,
                address,
                name,
                seconds_left,
                context.wan_timeout if wan else timing.LAN_SILENCE,
                context.wan_congestion if wan else context.lan_congestion,
                wan=wan,
                multipath=wan and context.multipath,
                mixed=context.mixed_paths,
            )
            on_sent(address)
            sock = await dialling
        except ShortageError:
            raise
        except ConnectionBrokenError as broken:
            if not isinstance(problem, DialRefusedError):  # a program that refuses may not have started yet
                problem = broken
        else:
            context.names.prefer(main, address)
            return sock
    raise problem
