"""Connections that carry more under one key than is advised, and the cipher that a gateway prefers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from gateways import Make, Stream, both, sleep
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from scistream import timing
from scistream.s2ds.relay import relay
from support.applications import MIB, receive_exactly, send


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Yield the log lines about keys while connections are inspected often."""
    monkeypatch.setattr(timing, "SAMPLE_INTERVAL", 0.2)
    lines: list[str] = []

    def hear(event: LogEvent) -> None:
        line = formatEvent(event)
        if "under one key" in line:
            lines.append(line)

    globalLogPublisher.addObserver(hear)
    yield lines
    globalLogPublisher.removeObserver(hear)


def cipher_of(stream: Stream) -> str:
    (one,) = stream.prod.relays()
    (wan,) = [leg for leg in one._legs if leg.wan]
    name: Any = wan.connection.get_cipher_name()
    return str(name)


async def carried(stream: Stream) -> None:
    """Send more than the bound of this test, and see that all of it arrives."""
    consumer, producer = await stream.pair()
    digest, got = await both(lambda: send(producer, 4 * MIB), lambda: receive_exactly(consumer, 4 * MIB))
    assert hashlib.sha256(got).hexdigest() == digest


@pytest_twisted.ensureDeferred
async def test_a_connection_that_has_carried_much_under_one_key_is_noted_once_with_the_remedy(
    make: Make, monkeypatch: pytest.MonkeyPatch, noted: list[str]
) -> None:
    monkeypatch.setattr(relay, "MOST_UNDER_ONE_KEY", 3 * MIB)
    stream = make()
    await carried(stream)
    assert "GCM" in cipher_of(stream)
    await stream.until(lambda: len(noted) == 2)  # by each of the two gateways
    assert all(stream.uid in line and 'wan_cipher = "chacha20"' in line for line in noted)
    await sleep(1.5 * timing.SAMPLE_INTERVAL)
    assert len(noted) == 2


@pytest_twisted.ensureDeferred
async def test_with_the_other_cipher_as_with_little_data_nothing_is_noted(
    make: Make, monkeypatch: pytest.MonkeyPatch, noted: list[str]
) -> None:
    little = make()
    await carried(little)
    await sleep(1.5 * timing.SAMPLE_INTERVAL)
    monkeypatch.setattr(relay, "MOST_UNDER_ONE_KEY", 3 * MIB)
    await little.close()
    stream = make(wan_cipher="chacha20")
    await carried(stream)
    assert "CHACHA20" in cipher_of(stream)
    await sleep(1.5 * timing.SAMPLE_INTERVAL)
    assert noted == []
