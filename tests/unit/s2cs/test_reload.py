"""A reload of an S2CS applies everything that it reads again, or changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from scistream import timing
from scistream.config import ConfigError
from scistream.pki.authority import init_authority, issue
from scistream.pki.revocation import renew
from scistream.protocol.messages import Req
from scistream.s2cs.record import Record
from scistream.s2cs.service import ControlServer
from scistream.s2cs.settings import GatewaySettings, S2CSConfig
from scistream.s2cs.stream import ServerStream
from scistream.shared_settings import ControllerSettings
from support.memory_network import MemoryNetwork

UID = "6857809e-18e6-4c61-81a4-3d698c907be6"
RULE = '[[rules]]\nname = "{}"\nissuer = "pki/ca.pem"\nidentities = ["ada@lab.example"]\nroles = ["{}"]\n'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ControlServer]:
    pki = tmp_path / "pki"
    init_authority(pki, "Example Light Source")
    issue(pki, "server", "s2cs.example")
    issue(pki, "controller", "s2cs")
    (tmp_path / "policy.toml").write_text(RULE.format("one", "PROD"))
    authorities = ["pki/ca.pem"]
    settings = S2CSConfig(
        gateways=[GatewaySettings(name="dtn1", address="127.0.0.1:5001")],
        certificate="pki/s2cs.example.pem",
        key="pki/s2cs.example.key",
        authorities=authorities,
        controller=ControllerSettings(certificate="pki/s2cs.pem", key="pki/s2cs.key", authorities=authorities),
        policy="policy.toml",
    )
    server = ControlServer(MemoryNetwork(), settings, tmp_path / "s2cs.toml")
    yield server
    server._close_files()


def in_force(server: ControlServer) -> tuple[object, ...]:
    listener, to_gateways = server._listener.credentials, server._to_gateways
    assert listener is not None
    assert to_gateways is not None
    return listener.context, listener.material, to_gateways.context, to_gateways.material, server.authorizer.policy


def test_all_that_is_read_again_is_in_force_afterwards(server: ControlServer, tmp_path: Path) -> None:
    before = in_force(server)
    for name in ("s2cs.example", "s2cs"):
        renew(tmp_path / "pki", name, 100)
    (tmp_path / "policy.toml").write_text(RULE.format("one", "PROD") + RULE.format("two", "CONS"))
    server.reload(server.config)
    assert all(new is not old for new, old in zip(in_force(server), before, strict=True))
    assert server.authorizer.policy is not None
    assert len(server.authorizer.policy.rules) == 2


@pytest.mark.parametrize("broken", ["policy.toml", "pki/s2cs.key", "pki/s2cs.example.pem", "pki/ca.pem"])
def test_one_broken_file_among_good_new_ones_leaves_all_as_it_was(
    server: ControlServer, tmp_path: Path, broken: str
) -> None:
    before = in_force(server)
    for name in ("s2cs.example", "s2cs"):
        renew(tmp_path / "pki", name, 100)
    (tmp_path / "policy.toml").write_text(RULE.format("other", "CONS"))
    good = (tmp_path / broken).read_bytes()
    (tmp_path / broken).write_text("half a file")
    with pytest.raises(ConfigError, match=broken):
        server.reload(server.config)
    assert in_force(server) == before
    (tmp_path / broken).write_bytes(good)
    server.reload(server.config)
    assert in_force(server) != before


def test_a_gateway_may_hold_a_stream_until_it_is_released_or_has_long_expired() -> None:
    record = Record(uid="a", role="PROD", owner="ada", state="Streaming", plan={"dtn1": [0]}, expires_at=1000.0)
    assert record.may_be_held_by("dtn1", 1000.0 + timing.HELD_LONGER - 1)
    assert not record.may_be_held_by("dtn1", 1000.0 + timing.HELD_LONGER)
    assert not record.may_be_held_by("dtn2", 0.0)
    record.state = "Releasing"
    assert record.may_be_held_by("dtn1", 0.0), "it has not confirmed the release yet"
    record.state = "Released"
    assert not record.may_be_held_by("dtn1", 0.0)


def test_the_audit_trail_goes_to_another_file_from_then_on(server: ControlServer, tmp_path: Path) -> None:
    server.audit.started(["dtn1"], 0, insecure=False)
    server.reload(replace(server.config, audit="other.jsonl"))
    server.audit.started(["dtn1"], 0, insecure=False)
    for file in ("s2cs.audit.jsonl", "other.jsonl"):
        assert len((tmp_path / file).read_text().splitlines()) == 1
    server.reload(replace(server.config, audit="none"))
    server.audit.started(["dtn1"], 0, insecure=False)
    assert len((tmp_path / "other.jsonl").read_text().splitlines()) == 1


def test_an_audit_trail_that_cannot_be_opened_changes_nothing(server: ControlServer, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("not a trail\n")
    before = in_force(server)
    with pytest.raises(ConfigError, match=r"other\.txt exists and is not an audit trail"):
        server.reload(replace(server.config, audit="other.txt", expires="2h"))
    assert in_force(server) == before
    assert server.config.expires == "24h"


def test_a_gateway_without_streams_moves_and_one_with_streams_does_not(server: ControlServer) -> None:
    moved = [GatewaySettings(name="dtn1", address="127.0.0.1:5009")]
    link = server.gateways["dtn1"]
    stream = ServerStream(
        server,
        Record(
            uid="a",
            role="PROD",
            owner="ada",
            state="Streaming",
            plan={"dtn1": [0]},
            request=Req(uid=UID, role="PROD", seq=1, num_conn=1, rate=1.0, app_key_hash="0" * 64),
        ),
        restored=True,
    )
    server.streams.add(stream)
    change = server.reload(replace(server.config, gateways=moved))
    assert change.needs_restart == ["gateways.dtn1.address"]
    assert server.gateways["dtn1"] is link
    server.streams.remove(stream)
    change = server.reload(replace(server.config, gateways=moved))
    assert (change.changed, change.needs_restart) == (["gateways"], [])
    assert server.gateways["dtn1"] is not link
    assert server.config.gateways == moved
