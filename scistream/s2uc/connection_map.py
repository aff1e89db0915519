"""Make the connection map: which listener leads to which target, channel by channel (protocol section 8.1)."""

from __future__ import annotations

from collections.abc import Sequence

from scistream.protocol.messages import CONS, PROD, Role

Map = dict[str, str]


def connection_map(prod_listeners: Sequence[str], cons_listeners: Sequence[str], app: Sequence[str]) -> dict[Role, Map]:
    """Join channel i of the consumer to channel i of the producer, and that to a listener of ProdApp.

    :param prod_listeners: WAN listeners of the producer's gateways, one for each channel, in order.
    :param cons_listeners: LAN listeners of the consumer's gateways, one for each channel, in order.
    :param app: listeners of ProdApp. If there are fewer than channels they are used in turn; surplus ones are unused.
    :returns: for each role a map from its listeners to their targets.
    :raises ValueError: if the numbers of listeners differ, or a side names a listener twice.
    """
    if len(prod_listeners) != len(cons_listeners):
        raise ValueError(
            f"the producer's facility has {len(prod_listeners)} listeners and the consumer's {len(cons_listeners)}: "
            "each channel needs one at each side"
        )
    for side, listeners in (("producer", prod_listeners), ("consumer", cons_listeners)):
        if len(set(listeners)) != len(listeners):
            raise ValueError(f"the {side}'s facility names a listener twice: each channel needs one of its own")
    return {
        PROD: {listener: app[channel % len(app)] for channel, listener in enumerate(prod_listeners)},
        CONS: dict(zip(cons_listeners, prod_listeners, strict=True)),
    }


def unused(app: Sequence[str], channels: int) -> list[str]:
    """Return the listeners of ProdApp that no channel leads to."""
    return list(app[channels:])
