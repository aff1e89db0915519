"""A stream over two WANs with IPv6 addresses.

It has hosts of its own: the kernel announces the paths of all gateways of a host on each connection.
"""

from __future__ import annotations

import pytest
import test_paths
from test_paths import (
    SECOND,
    SECOND_V6,
    WAN_TIMEOUT,
    carried_first,
    carried_second,
    cut_first,
    cut_second,
    streaming,
    until_told,
    wait_for,
)
from testbed import Testbed
from testbed_facilities import Facilities

two_wans = test_paths.two_wans


@pytest.mark.parametrize(
    ("first", "second", "port"),
    [
        pytest.param("v6", SECOND_V6, 7200, id="IPv6"),
        pytest.param("v6", SECOND, 7400, id="IPv6-then-IPv4", marks=pytest.mark.long),
        pytest.param("v4", SECOND_V6, 7600, id="IPv4-then-IPv6", marks=pytest.mark.long),
    ],
)
def test_a_stream_over_ipv6_paths_survives_the_loss_of_either(
    two_wans: Testbed, first: str, second: dict[str, str], port: int
) -> None:
    v = getattr(two_wans, first)
    paths = {host: [getattr(v, host), address] for host, address in second.items()}
    with (
        Facilities(two_wans, port=port, v=v, paths=paths, wan_timeout=f"{WAN_TIMEOUT:g}s") as facilities,
        streaming(two_wans, facilities, v.plan) as transfers,
    ):
        uid = transfers[0].uid
        for pair, cut, other in (
            ((v.pgw, v.cgw), cut_first, carried_second),
            ((second["pgw"], second["cgw"]), cut_second, carried_first),
        ):
            until_told(facilities, uid, pair, up=True)
            cut(two_wans, cut=True)
            try:
                wait_for(other, two_wans)
                until_told(facilities, uid, pair, up=False)
            finally:
                cut(two_wans, cut=False)
            until_told(facilities, uid, pair, up=True)
