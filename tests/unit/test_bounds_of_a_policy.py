"""Whatever users ask for, in whatever order, what they have reserved stays within the bounds of their rules."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from test_policy_at_work import ADA, BOB, UIDS, Knowing, Lab, a_req, rule

from scistream.wire.link import UNSENT, Dialer
from scistream.wire.messages import CONS, PROD, Command, Rel, Role, UpdateTargets

RATE, TOTAL, CHANNELS, STREAMS, LIFE = 60.0, 100.0, 3, 2, 600.0
USERS = {"ada": ADA, "bob": BOB}
RULE = {"streams": STREAMS, "rate": "60Mbit", "total_rate": "100Mbit", "num_conn": CHANNELS, "expires": "10m"}


class Office:
    """The S2CS of a lab with a policy, its users, and what they have reserved."""

    def __init__(self, folder: Path) -> None:
        self.lab = Lab(folder)
        self.lab.has(*(rule(identity.name, name=name, **RULE) for name, identity in USERS.items()))
        self.policy = self.lab.control.guard.policy
        self._links: dict[str, Dialer] = {name: self.lab.link(identity) for name, identity in USERS.items()}
        self._last: dict[str, Command] = {}
        self.lab.world.network.run(1.0)

    def say(self, user: str, command: Command) -> None:
        """One command, answered in any way or not within five seconds."""
        self._last[user] = command
        outcome: list[Any] = []
        self._links[user].ask(command, 4.0).addBoth(outcome.append)
        self.lab.world.network.until(lambda: bool(outcome), within=5.0)

    def say_again(self, user: str) -> None:
        if user in self._last:
            self.say(user, self._last[user])

    def wait(self, seconds: float) -> None:
        self.lab.world.network.run(seconds)

    def restart(self) -> None:
        world = self.lab.world
        world.result(world.prod.control.stopService())
        world.network.sever(world.prod.port)
        world.prod.control = self.lab.control = world.prod.start_control()
        self.lab.control.guard.policy = self.policy
        world.network.doors[world.prod.port] = Knowing(world.network.doors[world.prod.port])
        for name, identity in USERS.items():
            self._links[name].stopService()
            self._links[name] = self.lab.link(identity)
        world.network.run(1.0)

    def close(self) -> None:
        for link in self._links.values():
            link.stopService()
        self.lab.world.close()
        self.lab.control.store.close()

    def check(self) -> None:
        """Hold what the gateway has reserved, stream by stream, to the rule of its owner."""
        owners = {(one.uid, one.role): one.owner for one in self.lab.control.store.load()}
        (gateway,) = self.lab.world.prod.gateways
        mine: dict[str, list[Any]] = {}
        for key, holding in gateway._holdings.items():
            if holding._rate:
                mine.setdefault(owners[key], []).append(holding.status())
        for owner, streams in mine.items():
            assert math.fsum(one.rate for one in streams) <= TOTAL * (1 + 1e-6), f"{owner} has more than its total_rate"
            assert len({one.uid for one in streams}) <= STREAMS
            for one in streams:
                assert one.rate <= RATE * (1 + 1e-6)
                assert len(one.channels) <= CHANNELS
                assert one.seconds_left <= LIFE


users = st.sampled_from(sorted(USERS))
uids = st.sampled_from(UIDS[:4])
roles: st.SearchStrategy[Role] = st.sampled_from([PROD, CONS])
rates = st.one_of(st.sampled_from([1e-6, 40.0, 50.0, 59.99, 60.0, 60.01, 99.0]), st.floats(1e-6, 70.0))


def _request(user: str, uid: str, role: Role, rate: float, channels: int, life: float | None) -> Callable[..., None]:
    return lambda office: office.say(user, a_req(uid, role, rate=rate, num_conn=channels, expires=life))


def _update(user: str, uid: str, role: Role) -> Callable[..., None]:
    targets = {"127.0.0.1:50010": "127.0.0.1:9"}
    command = UpdateTargets(uid=uid, role=role, seq=UNSENT, generation=1, connection_map=targets, data_conn_key="none")
    return lambda office: office.say(user, command)


steps: st.SearchStrategy[Callable[[Office], None]] = st.one_of(
    st.builds(_request, users, uids, roles, rates, st.integers(1, 4), st.sampled_from([None, 30.0, 600.0, 601.0])),
    st.builds(_request, st.just("ada"), uids, roles, rates, st.just(1), st.none()),
    st.builds(
        lambda user, uid, role: lambda office: office.say(user, Rel(uid=uid, role=role, seq=UNSENT)), users, uids, roles
    ),
    st.builds(_update, users, uids, roles),
    st.builds(lambda user: lambda office: office.say_again(user), users),
    st.builds(lambda seconds: lambda office: office.wait(seconds), st.sampled_from([0.5, 31.0, 601.0])),
    st.just(Office.restart),
)


@settings(max_examples=60)
@given(st.lists(steps, min_size=2, max_size=14))
def test_no_order_of_commands_exceeds_a_bound_of_the_policy(asked: list[Callable[[Office], None]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        office = Office(Path(folder))
        try:
            for step in asked:
                step(office)
                office.check()
        finally:
            office.close()


def test_each_end_of_a_stream_counts_with_the_rate_that_it_reserves(tmp_path: Path) -> None:
    office = Office(tmp_path)
    for uid in UIDS[:4]:
        office.say("ada", a_req(uid, PROD, rate=59.0))
        office.say("ada", a_req(uid, CONS, rate=1e-6))
    office.check()
    office.close()
