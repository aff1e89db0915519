"""Gateways that are named by a host name with several addresses."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from harness import World

from support.applications import accept, address_of, listen, noise, receive, sha256
from support.facilities import HOST
from support.requirements import needs_ipv6


@pytest.mark.parametrize("bound", [HOST, "::1"])
def test_a_gateway_is_found_at_whichever_address_of_its_name_it_listens(tmp_path: Path, bound: str) -> None:
    """The name has an address of each family, and nobody listens at the other one."""
    needs_ipv6()
    leg = {"bind": bound, "advertise": "localhost"}
    with (
        World(tmp_path, lab={"gateway": {"wan": leg}}) as world,
        closing(listen()) as detector,
        world.stream([address_of(detector)]) as stream,
    ):
        sent = noise(100_000)
        with closing(stream.connect(0)) as consumer, closing(accept(detector)) as producer:
            producer.sendall(sent)
            producer.shutdown(1)
            assert sha256(receive(consumer)) == sha256(sent)


@pytest.mark.parametrize("bound", ["::1", HOST])
def test_a_producer_is_found_at_whichever_address_of_its_name_it_listens(tmp_path: Path, bound: str) -> None:
    """The name has an address of each family, and nobody listens at the other one."""
    needs_ipv6()
    with World(tmp_path) as world, closing(listen(bound)) as detector:
        port = detector.getsockname()[1]
        with world.stream([f"localhost:{port}"]) as stream:
            for seed in range(2):  # the second connection knows where the first one got through
                sent = noise(1_000_000, seed)
                with closing(stream.connect(0)) as consumer, closing(accept(detector)) as producer:
                    producer.sendall(sent)
                    producer.shutdown(1)
                    assert sha256(receive(consumer)) == sha256(sent)
