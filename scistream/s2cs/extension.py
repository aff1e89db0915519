"""Change the end of a stream on its gateways: on all of them, or on none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from scistream import timing
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import MAX_LIFE, UNSENT, Error, Extend, Resp
from scistream.s2cs.gateway import GatewayLink
from scistream.s2cs.machine_core import Stream, gateway_error
from scistream.s2cs.record import Record
from scistream.state_machines import Caller


class ExtendedStream(Protocol):
    """The stream, as far as its extension is concerned. `ServerStream` implements it."""

    record: Record
    machine: Stream

    def answer(self, caller: Caller, message: Resp | Error) -> None:
        """Answer a command."""

    def seconds_left(self) -> float:
        """Return the seconds until the stream ends."""


@dataclass
class _Round:
    """One extension that is being carried out."""

    seconds: float
    callers: list[Caller]
    pending: set[str]
    accepted: set[str] = field(default_factory=set)
    refusals: dict[str, StreamError] = field(default_factory=dict)


class Extender:
    """Asks the gateways of one stream to end it at another time.

    :param gateways: returns the pool, by name.
    :param store: the name of the store of this S2CS.
    """

    _log = Logger()

    def __init__(self, stream: ExtendedStream, gateways: Callable[[], Mapping[str, GatewayLink]], store: str) -> None:
        self._stream = stream
        self._gateways = gateways
        self._store = store
        self._round: _Round | None = None

    def begin(self, caller: Caller, seconds: float) -> None:
        """Ask all gateways, and give the machine `extended` when all have accepted. Otherwise answer with the reason.

        A repetition of the command that is being carried out gets its answer.
        """
        if self._round is not None:
            if self._round.seconds == seconds:
                self._round.callers.append(caller)
            else:
                self._refuse(caller, StreamError("wrong-state", "another extension is in progress: repeat this later"))
            return
        plan = self._stream.record.plan
        self._round = _Round(seconds, [caller], set(plan))
        for gateway in list(plan):
            self._ask(gateway, seconds).addCallbacks(
                lambda _, gateway=gateway: self._answered(gateway, None),
                lambda failure, gateway=gateway: self._answered(gateway, _reason(failure)),
            )

    def take_back(self, seconds: float) -> None:
        """Let the gateways that have accepted the last extension end the stream in `seconds` from now after all."""
        for gateway in self._stream.record.plan:
            self._ask(gateway, seconds).addErrback(self._not_taken_back, gateway)

    def _ask(self, gateway: str, seconds: float) -> Deferred[Resp]:
        """Send Extend to a gateway, which gets a little longer, so that the S2CS is the first to end the stream."""
        record, link = self._stream.record, self._gateways().get(gateway)
        if link is None:
            missing = StreamError("gateway-failed", "it is not in the configuration of this facility")
            return _failed(missing)
        expires = min(MAX_LIFE, seconds + timing.SHORTENED_LATER)
        command = Extend(uid=record.uid, role=record.role, seq=UNSENT, expires=expires, store=self._store)
        return link.dialer.ask(command, timing.GATEWAY_ANSWER)

    def _answered(self, gateway: str, refusal: StreamError | None) -> None:
        current = self._round
        assert current is not None
        current.pending.discard(gateway)
        if refusal is None:
            current.accepted.add(gateway)
        else:
            current.refusals[gateway] = refusal
        if current.pending:
            return
        self._round = None
        if not current.refusals:
            self._stream.machine.extended(current.callers, current.seconds)
            return
        for one in current.accepted:
            self._ask(one, self._stream.seconds_left()).addErrback(self._not_taken_back, one)
        reason = gateway_error(*next(iter(current.refusals.items())))
        for caller in current.callers:
            self._refuse(caller, reason)

    def _refuse(self, caller: Caller, error: StreamError) -> None:
        uid = self._stream.record.uid
        self._stream.answer(caller, Error(uid=uid, seq=caller.seq, code=error.code, msg=error.msg))

    def _not_taken_back(self, failure: Failure, gateway: str) -> None:
        failure.trap(StreamError, CancelledError)
        self._log.warn(
            "uid={uid} gateway {gateway} has not confirmed that an extension was taken back ({reason}): if this S2CS "
            "cannot release the stream, the gateway keeps it until the later end",
            uid=self._stream.record.uid,
            gateway=gateway,
            reason=_reason(failure).msg,
        )


def _failed(error: StreamError) -> Deferred[Resp]:
    deferred: Deferred[Resp] = Deferred()
    deferred.errback(Failure(error))
    return deferred


def _reason(failure: Failure) -> StreamError:
    """Return why a gateway has not accepted Extend."""
    failure.trap(StreamError, CancelledError)
    error = failure.value
    if not isinstance(error, StreamError):
        return StreamError("gateway-failed", "the command was cancelled")
    if error.code == "bad-message":
        return StreamError("gateway-failed", "it runs an older version of SciStream, which cannot extend a stream")
    return error
