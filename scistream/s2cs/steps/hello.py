"""What the machine of a stream at an S2CS does at a Hello, and when none comes in time. No I/O."""

from __future__ import annotations

from msgspec import structs

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD
from scistream.s2cs.machine_core import STORE_FULL, Core, Reservation, Stream, Update
from scistream.s2cs.record import Record, spare_listeners
from scistream.state_machines import Caller


def _remember_hello(core: Core, caller: Caller, listeners: list[str], leads_to: str | None = None) -> bool:
    """Note a Hello in the record. Return False if the record could not be written, so that the Hello was refused.

    :param leads_to: the state that is entered next, which is written together with the Hello.
    """
    record = core.record
    known = (record.greeted, record.app_listeners, record.other_addresses)
    record.greeted, record.app_listeners, record.other_addresses = True, list(listeners), dict(core.other_addresses)
    is_new = leads_to is not None or known != (True, record.app_listeners, record.other_addresses)
    if is_new and not core.effects.save(structs.replace(record, state=leads_to or record.state)):
        record.greeted, record.app_listeners, record.other_addresses = known
        msg = f"{STORE_FULL}, so this Hello was not recorded: tell its operator, and try again"
        core.refuse(caller, "no-capacity", msg)
        return False
    if record.role == PROD and (listeners != known[1] or _as_sets(record.other_addresses) != _as_sets(known[2])):
        core.has_moved = True
    return True


def _as_sets(addresses: dict[str, list[str]]) -> dict[str, set[str]]:
    return {listener: set(others) for listener, others in addresses.items()}


def _welcome(core: Core, caller: Caller, *, is_updated: bool = False) -> None:
    """Answer a Hello that was noted.

    :param is_updated: the stream already has targets, which are being replaced.
    """
    record = core.record
    if record.state != "Streaming" and not is_updated:
        msg = "welcome"  # an application controller shows its user only what follows this word
        if record.state == "Ready" and record.role == PROD and not core.effects.has_owner_link():
            msg += (
                "; the stream is not complete yet: the user who requested it has to join both sides with "
                f"`s2uc attach {record.uid}`"
            )
    elif core.has_moved or (is_updated and record.role == PROD):
        msg = "welcome; new connections will go to these listeners as soon as the gateways have the new targets"
    else:
        msg = "welcome"
    core.resp(caller, msg + spare_note(record))


def spare_note(record: Record) -> str:
    """Return the part of an answer that names listeners of ProdApp to which no channel leads, or ""."""
    spare = spare_listeners(record)
    if not spare or record.request is None:
        return ""
    count = record.request.num_conn
    channels = "1 channel" if count == 1 else f"{count} channels"
    return f"; not used, since the stream has {channels}: {', '.join(spare)}"[:1000]


def while_reserving(stream: Stream, core: Core, caller: Caller, listeners: list[str]) -> None:
    """Note a Hello that comes before all gateways have reserved. It counts when they have."""
    if _remember_hello(core, caller, listeners):
        _welcome(core, caller)


def while_updating(stream: Stream, core: Core, update: Update, caller: Caller, listeners: list[str]) -> None:
    """Note a Hello that comes during an update of targets."""
    if _remember_hello(core, caller, listeners):
        _welcome(core, caller, is_updated=update.before == "Streaming")


def first(stream: Stream, core: Core, caller: Caller, listeners: list[str]) -> None:
    """Note the first Hello, with which the stream becomes ready."""
    if _remember_hello(core, caller, listeners, leads_to="Ready"):
        stream._hello_counts(caller)


def become_ready(stream: Stream, core: Core, caller: Caller | None) -> None:
    """Answer the first Hello, and send the listeners of ProdApp to the owner."""
    if caller is not None:  # `first` has written the state
        _welcome(core, caller)
    else:
        core.save()
    if core.record.role == PROD:
        core.tell_producer_listeners()


def when_ready(stream: Stream, core: Core, caller: Caller, listeners: list[str]) -> None:
    """Note a Hello that follows the first one, and send new listeners of ProdApp to the owner."""
    if not _remember_hello(core, caller, listeners):
        return
    _welcome(core, caller)
    if core.record.role == PROD and listeners != core.listeners_told:
        core.tell_producer_listeners()


def when_streaming(stream: Stream, core: Core, caller: Caller, listeners: list[str]) -> None:
    """Note a Hello of a stream that has targets: send StartConn to ConsApp, or follow ProdApp to new listeners."""
    if not _remember_hello(core, caller, listeners):
        return
    _welcome(core, caller)
    if core.record.role == CONS:
        core.tell_consumer_to_connect()
    else:
        tell_of_producer(core)


def tell_of_producer(core: Core) -> None:
    """Send new listeners of ProdApp to the owner, and wait for targets to them."""
    if core.record.app_listeners != core.listeners_told:
        core.tell_producer_listeners()
    if core.has_moved and core.state == "Streaming":
        core.effects.await_targets()


def refuse(stream: Stream, core: Core, caller: Caller, listeners: list[str]) -> None:
    """Refuse a Hello for a stream that is over, or has no request."""
    core.refuse_wrong_state(caller, "a Hello")


def timed_out(stream: Stream, core: Core) -> None:
    """End the stream, because its Hello timer has run out."""
    stream._fail(StreamError("timeout", "no application used the stream before its Hello timer ran out"))


def timed_out_while_reserving(stream: Stream, core: Core, reservation: Reservation) -> None:
    """Note that the Hello timer has run out. The reservation is completed first."""
    reservation.hello_is_overdue = True


def timed_out_while_updating(stream: Stream, core: Core, update: Update) -> None:
    """Note that the Hello timer has run out. The update is completed first."""
    update.hello_is_overdue = True
