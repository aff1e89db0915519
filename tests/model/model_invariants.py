"""The invariants of the model: the promises A to E of the protocol, and their prerequisites.

`in_every_state`, `at_rest` and `at_the_end` look at a world and give sentences about what is wrong with it;
`on_write` looks at each line as it is sent, and `unchanged_by` at a world before and after a repetition.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from model_fingerprint import decoded, essence
from model_network import End
from model_world import APPS, USER, World

from scistream.protocol.messages import CONS, PROD, Error, Hello, ProdLstn, Resp, Role
from scistream.state_machines import state_of

PROMISES = {
    "A": "both sides end Streaming, or both end Released, and nothing is stuck or ends for nothing",
    "B": "ports and capacity in use are those of live streams, never more, never twice",
    "C": "no byte crosses before both sides have accepted targets, nor after a gateway has answered REL",
    "E": "repeating a command changes nothing",
    "S": "what a party calls its state is the state of its machine, and what an S2CS says is in its store",
}
"""What the sentences of this module begin with. Promise D, that Released can always be reached, is A at the end."""

RESTING = ("Listening", "Ready", "Streaming", "Released")
LIVE = ("Reserving", "Listening", "Ready", "Updating", "Streaming")
HOLDING = ("Reserved", "Updating", "Forwarding")


def in_every_state(world: World) -> Iterator[str]:
    """Yield what is wrong, whatever may be going on."""
    yield from _gateways_hold_what_lives(world)
    yield from _nothing_crosses_too_early_or_too_late(world)
    yield from _records_are_written_and_true(world)
    yield from _user_was_told_the_truth(world)


def _gateways_hold_what_lives(world: World) -> Iterator[str]:
    """Check B."""
    for name, server in world.gateways.items():
        ports, rate, streams = 0, 0.0, set()
        for key, holding in server._streams.items():
            core = holding._core
            state = state_of(holding.machine)
            if state in HOLDING:
                ports += len(core.request.channels) + _for_wan(core)
                rate += core.request.rate
                streams.add(key)
            listeners = (*holding._listeners.by_channel.values(), *holding._for_wan.by_channel.values())
            if any(listener._sock.listens for listener in listeners) and core.current is None:
                yield f"C: {name} listens for {key[1]} in {state}, before any targets were accepted"
            if state != core.state:
                yield f"S: {name} calls its state {core.state} while its machine is in {state}"
        if len(server.ports._given) != ports or server.ports.free != server.ports.last - server.ports.first + 1 - ports:
            yield f"B: {name} has given out {len(server.ports._given)} ports, and its live streams have {ports}"
        if abs(server.capacity._reserved - rate) > 1e-6:
            yield f"B: {name} has promised {server.capacity._reserved:g} Mbit/s, and its live streams have {rate:g}"
        if set(server.elements.streams) != streams:
            yield f"B: the elements of {name} have other streams open than those that live"


def _for_wan(core: Any) -> int:
    """Return how many listeners a gateway needs for those of the producer's side: as many as channels if they dial."""
    dialled = core.role == CONS and core.current is not None and core.current.wan_dialer == PROD
    return len(core.request.channels) if dialled else 0


def _nothing_crosses_too_early_or_too_late(world: World) -> Iterator[str]:
    """Check C."""
    for process, role in world.said_released:
        if process.alive:
            yield from (f"C: {what}" for what in _held_by(world, process.party, role))
    for producer, consumer in crossings(world):
        for holding in (producer, consumer):
            if holding._core.current is None:
                yield f"C: bytes can cross before {holding._core.role} has accepted targets"


def _held_by(world: World, gateway: str, role: Role) -> Iterator[str]:
    server = world.gateways[gateway]
    for key, holding in server._streams.items():
        if key[1] == role and (key in server.elements.streams or holding._listeners or holding._for_wan):
            yield f"{gateway} still has something of {role}, after it has answered REL"


def crossings(world: World) -> Iterator[tuple[Any, Any]]:
    """Yield the pairs of channels' ends, at a producer's and a consumer's gateway, between which bytes can cross."""
    for consumers, consumer in _of_role(world, CONS):
        for channel, listener in consumer._listeners.by_channel.items():
            arming = consumers.elements.streams.get((consumer._core.uid, CONS), {}).get(channel)
            if not listener._sock.listens or arming is None:
                continue
            for producers, producer in _of_role(world, PROD):
                for there, other in producer._listeners.by_channel.items():
                    armed = producers.elements.streams.get((producer._core.uid, PROD), {}).get(there)
                    if armed is None or armed.context != arming.context:
                        continue
                    if _reaches(arming, other) or _reaches(armed, consumer._for_wan.by_channel.get(channel)):
                        yield producer, consumer


def _reaches(arming: Any, listener: Any) -> bool:
    """Return True if a gateway dials this listener of another one, and that listens."""
    if not arming.gateway or listener is None:
        return False
    return bool(listener._sock.listens and listener._sock.getsockname()[1] == arming.gateway.port)


def _of_role(world: World, role: Role) -> Iterator[tuple[Any, Any]]:
    for server in world.gateways.values():
        for key, holding in server._streams.items():
            if key[1] == role:
                yield server, holding


def _records_are_written_and_true(world: World) -> Iterator[str]:
    """Check that the store says what the server says, and that no gateway holds what is Released."""
    for name, control in world.controls.items():
        for key, held in control.streams.items():
            record = held.record
            if state_of(held.machine) != record.state:
                yield f"S: {name} has {record.state} in its record while its machine is in {state_of(held.machine)}"
            if control.store.written.get(key) != (record.state, record.generation):
                yield f"S: {name} is {record.state} and its store says {control.store.written.get(key)}"
        for key, (state, _) in control.store.written.items():
            if state == "Released" and len(key) == 2:
                yield from _still_held(world, name, key)


def _still_held(world: World, control: str, key: tuple[str, Role]) -> Iterator[str]:
    for facility in world.facilities.values():
        if facility.control == control:
            for gateway in facility.gateways:
                server = world.gateways.get(gateway)
                holding = server._streams.get(key) if server is not None else None
                if holding is not None and state_of(holding.machine) in HOLDING:
                    yield f"B: {control} says Released, and {gateway} still holds the stream"


def _user_was_told_the_truth(world: World) -> Iterator[str]:
    user = world.user
    if user is None or user.core.state != "Released":
        return
    for role in user.core.reached - set(user.core.not_released):
        record = record_of(world, role)
        if record is not None and record.state != "Released":
            yield f"A: the user was told that {role} is released, and there it is {record.state}"


def record_of(world: World, role: Role) -> Any:
    """Return the record of the stream at the S2CS of that side, if that runs and has one."""
    control = world.controls.get(world.facilities[role].control)
    if control is None:
        return None
    return next((held.record for key, held in control.streams.items() if key[1] == role), None)


# -- at rest


def at_rest(world: World) -> Iterator[str]:
    """Yield what is wrong when nothing is on its way, and nothing more happens before a stream's time is over."""
    for role in (PROD, CONS):
        yield from _side_rests(world, role)
    yield from _user_rests(world)
    yield from _sides_agree(world)
    yield from _applications_rest(world)


def complete(world: World, role: Role) -> bool:
    """Return True if the S2CS of a side and all its gateways are there."""
    facility = world.facilities[role]
    return all(world.is_there(party) for party in (facility.control, *facility.gateways))


def _side_rests(world: World, role: Role) -> Iterator[str]:
    facility = world.facilities[role]
    if not world.is_there(facility.control):
        return
    record = record_of(world, role)
    state = record.state if record is not None else "unknown"
    if record is not None and state not in RESTING:
        missing = [name for name in record.plan if not world.is_there(name)]
        if state != "Releasing" or not missing:
            yield f"A: {facility.control} is stuck in {state}"
    if not complete(world, role):
        return
    for gateway in facility.gateways:
        for key, holding in world.gateways[gateway]._streams.items():
            if key[1] == role:
                where = state_of(holding.machine)
                if where in HOLDING and state not in RESTING[:3]:
                    yield f"B: {gateway} holds a stream that is {state} at its S2CS"
    for gateway in record.plan if record is not None and state in RESTING[:3] else ():
        holding = world.gateways[gateway]._streams.get(record.key)
        where = (state_of(holding.machine), holding._core.generation) if holding is not None else ("nothing", 0)
        expected = ("Forwarding" if record.generation else "Reserved", record.revision)
        if where != expected:
            yield f"A: {facility.control} is {state}, revision {record.revision}, and {gateway} has {where}"


def _user_rests(world: World) -> Iterator[str]:
    user = world.user
    if user is None or not world.is_there(USER) or user.closed:
        return
    if not all(world.is_there(one.control) for one in world.facilities.values()):
        return
    state = user.core.state
    if state == "Releasing" and not (complete(world, PROD) and complete(world, CONS)):
        return  # as long as an S2CS says that it is releasing, the client waits
    if user.attaching or state not in ("Reserved", "Streaming", "Released"):
        yield f"A: the user's client is stuck in {state}"
    elif state == "Reserved":
        record = record_of(world, PROD)
        if record is not None and record.greeted:
            yield f"A: ProdApp has said Hello, its side is {record.state}, and the user's client waits for it"
    elif state == "Streaming" and complete(world, PROD) and complete(world, CONS):
        for role in (PROD, CONS):
            record = record_of(world, role)
            if record is None or (record.state, record.generation) != ("Streaming", user.core.generation):
                there = (record.state, record.generation) if record is not None else "unknown"
                yield f"A: the user's client is Streaming, generation {user.core.generation}, and {role} is {there}"
        if len(list(crossings(world))) != world.scenario.num_conn:
            yield "A: the user's client is Streaming, and bytes cannot cross"


def _sides_agree(world: World) -> Iterator[str]:
    """Check A, as far as anybody is there who sees to it before the stream's time is over."""
    user = world.user
    if user is None or user.gone or not world.is_there(USER) or user.core.not_released:
        return
    if not (complete(world, PROD) and complete(world, CONS)):
        return
    states = []
    for role in (PROD, CONS):
        record = record_of(world, role)
        state = record.state if record is not None else "Released"
        states.append("before targets" if state in ("Listening", "Ready") else state)
    if states[0] != states[1]:
        yield f"A: at rest the producer's side is {states[0]} and the consumer's {states[1]}"


def _applications_rest(world: World) -> Iterator[str]:
    for role, name in APPS.items():
        controller = world.applications.get(name)
        if controller is None or not world.is_there(name) or not world.is_there(world.facilities[role].control):
            continue
        state = state_of(controller.machine)
        if state in ("Idle", "Greeting"):
            yield f"A: {name} is stuck in {state}"
        record = record_of(world, role)
        if state == "Waiting" and record is not None and record.state == "Streaming":
            yield f"A: {name} waits, and its S2CS is Streaming"


# -- the end


def at_the_end(world: World) -> Iterator[str]:
    """Yield what is wrong when the time of every stream is over."""
    for name, server in world.gateways.items():
        if server.ports._given or server.capacity._reserved:
            yield f"B: at the end {name} still holds {len(server.ports._given)} ports"
    for role, facility in world.facilities.items():
        record = record_of(world, role)
        if record is not None and record.state != "Released":
            if record.state == "Releasing" and not all(
                world.is_there(one) for one in (facility.control, *facility.gateways)
            ):
                continue
            yield f"A: at the end {facility.control} is {record.state}"
    user = world.user
    if user is None or user.gone or not world.is_there(USER):
        return
    waits = user.core.state == "Releasing" and not (complete(world, PROD) and complete(world, CONS))
    if user.core.state != "Released" and not waits:
        yield f"A: at the end the user's client is {user.core.state}"


# -- on the way


def on_write(world: World, end: End, data: bytes) -> None:
    """Look at a line as it is sent."""
    message = decoded(data)
    party = end.process.party
    if isinstance(message, Error) and message.code in ("bad-message", "uid-in-use"):
        world.broken.append(f"E: {party} answers {message.code}: {message.msg}")
    if not isinstance(message, Resp) or message.uid is None:
        return
    if party in world.controls and message.state and world.crashes:
        written = [state for state, _ in world.controls[party].store.written.values()]
        if message.state not in written:
            there = ", ".join(written) or "nothing"
            world.broken.append(f"S: {party} answers {message.state}; if it crashed now, its store would say {there}")
    elif party in world.gateways and message.state == "Released":
        role = next(role for role, facility in world.facilities.items() if party in facility.gateways)
        world.said_released.add((end.process, role))


World.on_write = (on_write,)


def may_change(world: World, data: bytes) -> bool:
    """Return True if a late repetition of this line changes a record: an old Hello of ProdApp, or its echo."""
    message = decoded(data)
    record = record_of(world, PROD)
    known = record.app_listeners if record is not None else None
    return isinstance(message, Hello | ProdLstn) and message.listeners not in (None, known)


def unchanged_by(world: World, data: bytes, before: list[tuple[str, Any]]) -> Iterator[str]:
    """Check E: yield what the second delivery of a line has changed."""
    after = essence(world)
    if after != before:
        changed = [what for what, _ in set_difference(before, after)]
        yield f"E: a repeated {type(decoded(data)).__name__} changed {', '.join(dict.fromkeys(changed))}"


def set_difference(before: list[tuple[str, Any]], after: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return what is in one list only."""
    return [one for one in before if one not in after] + [one for one in after if one not in before]
