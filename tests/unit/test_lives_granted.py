"""How long a stream lives: what its user does not say the facilities decide, and their shorter answer counts."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_lab import rule

import scistream.cli
from scistream import timing
from scistream.protocol.messages import CONS, PROD, UNSENT, Req, Role, UpdateTargets
from scistream.s2cs.policy.file import load_policy
from scistream.s2uc.cli import main as s2uc
from scistream.s2uc.client import Stream
from scistream.s2uc.history import StreamHistory
from scistream.s2uc.stream_certificates import issue_credentials
from support.memory_facilities import Facility, World

HERE = "insecure:loopback"
"""Who everybody is that comes without certificates."""


class Terms(NamedTuple):
    """What a facility says of lives; `rule` is None where its policy has no limit, `...` where there is no policy."""

    usual: str = "24h"
    longest: str = "7d"
    rule: Any = ...

    def put_in_force(self, facility: Facility, file: Path) -> None:
        authorizer = facility.control.authorizer
        config = msgspec.structs.replace(facility.control.config, expires=self.usual, longest_expires=self.longest)
        policy = None
        if self.rule is not ...:
            limits = {"expires": self.rule} if self.rule else {}
            file.write_text(rule(HERE, "none", **limits))
            policy = load_policy(file)
        authorizer.put_in_force(config, policy)


SECONDS = {"90s": 90.0, "10m": 600.0, "8h": 28800.0, "24h": 86400.0, "7d": 604800.0}
times = st.sampled_from(sorted(SECONDS))
terms = st.builds(Terms, times, times, st.one_of(st.just(...), st.none(), times))


def at_most(one: Terms) -> float:
    return min(SECONDS[one.longest], SECONDS.get(one.rule, 1e9) if one.rule is not ... else 1e9)


@settings(max_examples=25)
@given(terms, terms, st.none() | times.map(SECONDS.__getitem__))
def test_a_request_lives_for_as_long_as_both_facilities_allow(prod: Terms, cons: Terms, wish: float | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        try:
            prod.put_in_force(world.prod, Path(folder, "prod-policy.toml"))
            cons.put_in_force(world.cons, Path(folder, "cons-policy.toml"))
            asking = world.ask(expires=wish)
            if wish is not None and wish > min(at_most(prod), at_most(cons)):
                assert world.refusal(asking).code == "not-authorized"
                return
            stream = world.result(asking)
            granted = [wish or min(SECONDS[one.usual], at_most(one)) for one in (prod, cons)]
            assert stream.seconds_left == pytest.approx(min(granted), abs=1.0)
            (known,) = StreamHistory().all()
            assert known.expires_at == pytest.approx(time.time() + min(granted), abs=10.0)
            world.application(stream.join[PROD], "detector")
            world.result(stream.provisioned().deferred)
            left = [side.seconds_left for side in world.result(stream.status().deferred).values()]
            assert left == pytest.approx([min(granted)] * 2, abs=2.0)
        finally:
            for each in StreamHistory().all():
                StreamHistory().remove(each.uid)
            world.close()


def test_what_a_user_does_not_say_is_not_sent(world: World) -> None:
    heard: list[Any] = []
    _overhear(world, heard)
    world.request()
    requests = [message for message in heard if isinstance(message, Req)]
    assert {one.role for one in requests} == {PROD, CONS}
    for one in requests:
        assert (one.expires, one.hello_timeout, one.app_from, one.label) == (None, None, None, None)


@pytest.fixture
def world(tmp_path: Path) -> Any:
    world = World(tmp_path)
    yield world
    world.close()


def _overhear(world: World, heard: list[Any]) -> None:
    for facility in (world.prod, world.cons):
        control, take = facility.control, facility.control._carry_out_or_refuse

        def taken(link: Any, message: Any, *rest: Any, take: Any = take) -> Any:
            heard.append(message)
            return take(link, message, *rest)

        control._carry_out_or_refuse = taken


def test_both_sides_end_with_the_one_that_has_granted_less(world: World, tmp_path: Path) -> None:
    Terms(usual="90s").put_in_force(world.prod, tmp_path / "policy.toml")
    world.stream()
    world.client.close()
    world.network.run(95.0)
    assert world.both_are("released")
    assert world.both_are_empty()


@pytest.mark.parametrize(("seconds", "left"), [(30.0, 30.0), (1e6, 600.0), (None, 600.0)])
def test_new_targets_may_shorten_a_life_and_never_lengthen_it(world: World, seconds: Any, left: float) -> None:
    stream = world.stream(expires=600.0)
    sides = world.result(stream.status().deferred)
    for role, side in sides.items():
        _update_by_hand(world, stream, role, side.connection_map, seconds)
    told = [side.seconds_left for side in world.result(stream.status().deferred).values()]
    assert told == pytest.approx([left] * 2, abs=3.0)


@pytest.mark.parametrize(("seconds", "left"), [(30.0, 30.0), (1e6, 600.0), (None, 600.0)])
def test_gateways_end_a_stream_at_its_shorter_life_when_their_control_servers_are_gone(
    world: World, seconds: Any, left: float
) -> None:
    stream = world.stream(expires=600.0)
    sides = world.result(stream.status().deferred)
    for role, side in sides.items():
        _update_by_hand(world, stream, role, side.connection_map, seconds)
    for facility in (world.prod, world.cons):
        world.result(facility.control.stopService())
    world.network.run(left - 10.0)
    assert not world.both_are_empty()
    world.network.run(10.0 + timing.HELD_LONGER)
    assert world.both_are_empty()


def test_the_control_server_ends_a_shorter_life_before_its_gateway_does(world: World) -> None:
    stream = world.stream(expires=600.0)
    for role, side in world.result(stream.status().deferred).items():
        _update_by_hand(world, stream, role, side.connection_map, 30.0)
    ended = stream.ended().deferred
    assert world.refusal(ended, 40.0).code == "expired"


def _update_by_hand(world: World, stream: Any, role: Role, targets: dict[str, str], seconds: Any) -> None:
    effects = stream._effects
    generation = effects.core.generation + 1
    keys = issue_credentials(stream.uid, generation, seconds or 600.0, {role: effects.core.answers[role].csr})
    command = UpdateTargets(
        uid=stream.uid,
        role=role,
        seq=UNSENT,
        generation=generation,
        connection_map=targets,
        data_conn_key=keys[role],
        expires=seconds,
    )
    world.result(effects._servers[role].dialer.ask(command, 10.0))


@pytest.mark.parametrize("limit", ["1h", "8h", "24h", "unlimited"])
@pytest.mark.parametrize("expires", [None, "30m", "9h"])
def test_the_check_of_a_policy_and_a_request_say_the_same(
    world: World, tmp_path: Path, limit: str, expires: str | None
) -> None:
    file = tmp_path / "policy.toml"
    Terms(rule=limit).put_in_force(world.prod, file)
    asked = ["--expires", expires] if expires else []
    checked = CliRunner().invoke(
        scistream.cli.main, ["policy", "check", str(file), "--as", HERE, "--role", "PROD", "--json", *asked]
    )
    wish = {None: None, "30m": 1800.0, "9h": 32400.0}[expires]
    outcome: list[Any] = []
    world.ask(expires=wish, rate=1000.0).addBoth(outcome.append)
    world.network.until(lambda: bool(outcome), 5.0)
    granted = isinstance(outcome[0], Stream)
    assert granted or outcome[0].value.code == "not-authorized"
    assert json.loads(checked.output)["allowed"] == granted
    assert checked.exit_code == (0 if granted else 1)


def test_both_commands_have_the_same_defaults() -> None:
    def defaults(command: Any) -> dict[str, Any]:
        return {one.name: one.default for one in command.params if one.name in ("rate", "num_conn", "expires")}

    policy = scistream.cli.main.get_command(click.Context(scistream.cli.main), "policy")
    check = policy.commands["check"]  # type: ignore[union-attr]
    assert defaults(check) == defaults(s2uc.commands["request"])
