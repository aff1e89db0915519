"""The machine of one stream at an S2CS. It does no I/O: its `Effects` carry out what it decides.

======================================= ====================================== =============
state                                   input                                  next
======================================= ====================================== =============
Idle                                    REQ                                    Reserving
Reserving                               last RESP                              Listening
Reserving                               ERROR, give-up                         Releasing
Reserving, Updating                     Hello                                  same
Listening                               Hello                                  Ready
Listening, Ready                        Hello timer                            Releasing
Ready, Streaming                        Hello, Extend                          same
Listening                               Extend                                 same
Ready, Streaming, Listening (CONS)      UpdateTargets                          Updating
Streaming (PROD)                        targets overdue                        Updating
Updating                                last RESP                              Streaming
Updating                                target-refused by all                  as before it
Updating                                bad-message by all                     as before it
Updating                                other ERROR, give-up                   Releasing
Reserving, Listening, Ready, Updating,  REL, expires, S2DS failed, policy      Releasing
Streaming
Reserving, Listening, Ready, Updating,  fault                                  Releasing
Streaming
Releasing                               last RESP, unknown-uid or new boot     Released
Releasing, Released                     REL                                    same
any                                     any other command                      same
======================================= ====================================== =============

In Ready, Streaming and Released no operation is in progress.

Targets are overdue when ProdApp has said Hello with other listeners and the owner's client has not sent UpdateTargets
for them in time. The machine then sets the targets of its own side, under the credentials that are in force. An
UpdateTargets that arrives meanwhile is postponed until that is done.

If the store cannot be written, a REQ fails and leaves nothing behind, and a Hello or an UpdateTargets is refused and
changes nothing. A release continues.
"""

from __future__ import annotations

from automat import TypeMachineBuilder

from scistream.protocol.errors import StreamError
from scistream.s2cs.machine_core import (
    Core,
    Release,
    Reservation,
    Stream,
    begin_release,
    begin_reservation,
    begin_update,
)
from scistream.s2cs.steps import extend, hello, release, request, targets
from scistream.state_machines import SAME, begin_in, build, on

# -- the states and the table

_builder = TypeMachineBuilder(Stream, Core)

Idle = _builder.state("Idle")
Reserving = _builder.state("Reserving", begin_reservation)
Listening = _builder.state("Listening")
Ready = _builder.state("Ready")
Updating = _builder.state("Updating", begin_update)
Streaming = _builder.state("Streaming")
Releasing = _builder.state("Releasing", begin_release)
Released = _builder.state("Released")

STATES = (Idle, Reserving, Listening, Ready, Updating, Streaming, Releasing, Released)
LIVE = (Reserving, Listening, Ready, Updating, Streaming)

_machine = build(
    _builder,
    STATES,
    [
        # REQ
        on(Idle, Stream.req, Reserving, request.begin),
        on(Reserving, Stream.req, SAME, request.repeat_while_reserving),
        on((Listening, Ready, Updating, Streaming), Stream.req, SAME, request.repeat),
        on((Releasing, Released), Stream.req, SAME, request.refuse),
        on(Reserving, Stream.gateway_answered, SAME, request.gateway_reserved),
        on(Reserving, Stream.gateway_refused, SAME, request.gateway_refused),
        on(Reserving, Stream._reserved, Listening, request.listen),
        # Hello
        on(Reserving, Stream.hello, SAME, hello.while_reserving),
        on(Updating, Stream.hello, SAME, hello.while_updating),
        on(Listening, Stream.hello, SAME, hello.first),
        on(Listening, Stream._hello_counts, Ready, hello.become_ready),
        on(Ready, Stream.hello, SAME, hello.when_ready),
        on(Streaming, Stream.hello, SAME, hello.when_streaming),
        on((Idle, Releasing, Released), Stream.hello, SAME, hello.refuse),
        on((Listening, Ready), Stream.hello_timeout, SAME, hello.timed_out),
        on(Reserving, Stream.hello_timeout, SAME, hello.timed_out_while_reserving),
        on(Updating, Stream.hello_timeout, SAME, hello.timed_out_while_updating),
        # UpdateTargets
        on((Ready, Streaming), Stream.update_targets, SAME, targets.consider),
        on(Listening, Stream.update_targets, SAME, targets.before_hello),
        on(Updating, Stream.update_targets, SAME, targets.while_updating),
        on((Idle, Reserving, Releasing, Released), Stream.update_targets, SAME, targets.refuse),
        on((Listening, Ready, Streaming), Stream._carry_out, Updating, targets.carry_out),
        on(Streaming, Stream.targets_overdue, SAME, targets.follow_producer),
        on(Updating, Stream.gateway_answered, SAME, targets.gateway_armed),
        on(Updating, Stream.gateway_refused, SAME, targets.gateway_refused),
        on(Updating, Stream._armed, Streaming, targets.start_streaming),
        on(Updating, Stream._back_to_listening, Listening, targets.go_back),
        on(Updating, Stream._back_to_ready, Ready, targets.go_back),
        on(Updating, Stream._back_to_streaming, Streaming, targets.go_back),
        # Extend
        on((Listening, Ready, Streaming), Stream.extend, SAME, extend.ask_gateways),
        on((Idle, Reserving, Updating, Releasing, Released), Stream.extend, SAME, extend.refuse),
        on(LIVE, Stream.extended, SAME, extend.extended),
        on((Idle, Releasing, Released), Stream.extended, SAME, extend.extended_too_late),
        # release and failure
        on((Listening, Ready, Streaming), Stream.rel, Releasing, release.rel),
        on(Reserving, Stream.rel, Releasing, release.rel_during_operation),
        on(Updating, Stream.rel, Releasing, release.rel_during_operation),
        on((Listening, Ready, Streaming), Stream._fail, Releasing, release.failed),
        on(Reserving, Stream._fail, Releasing, release.failed_during_operation),
        on(Updating, Stream._fail, Releasing, release.failed_during_operation),
        on(LIVE, Stream.expired, SAME, release.expired),
        on(LIVE, Stream.forbidden, SAME, release.forbidden),
        on(LIVE, Stream.fault, SAME, release.fault),
        on(LIVE, Stream.gateway_lost, SAME, release.gateway_lost),
        on(Releasing, Stream.gateway_released, SAME, release.gateway_released),
        on(Releasing, Stream.gateway_lost, SAME, release.gateway_lost_while_releasing),
        on(Releasing, Stream._released, Released, release.released),
        on(Idle, Stream.rel, SAME, release.rel_when_idle),
        on(Releasing, Stream.rel, SAME, release.rel_again),
        on(Released, Stream.rel, SAME, release.rel_when_released),
    ],
    ignore_elsewhere=(
        Stream.gateway_answered,
        Stream.gateway_refused,
        Stream.gateway_released,
        Stream.gateway_lost,
        Stream.expired,
        Stream.forbidden,
        Stream.fault,
        Stream.hello_timeout,
        Stream.targets_overdue,
        Stream._reserved,
        Stream._hello_counts,
        Stream._carry_out,
        Stream._armed,
        Stream._back_to_listening,
        Stream._back_to_ready,
        Stream._back_to_streaming,
        Stream._fail,
        Stream._released,
    ),
)


def new_stream(core: Core) -> Stream:
    """Make the machine of a new stream, which has no request yet."""
    return _machine(core)


def restored_stream(core: Core) -> Stream:
    """Make the machine of a stream that was read from the store after a restart.

    If an operation was in progress, its result is not known. The machine then begins in Reserving, and `resume`
    releases the stream. Only an own update of targets can be repeated instead.
    """
    record = core.record
    if record.state == "Updating" and record.is_own_update:
        return begin_in(_machine, core, Streaming)
    for state in (Listening, Ready, Streaming, Released):
        if state.name == record.state:
            return begin_in(_machine, core, state)
    if record.state == "Releasing":
        return begin_in(_machine, core, Releasing, Release([], set(record.plan)))
    return begin_in(_machine, core, Reserving, Reservation([], set()))


def resume(stream: Stream, core: Core) -> None:
    """Go on with a stream after a restart: start its timers, or release it if an operation was in progress."""
    record = core.record
    if record.state in ("Listening", "Ready", "Streaming"):
        core.listeners_told = list(record.app_listeners)
        core.effects.start_timers(record)
        if record.greeted:
            stream._hello_counts(None)
        if record.is_own_update or targets.leads_elsewhere(record):
            core.has_moved = True
            core.effects.await_targets()
    elif record.state == "Releasing":
        release.release_all(stream, core)
    elif record.state != "Released":
        msg = "the S2CS was restarted during an operation on this stream: request a new stream"
        stream._fail(StreamError("gateway-failed", msg))
