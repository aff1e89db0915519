"""A ProdApp that does not listen yet: who waits for it, how long, and how often it is tried."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from scistream.s2ds.relay.prod_app_start import ProdAppStart

AGAIN, PATIENCE = 0.1, 10.0


class Program:
    """What connections dial, and how often."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.start = ProdAppStart()
        self.listens = False
        self.dials = 0
        self.ends: list[str] = []

    def connect(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._connect()).addErrback(lambda failure: failure.trap(CancelledError) and None)

    async def _connect(self) -> None:
        while True:
            self.dials += 1
            if self.listens:
                self.start.finish()
                self.ends.append("joined")
                return
            if not await self.start.wait(self.clock, AGAIN, PATIENCE):
                self.ends.append("refused")
                return


@given(st.integers(1, 300))
def test_all_waiting_connections_are_refused_together_after_few_attempts_and_later_ones_at_once(many: int) -> None:
    program = Program()
    for _ in range(many):
        program.connect()
    program.clock.pump([AGAIN] * round(PATIENCE / AGAIN))
    assert program.ends == ["refused"] * many
    assert program.dials <= many + PATIENCE / AGAIN
    program.connect()
    assert program.ends == ["refused"] * (many + 1)
    assert program.clock.getDelayedCalls() == []


@given(st.integers(1, 300), st.integers(1, 99))
def test_all_waiting_connections_are_joined_when_one_gets_in(many: int, tries: int) -> None:
    program = Program()
    for _ in range(many):
        program.connect()
    program.clock.pump([AGAIN] * (tries - 1))
    program.listens = True
    program.clock.pump([AGAIN] * 2)
    assert program.ends == ["joined"] * many
    assert program.clock.getDelayedCalls() == []


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_a_connection_that_ends_takes_no_other_connection_s_turn(leave: list[bool]) -> None:
    program = Program()
    waits = [program.connect() for _ in leave]
    for one, leaves in zip(waits, leave, strict=True):
        if leaves:
            one.cancel()
    program.clock.pump([AGAIN])
    program.listens = True
    program.clock.pump([AGAIN] * 2)
    assert program.ends == ["joined"] * leave.count(False)
    assert program.clock.getDelayedCalls() == []
