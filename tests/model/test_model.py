"""The whole protocol within small bounds: every run with two faults of messages or links, or one of a party.

`make model` explores wider bounds with the same code: see run.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import msgspec
import pytest
import run
from model_explorer import Counts, Explorer, Seen, Task, Violation, WorkerDiedError, explore, story
from model_faults import CRASH, NETWORK, SOON, Bounds
from model_invariants import PROMISES
from model_mutations import MUTATIONS
from model_planted import harm_by_itself, search
from model_reading import callers_in, read
from model_stand_ins import installed
from model_world import SCENARIOS, stores

from scistream.protocol.messages import PROD, LastError, Req, UpdateTargets
from scistream.s2cs.machine_core import Core, Reservation, Update
from scistream.s2cs.record import Record
from scistream.state_machines import Caller

OTHERS = [name for name in SCENARIOS if name != "life"]

SOME_NETWORK = Bounds(1, 0, frozenset({"lose", "again late", "break"}))
SOME_CRASHES = Bounds(0, 1, frozenset({"crash"}), (SOON,))
"""In a life of a stream all faults are tried. The other scenarios differ from it in what people do and in how many
gateways there are, and are explored with the faults that find most; those with more states are left to `make model`,
which tries all faults in each."""


def check(counts: Counts) -> None:
    for violation in sorted(counts.violations, key=lambda one: one.length)[:1]:
        pytest.fail(story(violation))


@pytest.mark.long
def test_any_two_messages_may_be_lost_or_overtaken_and_any_two_links_may_break() -> None:
    check(explore(SCENARIOS["life"], Bounds(2, 0, frozenset({"lose", "last", "break"}))))


def test_anything_may_go_wrong_once_on_the_network() -> None:
    check(explore(SCENARIOS["life"], Bounds(1, 0, NETWORK)))


def test_any_party_may_crash_or_fall_silent_at_any_moment() -> None:
    check(explore(SCENARIOS["life"], Bounds(0, 1, CRASH)))


@pytest.mark.parametrize("scenario", OTHERS)
def test_messages_and_links_may_be_lost_whatever_people_do(scenario: str) -> None:
    check(explore(SCENARIOS[scenario], SOME_NETWORK))


@pytest.mark.parametrize("scenario", OTHERS)
def test_any_party_may_crash_and_come_back_whatever_people_do(scenario: str) -> None:
    check(explore(SCENARIOS[scenario], SOME_CRASHES))


@pytest.mark.long
@pytest.mark.parametrize("scenario", OTHERS)
def test_anything_may_go_wrong_once_on_the_network_whatever_people_do(scenario: str) -> None:
    check(explore(SCENARIOS[scenario], Bounds(1, 0, NETWORK)))


@pytest.mark.long
@pytest.mark.parametrize("scenario", OTHERS)
def test_any_party_may_crash_or_fall_silent_at_any_moment_whatever_people_do(scenario: str) -> None:
    check(explore(SCENARIOS[scenario], Bounds(0, 1, CRASH)))


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_fault_does_no_harm_by_itself_and_is_found_by_the_promise_that_it_breaks(name: str) -> None:
    mutation = MUTATIONS[name]
    assert harm_by_itself(mutation) == []
    broken = {violation.promise for violation in search(mutation)}
    assert mutation.breaks in broken, PROMISES[mutation.breaks]
    assert "" not in broken, "it is found by the promise that it breaks, and not because the changed code fails"


def test_a_run_is_the_same_whenever_it_is_made() -> None:
    branches = []
    with installed(), stores() as files:
        for _ in range(2):
            explorer = Explorer(SCENARIOS["life"], Bounds(1, 1), files, Seen(1 << 12))
            branches.append(explorer.run(Task(()), 1))
    assert branches[0] == branches[1]
    assert len(branches[0]) > 500


def test_a_trace_tells_each_step_each_fault_and_what_is_broken() -> None:
    told = story(Violation("life", ((9, ("lose",)),), 12, "nothing at all"))
    assert "the user asks for a stream" in told
    assert "FAULT: REQ (PROD) to producer's S2CS is lost" in told
    assert told.endswith("VIOLATION: nothing at all")


def _die_in_the_third_run() -> None:
    run, runs = Explorer.run, iter(range(3))

    def dying(self: Explorer, task: Task, number: int) -> list[Task]:
        if next(runs, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return run(self, task, number)

    Explorer.run = dying  # type: ignore[method-assign]


def test_a_worker_that_is_killed_ends_the_exploration_with_a_sentence() -> None:
    with pytest.raises(WorkerDiedError, match=r"'life' within .* is not complete: one of its 2 processes was killed"):
        explore(SCENARIOS["life"], SOME_NETWORK, prepare=_die_in_the_third_run)


def test_an_exploration_that_is_not_complete_has_an_exit_status_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "explore", partial(explore, prepare=_die_in_the_third_run))
    monkeypatch.setattr(run, "BOUNDS", [("life", SOME_NETWORK)])
    assert run.main(wide=False) == 2
    said = capsys.readouterr()
    assert "is not complete: one of its" in said.err
    assert said.out == ""


# -- what the fingerprint is made of

REQUEST = Req(uid="u", role=PROD, seq=1, num_conn=1, rate=1.0, app_key_hash="0" * 64)


class WiderRecord(Record):
    """A record with a field that it does not have today."""

    another: int = 0


@dataclass
class WiderCore(Core):
    """What the states of a machine share, with a field more."""

    another: int = 0


@dataclass
class WiderReservation(Reservation):
    """The data of a state, with a field more."""

    another: int = 0


class WiderRequest(Req, frozen=True):
    """A message with a field more."""

    another: int = 0


WIDER: list[Callable[[int], Any]] = [
    lambda another: WiderRecord(uid="u", role=PROD, owner="ada", another=another),
    lambda another: WiderCore(cast(Any, None), Record(uid="u", role=PROD, owner="ada"), another=another),
    lambda another: WiderReservation([], set(), another=another),
    lambda another: WiderRequest(**msgspec.structs.asdict(REQUEST), another=another),
]


@pytest.mark.parametrize("make", WIDER)
def test_a_field_that_is_new_is_in_the_fingerprint_without_being_listed(make: Callable[[int], Any]) -> None:
    assert read(make(1)) == read(make(1))
    assert read(make(1)) != read(make(2))


def test_numbers_of_commands_sentences_and_times_are_not_in_the_fingerprint() -> None:
    assert read(REQUEST) == read(msgspec.structs.replace(REQUEST, seq=2, rate=2.0))
    assert read(REQUEST) != read(msgspec.structs.replace(REQUEST, num_conn=2))
    assert read(LastError(code="timeout", msg="a")) == read(LastError(code="timeout", msg="b"))
    assert read(LastError(code="timeout", msg="a")) != read(LastError(code="expired", msg="a"))


def test_a_kind_of_value_that_is_not_known_is_not_left_out_silently() -> None:
    with pytest.raises(TypeError, match="it is not known what matters of a object"):
        read(WiderReservation([], {cast(Any, object())}))


def test_callers_are_found_wherever_they_are_in_the_data_of_a_state() -> None:
    one, two = Caller(cast(Any, None), 1), Caller(cast(Any, None), 2)
    command = UpdateTargets(uid="u", role=PROD, seq=1, generation=1, connection_map={}, data_conn_key="")
    update = Update([one], set(), command, is_own=True, before="Streaming", postponed=[(two, command)])
    assert list(callers_in(update)) == [one, two]
