"""Choose the side whose gateways dial the others over the WAN, from what both facilities have reported. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, Role
from scistream.protocol.wan_abilities import ACCEPT, abilities, needed

_SIDE: dict[Role, str] = {PROD: "producer", CONS: "consumer"}


def choose_dialer(
    wan: Mapping[Role, Collection[str] | None], sites: Mapping[Role, str], wanted: Role | None = None
) -> Role:
    """Return the side whose gateways dial: the consumer's if they can, otherwise the producer's.

    :param wan: for each side, what its facility has reported that its gateways can do; None from an older version.
    :param sites: the name of each facility for people.
    :param wanted: the side that the user has chosen; None for either.
    :raises StreamError: ``not-authorized`` if no side can; the message names both facilities and what is missing.
    """
    missing = {}
    for wan_dialer in (wanted,) if wanted is not None else (CONS, PROD):
        missing[wan_dialer] = [
            role for role in (PROD, CONS) if needed(role, wan_dialer) not in abilities(role, wan.get(role))
        ]
        if not missing[wan_dialer]:
            return wan_dialer
    ways = [
        f"for the {_SIDE[wan_dialer]}'s gateways to dial, "
        + " and ".join(_remedy(role, wan_dialer, wan.get(role), sites[role]) for role in roles)
        for wan_dialer, roles in missing.items()
    ]
    both = f"the gateways of the producer's facility ({sites[PROD]}) and of the consumer's ({sites[CONS]})"
    raise StreamError("not-authorized", f"{both} cannot connect to each other: {'; or '.join(ways)}")


def _remedy(role: Role, wan_dialer: Role, reported: Collection[str] | None, site: str) -> str:
    """Return what a facility would have to allow so that its gateways can do their part."""
    ability = needed(role, wan_dialer)
    if reported is None:
        return f"{site} has to upgrade SciStream, since its version always lets the consumer's gateways dial"
    verb = "accept connections" if ability == ACCEPT else "dial"
    return f"{site} has to let all its gateways {verb} (`{ability} = true` in [wan])"


def wan_targets(prod_listeners: Sequence[str], wan_listeners: Sequence[str] | None) -> dict[str, str]:
    """Return where the producer's gateways dial: for each of their listeners one of the consumer's gateways.

    :param wan_listeners: where the consumer's gateways listen for them, in the order of the channels.
    :raises StreamError: ``gateway-failed`` if there is not exactly one for each channel.
    """
    found = wan_listeners or ()
    if len(found) != len(prod_listeners) or len(set(found)) != len(found):
        raise StreamError(
            "gateway-failed",
            f"the consumer's facility names {len(set(found))} addresses at which the producer's gateways reach its "
            f"own, but the stream has {len(prod_listeners)} channels: tell its operator",
        )
    return dict(zip(prod_listeners, found, strict=True))
