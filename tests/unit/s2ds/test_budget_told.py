"""A gateway says at its start what its streams have in all, and what that comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from log_lines import logged
from twisted.internet import reactor

from scistream.s2ds.elements import pool
from scistream.s2ds.service import DataServer
from scistream.s2ds.settings import GatewayLimits, S2DSConfig
from support.leased_ports import leased

BY_MEMORY = "waiting to be read by programs (from the memory of this machine and net.ipv4.tcp_mem)"


@pytest.mark.parametrize(
    ("limits", "descriptors", "connections", "unread"),
    [
        ({}, 2**40, "connections (from the memory of this machine)", BY_MEMORY),
        ({"connections": 70}, 2**40, "70 connections (from `connections` in [limits])", BY_MEMORY),
        ({"connections": 70}, 112, "50 connections (from the limit of open files (LimitNOFILE))", BY_MEMORY),
        ({"unread": "30MiB"}, 112, "50 connections", "30 MiB waiting to be read by programs (from `unread`"),
    ],
)
def test_the_budget_in_force_is_told_with_what_it_comes_from(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limits: dict[str, Any],
    descriptors: int,
    connections: str,
    unread: str,
) -> None:
    monkeypatch.setattr(pool, "descriptors_of", lambda _pid: descriptors)
    first = leased.take(4)
    config = S2DSConfig(
        listen=f"127.0.0.1:{leased.take()}",
        ports=f"{first}-{first + 3}",
        insecure=True,
        elements=0,
        limits=GatewayLimits(**limits),
    )
    server = DataServer(reactor, config, tmp_path / "s2ds.toml")
    try:
        with logged() as lines:
            server.startService()
    finally:
        server.stopService()
    (told,) = [line for line in lines if line.startswith("limits of all streams together: ")]
    assert connections in told
    assert unread in told
