"""What the machine of a stream at an S2CS does when the stream is released or fails. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import UNSENT, LastError, Rel
from scistream.s2cs.machine_core import Core, Operation, Release, Stream, notice
from scistream.state_machines import Caller


def release_all(stream: Stream, core: Core) -> None:
    """Ask all gateways to release the stream."""
    record = core.record
    core.effects.stop_timers()
    core.save()
    core.ask_all((gateway, Rel(uid=record.uid, role=record.role, seq=UNSENT)) for gateway in record.plan)
    if not record.plan:
        stream._released()


def rel(stream: Stream, core: Core, caller: Caller) -> None:
    """Release the stream for its owner or an administrator."""
    _released_by_owner(stream, core, [])


def rel_during_operation(stream: Stream, core: Core, operation: Operation, caller: Caller) -> None:
    """Release the stream, and refuse the commands that are being carried out."""
    _released_by_owner(stream, core, operation.all_callers)


def _released_by_owner(stream: Stream, core: Core, waiting_callers: list[Caller]) -> None:
    release_all(stream, core)
    for other in waiting_callers:
        core.refuse(other, "wrong-state", "the stream was released before this command was carried out")
    by_administrator = core.record.last_error
    msg = by_administrator.msg if by_administrator is not None else "the stream was released by its owner"
    core.effects.tell_application(notice(core.record, StreamError("released", msg)))


def failed(stream: Stream, core: Core, error: StreamError, callers: Sequence[Caller] = ()) -> None:
    """Release the stream because of an error, and tell the callers or else the owner, and the application."""
    record, code, msg = core.record, error.code, error.msg
    record.last_error = LastError(code=code, msg=msg[:2000])
    release_all(stream, core)
    for caller in callers:
        core.refuse(caller, code, msg)
    if not callers:
        core.effects.tell_owner(notice(record, error))
    # For an application, `target-refused` means that its stream goes on.
    end = StreamError("gateway-failed", msg) if code == "target-refused" else error
    core.effects.tell_application(notice(record, end))


def failed_during_operation(
    stream: Stream, core: Core, operation: Operation, error: StreamError, callers: Sequence[Caller] = ()
) -> None:
    """Release the stream because of an error, with which the commands being carried out are refused."""
    failed(stream, core, error, [*operation.all_callers, *callers])


def expired(stream: Stream, core: Core) -> None:
    """End the stream, because its life is over."""
    stream._fail(StreamError("expired", "the time of this stream is over"))


def forbidden(stream: Stream, core: Core, why: str) -> None:
    """End the stream, because the policy no longer allows it."""
    stream._fail(StreamError("not-authorized", why))


def fault(stream: Stream, core: Core, error: StreamError) -> None:
    """End the stream with this error."""
    stream._fail(error)


def gateway_lost(stream: Stream, core: Core, gateway: str, why: str) -> None:
    """End the stream, if the gateway that has lost its reservation is one of its own."""
    if gateway in core.record.plan:
        stream._fail(StreamError("gateway-failed", f"gateway {gateway}: {why}"))


def rel_again(stream: Stream, core: Core, release: Release, caller: Caller) -> None:
    """Let another caller of REL wait for the release."""
    release.waiting_callers.append(caller)
    waiting = ", ".join(sorted(release.pending_gateways))
    core.resp(caller, f"waiting for {waiting} to confirm")


def gateway_released(stream: Stream, core: Core, release: Release, gateway: str) -> None:
    """Note that a gateway has released the stream."""
    release.pending_gateways.discard(gateway)
    if not release.pending_gateways:
        stream._released()


def gateway_lost_while_releasing(stream: Stream, core: Core, release: Release, gateway: str, why: str) -> None:
    """Note that a gateway has nothing of the stream any more."""
    gateway_released(stream, core, release, gateway)


def released(stream: Stream, core: Core, release: Release) -> None:
    """Write that the stream is released, and answer the callers of REL."""
    core.save()
    if core.unwritten:
        core.effects.forget(core.record)
    for caller in release.waiting_callers:
        core.resp(caller, _GONE)


_GONE = "the stream is released"


def rel_when_released(stream: Stream, core: Core, caller: Caller) -> None:
    """Answer REL for a stream that is released."""
    core.resp(caller, _GONE)


def rel_when_idle(stream: Stream, core: Core, caller: Caller) -> None:
    """Refuse REL for a stream without a request."""
    core.refuse(caller, "unknown-uid", f"no stream {core.record.uid} was ever requested here")
