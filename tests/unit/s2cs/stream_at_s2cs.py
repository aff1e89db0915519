"""The machine of a stream at an S2CS without an S2CS, with effects that record their calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, Error, Extend, ProdLstn, Req, Resp, Role, StartConn, UpdateTargets
from scistream.s2cs import machine as s2cs
from scistream.s2cs.machine import new_stream
from scistream.s2cs.machine_core import Core, Effects
from scistream.s2cs.record import Record
from scistream.state_machines import Caller
from support import machine_rig

ROLES = pytest.mark.parametrize("role", [PROD, CONS])
STATES = [state.name for state in s2cs.STATES]
LIVE = [state.name for state in s2cs.LIVE]
UID = "12345678-1234-4234-8234-123456789abc"
APP = ["10.0.0.9:7000"]
OTHER_APP = ["10.0.0.9:7001"]
NO_PORTS = StreamError("no-ports", "0 ports are free")
REFUSED = StreamError("target-refused", "outside app_networks")
BAD_KEY = StreamError("bad-message", "data_conn_key: it is not a bundle")
SILENT = StreamError("timeout", "dtn1 did not answer in 20 s")


class Recorder(machine_rig.Recorder):
    """Effects that record their calls, and check that no message is sent before the record is written.

    :param full: whether the store is full at the write of this number, from 1.
    """

    def __init__(self, record: Record, full: Callable[[int], bool]) -> None:
        super().__init__(Effects)
        self.record = record
        self.full = full
        self.saves = 0
        self.stored: Any = None
        self.was_full = False
        self.has_owner = True

    def save(self, record: Record) -> bool:
        self.saves += 1
        if self.full(self.saves):
            self.was_full = True
            self.calls.append(("not saved", record.state))
            return False
        self.stored = told_by(record)
        self.calls.append(("saved", record.state))
        return True

    def forget(self, record: Record) -> None:
        self.calls.append(("forget",))

    def answer(self, caller: Caller, message: Resp | Error) -> None:
        self._check_that_it_is_stored()
        super().answer(caller, message)

    def tell_owner(self, message: ProdLstn | Error) -> None:
        self._check_that_it_is_stored()
        self.calls.append(("tell owner", message))

    def tell_application(self, message: StartConn | Error) -> None:
        self._check_that_it_is_stored()
        self.calls.append(("tell application", message))

    def start_timers(self, record: Record) -> None:
        self.calls.append(("start timers",))

    def shorten_life(self, record: Record, seconds: float) -> None:
        self.calls.append(("shorten life", seconds))

    def set_life(self, record: Record, seconds: float) -> float:
        self.calls.append(("set life", seconds))
        left, record.life = record.life, seconds
        return left

    def has_owner_link(self) -> bool:
        return self.has_owner

    def _check_that_it_is_stored(self) -> None:
        assert self.was_full or self.stored in (None, told_by(self.record)), "it was told before it was stored"


def told_by(record: Record) -> Any:
    """Return the fields of a record that messages reveal."""
    return msgspec.to_builtins(
        [
            record.state,
            record.greeted,
            record.app_listeners,
            record.generation,
            record.connection_map,
            record.last_error,
        ]
    )


class Rig(machine_rig.CommandedRig):
    """One stream at an S2CS, with its gateways and two callers: its owner, and an application."""

    def __init__(
        self, role: Role = PROD, gateways: int = 1, full: Callable[[int], bool] = lambda _count: False
    ) -> None:
        self.role = role
        self.gateways = [f"dtn{number}" for number in range(1, gateways + 1)]
        self.plan = {name: [2 * at, 2 * at + 1] for at, name in enumerate(self.gateways)}
        self.record = Record(uid=UID, role=role, owner="ada", life=600.0)
        effects: Any = Recorder(self.record, full)
        self.core = Core(effects, self.record)
        super().__init__(new_stream(self.core), effects, self.record)

    # -- what comes in

    def req(self, owner: str = "ada", **changes: Any) -> int:
        caller = self.caller()
        fields: dict[str, Any] = {"num_conn": 2 * len(self.gateways), "rate": 100.0, "app_key_hash": "0" * 64}
        request = Req(uid=UID, role=self.role, seq=caller.seq, **{**fields, **changes})
        self.machine.req(caller, request, owner, self.plan)
        return caller.seq

    def hello(self, listeners: list[str] | None = None) -> int:
        caller = self.caller()
        default = APP if self.role == PROD else []
        self.machine.hello(caller, default if listeners is None else listeners)
        return caller.seq

    def command(self, generation: int | None = None, key: str = "pem", **changes: Any) -> UpdateTargets:
        targets = self.record.app_listeners or APP if self.role == PROD else ["192.0.2.1:5100"]
        fields = {
            "connection_map": dict.fromkeys(self.record.listeners.values(), targets[0]) or {"a:1": "b:1"},
            **changes,
        }
        number = self.record.generation + 1 if generation is None else generation
        return UpdateTargets(uid=UID, role=self.role, seq=1, generation=number, data_conn_key=key, **fields)

    def extend(self, seconds: float = 1200.0) -> int:
        caller = self.caller()
        self.machine.extend(caller, Extend(uid=UID, role=self.role, seq=caller.seq, expires=seconds))
        return caller.seq

    def extended(self, seconds: float = 1200.0) -> int:
        """Let all gateways accept an extension."""
        caller = self.caller()
        self.machine.extended([caller], seconds)
        return caller.seq

    def answers(self, *gateways: str, boot: str = "b" * 32, count: int | None = None) -> None:
        """Let these gateways answer ReqListeners or UpdateTargets; all of them if none is named."""
        for name in gateways or self.gateways:
            channels = self.plan[name][:count]
            listeners = [f"{name}.example:{5100 + channel}" for channel in channels]
            answer = Resp(uid=UID, seq=1, state="", msg="", listeners=listeners, csr=f"<{name}>", boot=boot)
            self.machine.gateway_answered(name, answer)

    def refuses(self, error: StreamError, *gateways: str) -> None:
        for name in gateways or self.gateways:
            self.machine.gateway_refused(name, error)

    def confirm(self, *gateways: str) -> None:
        """Let these gateways answer REL; all of them if none is named."""
        for name in gateways or self.gateways:
            self.machine.gateway_released(name)

    # -- where it is

    def to(self, state: str, before_update: str = "") -> Rig:
        """Bring the machine to a state by the inputs that lead there."""
        if state == "Idle":
            return self
        self.req()
        if state in ("Releasing", "Released"):
            self.answers()
            self.rel()
            if state == "Released":
                self.confirm()
        elif state != "Reserving":
            self.answers()
            if before_update != "Listening" and state != "Listening":
                self.hello()
            if state in ("Updating", "Streaming") or before_update == "Streaming":
                self.update()
            if state == "Streaming" or before_update == "Streaming":
                self.answers()
            if (state, before_update) == ("Updating", "Streaming"):
                self.update()
        assert self.state == state
        self.news()
        return self

    def snapshot(self) -> Any:
        return msgspec.to_builtins(self.record)


def asked(news: list[tuple[Any, ...]], kind: type[Any] = object) -> dict[str, Any]:
    return {call[1]: call[2] for call in news if call[0] == "ask" and isinstance(call[2], kind)}


def answers(news: list[tuple[Any, ...]]) -> list[Any]:
    return [call[1] for call in news if call[0] == "answer"]


def told_owner(news: list[tuple[Any, ...]]) -> list[Any]:
    return [call[1] for call in news if call[0] == "tell owner"]


def told_application(news: list[tuple[Any, ...]]) -> list[Any]:
    return [call[1] for call in news if call[0] == "tell application"]


def answered(news: list[tuple[Any, ...]], seq: int) -> Any:
    [message] = [message for message in answers(news) if message.seq == seq]
    return message


def answered_after(rig: Rig, seq: int) -> Any:
    return answered(rig.news(), seq)
