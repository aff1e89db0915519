"""A stream that is extended: both facilities and all gateways keep it for longer, or none of them does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from policy_lab import rule

from scistream import timing
from scistream.protocol.messages import UNSENT, Error, Extend, Role, UpdateTargets
from scistream.s2cs.policy.file import load_policy
from scistream.s2uc import stream as s2uc_stream
from scistream.s2uc.client import Client
from scistream.s2uc.history import StreamHistory
from scistream.s2uc.stream_certificates import issue_credentials
from support.memory_facilities import CONS_S2CS, PROD_S2CS, Facility, World

UID = "12345678-1234-4234-8234-123456789abc"
HERE = "insecure:loopback"


@pytest.fixture
def new_world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def make(**options: Any) -> World:
        worlds.append(World(tmp_path, **options))
        return worlds[-1]

    yield make
    for each in StreamHistory().all():
        StreamHistory().remove(each.uid)
    for world in worlds:
        world.close()


@pytest.fixture
def world(new_world: Callable[..., World]) -> World:
    return new_world(gateways=2)


def left_at(world: World, stream: Any) -> list[float]:
    """Return the seconds left at both S2CS."""
    return [side.seconds_left for side in world.result(stream.status().deferred).values()]


def left_on_gateways(world: World) -> list[float]:
    """Return the seconds left on each gateway that holds the stream."""
    gateways = [*world.prod.gateways, *world.cons.gateways]
    held = [stream for one in gateways for stream in one._live.values()]
    return [stream._expires_at - world.network.seconds() for stream in held]


def test_an_extended_stream_lives_on_at_both_sides_and_then_ends(world: World) -> None:
    stream = world.stream(expires=100.0, num_conn=2)
    world.network.run(40.0)
    left = world.result(stream.extend(1000.0).deferred)
    assert left == pytest.approx(1060.0, abs=2.0)
    assert stream.seconds_left == pytest.approx(left, abs=1.0)
    assert left_at(world, stream) == pytest.approx([left] * 2, abs=1.0)
    assert left_on_gateways(world) == pytest.approx([left + timing.SHORTENED_LATER] * 4, abs=2.0)
    ended = stream.ended().deferred
    world.network.run(left - 10.0)
    assert stream.state == "Streaming"
    assert world.refusal(ended, 20.0).code == "expired"
    world.network.run(timing.HELD_LONGER)
    assert world.both_are("released")
    assert world.both_are_empty()


def test_the_end_in_the_users_list_moves_with_it(world: World) -> None:
    stream = world.request(expires=100.0)
    (before,) = StreamHistory().all()
    world.result(stream.extend(500.0).deferred)
    (after,) = StreamHistory().all()
    assert after.expires_at - before.expires_at == pytest.approx(500.0, abs=5.0)  # type: ignore[operator]


def test_an_extension_survives_a_restart_of_the_control_server(world: World) -> None:
    stream = world.stream(expires=100.0)
    world.result(stream.extend(1000.0).deferred)
    world.result(world.prod.control.stopService())
    world.prod.control = world.prod.start_control()
    world.network.run(500.0)
    assert left_at(world, stream) == pytest.approx([600.0] * 2, abs=5.0)


def test_another_process_can_extend_and_a_later_update_of_targets_keeps_the_end(world: World) -> None:
    stream = world.stream(expires=100.0)
    other = Client(insecure=True, reactor=world.network)
    world.result(other.remembered(stream.uid, prod=PROD_S2CS, cons=CONS_S2CS).extend(1000.0).deferred)
    for role, side in world.result(stream.status().deferred).items():
        effects = stream._effects
        keys = issue_credentials(stream.uid, 2, 1e6, {role: effects.core.answers[role].csr})
        command = UpdateTargets(
            uid=stream.uid,
            role=role,
            seq=UNSENT,
            generation=2,
            connection_map=side.connection_map,
            data_conn_key=keys[role],
            expires=effects._shorter_life(role),
        )
        world.result(effects._servers[role].dialer.ask(command, 10.0))
    assert left_at(world, stream) == pytest.approx([1100.0] * 2, abs=5.0)
    world.network.run(timing.POLL + 1.0)
    assert stream.seconds_left == pytest.approx(1084.0, abs=5.0)
    world.result(other.close().deferred)


# -- limits


def limit(facility: Facility, file: Path, longest: str = "7d", **limits: str) -> None:
    authorizer = facility.control.authorizer
    config = msgspec.structs.replace(facility.control.config, expires="90s", longest_expires=longest)
    policy = None
    if limits:
        file.write_text(rule(HERE, "none", **limits))
        policy = load_policy(file)
    authorizer.put_in_force(config, policy)


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"longest": "10m"}, "longest_expires"), ({"expires": "10m"}, "rule 1")],
)
def test_the_whole_life_is_limited_and_a_refusal_puts_the_other_side_back(
    world: World, tmp_path: Path, settings: dict[str, str], named: str
) -> None:
    limit(world.cons, tmp_path / "policy.toml", **settings)
    stream = world.stream(expires=300.0)
    world.network.run(100.0)
    refused = world.refusal(stream.extend(400.0).deferred)
    assert refused.code == "not-authorized"
    for part in ("consumer side", "from its request", named, "10m", "the stream ends as before"):
        assert part in refused.msg
    assert left_at(world, stream) == pytest.approx([200.0] * 2, abs=3.0)
    assert world.result(stream.extend(299.0).deferred) == pytest.approx(499.0, abs=3.0)
    assert world.refusal(stream.extend(100.0).deferred).code == "not-authorized"
    assert left_at(world, stream) == pytest.approx([499.0] * 2, abs=3.0)


@pytest.mark.parametrize("by", [0.0, -5.0, float("nan"), 1e9])
def test_what_is_no_extension_is_refused_and_changes_nothing(world: World, by: float) -> None:
    stream = world.request(expires=300.0)
    assert world.refusal(stream.extend(by).deferred).code == "bad-message"
    assert left_at(world, stream) == pytest.approx([300.0] * 2, abs=3.0)


def test_a_stream_that_is_over_or_unknown_cannot_be_extended(world: World) -> None:
    stream = world.request()
    world.result(stream.release().deferred)
    assert world.refusal(stream.extend(60.0).deferred).code == "wrong-state"
    unknown = world.client.remembered(UID, prod=PROD_S2CS, cons=CONS_S2CS)
    assert world.refusal(unknown.extend(60.0).deferred).code == "unknown-uid"


# -- gateways


def refuse_extend(server: Any, refusal: Callable[[Any, Extend], None]) -> None:
    """Let a server answer Extend in another way."""
    take = server.message_received

    def taken(link: Any, message: Any) -> None:
        if isinstance(message, Extend):
            refusal(link, message)
        else:
            take(link, message)

    server.message_received = taken


def of_an_earlier_version(link: Any, command: Extend) -> None:
    link.send(Error(uid=command.uid, seq=command.seq, code="bad-message", msg="Invalid value 'Extend' - at `$.cmd`"))


def test_if_one_gateway_cannot_extend_none_does(world: World) -> None:
    stream = world.stream(expires=100.0, num_conn=2)
    refuse_extend(world.prod.gateways[1], of_an_earlier_version)
    refused = world.refusal(stream.extend(1000.0).deferred)
    assert refused.code == "gateway-failed"
    for part in ("producer side", "gateway dtn5002", "older version", "the stream ends as before"):
        assert part in refused.msg
    world.network.run(2.0)
    assert left_at(world, stream) == pytest.approx([98.0] * 2, abs=5.0)
    assert max(left_on_gateways(world)) < 100.0 + timing.SHORTENED_LATER
    ended = stream.ended().deferred
    assert world.refusal(ended, 100.0).code == "expired"


def test_a_facility_of_an_earlier_version_refuses_in_a_sentence(world: World) -> None:
    stream = world.stream(expires=100.0)
    refuse_extend(world.cons.control, of_an_earlier_version)
    refused = world.refusal(stream.extend(1000.0).deferred)
    assert "consumer side: its facility runs an older version" in refused.msg
    assert left_at(world, stream) == pytest.approx([100.0] * 2, abs=5.0)


def test_a_gateway_that_does_not_answer_is_named_and_nothing_changes(world: World) -> None:
    stream = world.stream(expires=500.0)
    refuse_extend(world.cons.gateways[0], lambda _link, _command: None)
    refuse_extend(world.cons.gateways[1], lambda _link, _command: None)
    refused = world.refusal(stream.extend(1000.0).deferred, 60.0)
    assert refused.code == "gateway-failed"
    assert "consumer side: gateway dtn600" in refused.msg
    assert left_at(world, stream) == pytest.approx([478.0] * 2, abs=10.0)


def test_certificates_outlive_every_extension_and_a_gateway_refuses_what_they_do_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = world.stream(expires=100.0)
    world.result(stream.extend(6 * 86400.0).deferred)
    world.result(stream.release().deferred)

    def short(uid: str, generation: int, _seconds: float, csr: Any) -> dict[Role, str]:
        return issue_credentials(uid, generation, 100.0, csr)

    monkeypatch.setattr(s2uc_stream, "issue_credentials", short)
    stream = world.stream(expires=100.0)
    refused = world.refusal(stream.extend(86400.0).deferred)
    assert "certificates of this stream are valid until" in refused.msg
    assert left_at(world, stream) == pytest.approx([100.0] * 2, abs=5.0)


def test_a_stream_that_is_released_while_it_is_extended_stays_released(world: World) -> None:
    stream = world.stream(expires=100.0)
    extending = stream.extend(1000.0).deferred
    released = stream.release().deferred
    assert world.refusal(extending).code in ("wrong-state", "gateway-failed", "unknown-uid")
    world.result(released)
    world.network.run(timing.HELD_LONGER)
    assert world.both_are_empty()
