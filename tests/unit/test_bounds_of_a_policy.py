"""Whatever users ask for, in whatever order, what they have reserved stays within the bounds of their rules."""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_lab import ADA, BOB, UIDS, Knowing, Lab, a_req, rule

from scistream.links.dialer import Dialer
from scistream.protocol.messages import CONS, PROD, UNSENT, Command, Rel, Role, UpdateTargets
from scistream.s2cs.audit.trail import MOST_IN_WINDOW, MOST_OF_IDENTITY
from scistream.s2cs.policy.authorizer import owner_of
from scistream.s2cs.settings import ServerLimits

RATE, TOTAL, CHANNELS, STREAMS, LIFE = 60.0, 100.0, 3, 2, 600.0
USERS = {"ada": ADA, "bob": BOB}
RULE = {"streams": STREAMS, "rate": "60Mbit", "total_rate": "100Mbit", "num_conn": CHANNELS, "expires": "10m"}


class Office:
    """The S2CS of a lab with a policy, its users, and what they have reserved."""

    def __init__(self, folder: Path) -> None:
        self.lab = Lab(folder)
        self.lab.has(*(rule(identity.name, name=name, **RULE) for name, identity in USERS.items()))
        self.policy = self.lab.control.authorizer.policy
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
        self.lab.control.authorizer.policy = self.policy
        world.network.listeners[world.prod.port] = Knowing(world.network.listeners[world.prod.port])
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
        for key, holding in gateway._streams.items():
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


class Crowd:
    """An S2CS without a policy whose gateway has room for hundreds of streams, and two users."""

    def __init__(self, folder: Path, **limits: int) -> None:
        self.lab = Lab(folder)
        control = self.lab.control
        control.authorizer.put_in_force(msgspec.structs.replace(control.config, limits=ServerLimits(**limits)), None)
        self._ada, self._bob = self.lab.link(ADA), self.lab.link(BOB)
        self.lab.world.network.run(1.0)

    def outcome(self, command: Command, *, bob: bool = False) -> Any:
        """Return the answer to a command, or the error that it ended in."""
        outcome: list[Any] = []
        (self._bob if bob else self._ada).ask(command, 30.0).addBoth(outcome.append)
        self.lab.world.network.until(lambda: bool(outcome), within=31.0)
        return getattr(outcome[0], "value", outcome[0])

    def close(self) -> None:
        for link in (self._ada, self._bob):
            link.stopService()
        self.lab.world.close()


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Callable[..., Crowd]]:
    made: list[Crowd] = []

    def make(**limits: int) -> Crowd:
        made.append(Crowd(tmp_path, **limits))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_without_a_rule_streams_of_an_identity_are_bounded_and_others_have_theirs(crowd: Callable[..., Crowd]) -> None:
    here = crowd(streams_per_identity=2)
    for uid in UIDS[:2]:
        assert here.outcome(a_req(uid, PROD, rate=1.0)).state == "Listening"
    assert here.outcome(a_req(UIDS[0], CONS, rate=1.0)).state == "Listening", "the other end of one that is counted"
    refused = here.outcome(a_req(UIDS[2], PROD, rate=1.0))
    assert (refused.code, refused.msg) == (
        "no-capacity",
        "you have 2 live streams here, and one identity may have 2 at once (`streams_per_identity`): release one first",
    )
    assert here.outcome(a_req(UIDS[3], PROD, rate=1.0), bob=True).state == "Listening"
    assert here.outcome(Rel(uid=UIDS[1], role=PROD, seq=UNSENT)).state == "Released"
    assert here.outcome(a_req(UIDS[4], PROD, rate=1.0)).state == "Listening"


def test_a_rule_that_says_how_many_streams_takes_the_place_of_the_limit(crowd: Callable[..., Crowd]) -> None:
    here = crowd(streams_per_identity=1)
    here.lab.has(rule(streams=2), rule(BOB.name, name="bobs"))
    for uid in UIDS[:2]:
        assert here.outcome(a_req(uid, PROD, rate=1.0)).state == "Listening"
    assert "allows at most 2 streams at once" in here.outcome(a_req(UIDS[2], PROD, rate=1.0)).msg
    assert here.outcome(a_req(UIDS[3], PROD, rate=1.0), bob=True).state == "Listening"
    assert "`streams_per_identity`" in here.outcome(a_req(UIDS[4], PROD, rate=1.0), bob=True).msg


def test_new_streams_of_an_identity_in_a_minute_are_bounded(crowd: Callable[..., Crowd]) -> None:
    here = crowd(requests_per_minute=3)
    for uid in UIDS[:3]:
        assert here.outcome(a_req(uid, PROD, rate=90_000.0)).code == "no-capacity", "what is refused counts, too"
    refused = here.outcome(a_req(UIDS[3], PROD, rate=1.0))
    assert refused.code == "no-capacity"
    assert "3 new streams were requested within a minute" in refused.msg
    assert here.outcome(a_req(UIDS[4], PROD, rate=1.0), bob=True).state == "Listening"
    here.lab.world.network.run(61.0)
    assert here.outcome(a_req(UIDS[3], PROD, rate=1.0)).state == "Listening"
    assert set(here.lab.control.authorizer._request_counts) == {owner_of(ADA)}, "minutes that have passed are forgotten"


@settings(max_examples=15)
@given(st.lists(st.tuples(steps, st.integers(1, 30)), min_size=1, max_size=8))
def test_the_audit_trail_stays_short_under_any_commands_of_a_user(
    said: list[tuple[Callable[[Office], None], int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        office = Office(Path(folder))
        began, streams = office.lab.world.network.seconds(), 2 * 4 * len(USERS)
        try:
            for step, times in said:
                for _ in range(times if step is not Office.restart else 1):
                    step(office)
            starts = 1 + sum(step is Office.restart for step, _ in said)
            windows = int((office.lab.world.network.seconds() - began) / 60.0) + 1 + starts
            trail = office.lab.control.store._path.with_suffix(".audit.jsonl").read_text().splitlines()
        finally:
            office.close()
    events = Counter(json.loads(line)["event"] for line in trail)
    assert events["refused"] <= (MOST_OF_IDENTITY + 11) * len(USERS) * windows
    assert events["targets"] <= (MOST_IN_WINDOW + 1) * streams * windows
    assert events["end"] <= events["request"]


def test_each_end_of_a_stream_counts_with_the_rate_that_it_reserves(tmp_path: Path) -> None:
    office = Office(tmp_path)
    for uid in UIDS[:4]:
        office.say("ada", a_req(uid, PROD, rate=59.0))
        office.say("ada", a_req(uid, CONS, rate=1e-6))
    office.check()
    office.close()
