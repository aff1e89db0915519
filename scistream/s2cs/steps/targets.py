"""What the machine of a stream at an S2CS does at UpdateTargets, and when it sets targets itself. No I/O."""

from __future__ import annotations

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, UNSENT, Error, Resp, UpdateTargets
from scistream.s2cs.machine_core import STORE_FULL, Core, Stream, Update, gateway_error, notice
from scistream.s2cs.record import Record, content_of, map_to_producer, targets_problem, update_for_gateway
from scistream.s2cs.steps.hello import spare_note, tell_of_producer
from scistream.state_machines import Caller, data_of


def consider(stream: Stream, core: Core, caller: Caller, command: UpdateTargets) -> None:
    """Check an UpdateTargets, and carry it out or refuse it."""
    record = core.record
    if _repeats_update(core, caller, command):
        return
    problem = targets_problem(record, command)
    if problem is not None:
        core.refuse(caller, *problem)
    elif not command.data_conn_key:  # without it gateways keep the credentials that they have
        core.refuse(caller, "bad-message", "field data_conn_key: is empty, but must be a bundle of certificates")
    else:
        stream._carry_out(caller, command)


def _repeats_update(core: Core, caller: Caller, command: UpdateTargets) -> bool:
    """Answer an UpdateTargets that is not newer than the one in force: protocol section 7.4.

    Return False if the command is newer, and so was not answered.
    """
    record = core.record
    if command.generation > record.generation:
        return False
    if command.generation == record.generation and content_of(command) == record.content:
        core.answer_with_state(caller, f"generation {record.generation} is in force")
    else:
        core.refuse(
            caller,
            "wrong-state",
            f"generation {command.generation} is not above {record.generation}, which is in force: send a higher one",
        )
    return True


def before_hello(stream: Stream, core: Core, caller: Caller, command: UpdateTargets) -> None:
    """Take UpdateTargets at the consumer's side, which needs no Hello. Refuse it at the producer's side."""
    if core.record.role == CONS:
        consider(stream, core, caller, command)
    else:
        core.refuse_wrong_state(caller, "UpdateTargets, until ProdApp says Hello")


def while_updating(stream: Stream, core: Core, update: Update, caller: Caller, command: UpdateTargets) -> None:
    """Take a repetition of the command that is being carried out, or postpone a command during an own update."""
    if not update.is_own and _version(command) == _version(update.command):
        update.waiting_callers.append(caller)
        core.answer_with_state(caller, f"generation {command.generation} is being carried out")
    elif update.is_own and all(_version(command) == _version(earlier) for _, earlier in update.postponed):
        earlier = update.postponed[0][1] if update.postponed else command
        update.postponed.append((caller, earlier))
        waiting = ", ".join(sorted(update.pending_gateways))
        msg = f"generation {command.generation} will be carried out as soon as {waiting} has answered"
        core.answer_with_state(caller, msg)
    else:
        current = update.command.generation
        core.refuse_wrong_state(caller, f"generation {command.generation} while {current} is being carried out")


def _version(command: UpdateTargets) -> tuple[int, str]:
    return command.generation, content_of(command)


def refuse(stream: Stream, core: Core, caller: Caller, command: UpdateTargets) -> None:
    """Refuse UpdateTargets in a state in which there can be no targets."""
    core.refuse_wrong_state(caller, "UpdateTargets")


def carry_out(stream: Stream, core: Core, caller: Caller | None, command: UpdateTargets) -> None:
    """Send each gateway its part of the new targets."""
    record, update = core.record, data_of(stream, Update)
    assert update is not None
    core.has_moved = False
    record.is_own_update = update.is_own
    if update.is_own:
        record.own_updates += 1  # written before it is sent, so that no number is used twice
    if not core.save():
        _GO_BACK[update.before](stream)
        return
    revision = command.generation + record.own_updates
    core.ask_all((gateway, update_for_gateway(record, gateway, command, revision)) for gateway in record.plan)


def follow_producer(stream: Stream, core: Core, problem: StreamError | None = None) -> None:
    """Make an own update to the current listeners of ProdApp, or tell ProdApp why that is not possible."""
    record = core.record
    if not core.has_moved:
        return
    if problem is not None:
        core.has_moved = False
        core.effects.tell_application(_still_leads(record, problem.msg))
        return
    targets = map_to_producer(record)
    stream._carry_out(None, _own_update(record, targets))


def _own_update(record: Record, targets: dict[str, str]) -> UpdateTargets:
    return UpdateTargets(
        uid=record.uid,
        role=record.role,
        seq=UNSENT,
        generation=record.generation,
        connection_map=targets,
        data_conn_key="",
        wan_dialer=record.wan_dialer,
        wan_targets=record.wan_targets or None,
    )


def gateway_armed(stream: Stream, core: Core, update: Update, gateway: str, answer: Resp) -> None:
    """Note that a gateway has armed its channels, and where it listens for the producer's gateways if they dial."""
    if gateway in update.pending_gateways and core.record.role == CONS and update.command.wan_dialer == PROD:
        channels = core.record.plan[gateway]
        listeners = answer.wan_listeners or []
        if len(listeners) != len(channels):
            msg = f"{len(listeners)} addresses for gateways of the producer, for {len(channels)} channels"
            stream._fail(StreamError("gateway-failed", f"gateway {gateway} reports {msg}: tell its operator"))
            return
        core.record.wan_listeners.update(zip(channels, listeners, strict=True))
    _update_answered(stream, core, update, gateway)


def gateway_refused(stream: Stream, core: Core, update: Update, gateway: str, error: StreamError) -> None:
    """Note that a gateway has refused the targets. Any other error ends the stream."""
    if gateway not in update.pending_gateways:
        return
    update.refusals[gateway] = error
    if error.code in ("target-refused", "bad-message"):
        _update_answered(stream, core, update, gateway)
    else:
        stream._fail(gateway_error(gateway, error))


def _update_answered(stream: Stream, core: Core, update: Update, gateway: str) -> None:
    update.pending_gateways.discard(gateway)
    if update.pending_gateways:
        return
    if not update.refusals:
        stream._armed()
    elif len(update.refusals) == len(core.record.plan) or update.put_back:
        _GO_BACK[update.before](stream)
    elif update.is_own:
        _put_back(core, update)
    else:
        stream._fail(gateway_error(*next(iter(update.refusals.items()))))


def _put_back(core: Core, update: Update) -> None:
    """Send the old targets to the gateways that have accepted the new ones, because others have refused them."""
    record = core.record
    update.put_back = record.plan.keys() - update.refusals.keys()
    update.pending_gateways = set(update.put_back)
    record.own_updates += 1
    core.save()
    update.command = _own_update(record, record.connection_map)
    for gateway in sorted(update.put_back):
        core.effects.ask(gateway, update_for_gateway(record, gateway, update.command, record.revision))


_GO_BACK = {
    "Listening": lambda stream: stream._back_to_listening(),
    "Ready": lambda stream: stream._back_to_ready(),
    "Streaming": lambda stream: stream._back_to_streaming(),
}


def start_streaming(stream: Stream, core: Core, update: Update) -> None:
    """Put the new targets in force, and answer everyone who waits for them."""
    record, command = core.record, update.command
    record.is_own_update = False
    if not update.is_own:
        record.generation, record.content = _version(command)
    if command.expires is not None:
        core.effects.shorten_life(record, command.expires)
    record.connection_map = dict(command.connection_map)
    record.wan_dialer, record.wan_targets = command.wan_dialer, dict(command.wan_targets or {})
    if not core.save() and not update.is_own:  # after an own update, the store already has what a restart needs
        error = StreamError("no-capacity", f"{STORE_FULL}, so it cannot keep this stream: tell its operator")
        stream._fail(error, update.all_callers)
        return
    for caller in update.waiting_callers:
        core.answer_with_state(caller, f"generation {record.generation} is in force{spare_note(record)}")
    _answer_hello_during_update(core)
    _carry_out_postponed(stream, update)


def _answer_hello_during_update(core: Core) -> None:
    """Send what a Hello that came during the update asks for: StartConn or ProdLstn."""
    record = core.record
    if record.role == CONS and record.greeted and record.state == "Streaming":
        core.tell_consumer_to_connect()
    elif record.role == PROD:
        tell_of_producer(core)


def _carry_out_postponed(stream: Stream, update: Update) -> None:
    """Handle the commands that came during an own update."""
    for caller, command in update.postponed:
        stream.update_targets(caller, command)


def go_back(stream: Stream, core: Core, update: Update) -> None:
    """Keep the old targets, and tell everyone who waits for the new ones why."""
    core.record.is_own_update = bool(update.put_back & update.refusals.keys())
    core.save()
    reason = _why_not_updated(update)
    for caller in update.waiting_callers:
        core.refuse(caller, reason.code, reason.msg)
    if update.is_own:
        core.effects.tell_application(_still_leads(core.record, reason.msg))
    elif core.record.role == PROD and reason.code == "target-refused":
        core.effects.tell_application(notice(core.record, reason))  # ProdApp can listen elsewhere
    if not update.is_own and leads_elsewhere(core.record):
        core.has_moved = True
    _answer_hello_during_update(core)
    _carry_out_postponed(stream, update)
    if core.state == "Listening" and core.record.greeted:
        stream._hello_counts(None)
    if update.hello_is_overdue:
        stream.hello_timeout()


def _still_leads(record: Record, why: str) -> Error:
    """Return the message to ProdApp that its new listeners are not used.

    The code is `target-refused`, which is never used for the end of a stream, so ProdApp knows that the stream goes on.
    """
    targets = ", ".join(sorted(set(record.connection_map.values())))
    msg = (
        f"new connections still go to {targets[:1000]}, not to the listeners of ProdApp: {why[:500]}. The user who "
        f"requested the stream can set its targets with `s2uc attach {record.uid}`"
    )
    return notice(record, StreamError("target-refused", msg))


def _why_not_updated(update: Update) -> StreamError:
    for gateway, error in update.refusals.items():
        reason = gateway_error(gateway, error)
        return StreamError("bad-message", reason.msg) if error.code == "bad-message" else reason
    return StreamError("no-capacity", f"{STORE_FULL}, so the old targets stay in force: tell its operator")


def leads_elsewhere(record: Record) -> bool:
    """Return True if a channel leads to an address on which ProdApp no longer listens."""
    return record.role == PROD and not set(record.connection_map.values()) <= set(record.app_listeners)
