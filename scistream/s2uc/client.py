"""The library of S2UC: ask two facilities for a stream, wait until it streams, release it.

Works under Twisted (`task.react`) and under plain asyncio (`asyncio.run`)::

    async with Client(certificate=..., key=..., authorities=[...]) as client:
        stream = await client.request(prod="anl.example:5000", cons="ornl.example:5000", num_conn=4)
        hand_out(stream.join["PROD"], stream.join["CONS"])
        await stream.provisioned()
        ...
        await stream.release()
"""

from __future__ import annotations

import time
import uuid
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from scistream import timing
from scistream.awaitable import Awaitable, current_loop, current_reactor, leave
from scistream.config import ConfigError, load
from scistream.links.dialer import Dialer
from scistream.links.tls_links import dialer
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, Role, StreamStatus
from scistream.s2uc import admin
from scistream.s2uc.history import RememberedStream, StreamHistory
from scistream.s2uc.probe import Probing, Report
from scistream.s2uc.probe_side import Check
from scistream.s2uc.server import Server
from scistream.s2uc.settings import S2UCConfig
from scistream.s2uc.stream import ClientStream, StreamRequest
from scistream.shared_settings import DEFAULT_RATE, one_form, resolve_path, user_folder
from scistream.tls.files import CertificateFiles
from scistream.units import parse_rate


class Facility(NamedTuple):
    """The authorities of a facility (PEM), and lists of revoked certificates (PEM): one for each of them, or none."""

    authorities: Sequence[Path | str]
    crl: Sequence[Path | str] = ()


class Client:
    """A user of facilities, with lasting links to their S2CS.

    :param certificate: the user's certificate chain (PEM), its `key`, and the `authorities` of the facilities.
    :param crl: lists of revoked certificates (PEM), one for each of these authorities, or none.
    :param insecure: plain TCP, on loopback only, in place of certificates.
    :param facilities: for single facilities, by HOST:PORT of their S2CS, the authorities to trust in place of
        `authorities`.
    :param reactor: the reactor; by default the one that runs where the client is first used. A client that was first
        used in an asyncio event loop belongs to that loop.
    :param remember: keep each stream in the list of `s2uc list` and the other commands until it is released.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        certificate: Path | str | None = None,
        key: Path | str | None = None,
        authorities: Sequence[Path | str] = (),
        crl: Sequence[Path | str] = (),
        insecure: bool = False,
        facilities: Mapping[str, Facility] | None = None,
        reactor: Any = None,
        remember: bool = True,
    ) -> None:
        self._reactor = reactor
        self._finds_reactor = reactor is None
        self._loop: Any = None
        self._remembers = remember
        self._unclosed: weakref.finalize[..., Client] | None = None
        self._trust: CertificateFiles | None = None
        self._facilities: dict[Address, CertificateFiles] = {}
        if not insecure:
            if certificate is None or key is None or not (authorities or facilities):
                raise StreamError(
                    "not-authenticated",
                    "no certificates: give certificate, key and authorities, or on loopback insecure",
                )
            self._trust = _trust(certificate, key, Facility(authorities, crl))
            try:
                for address, facility_ in (facilities or {}).items():
                    place = one_form(Address.parse(address))
                    if place in self._facilities:
                        raise ValueError(f"{address} is named twice among the facilities, in two forms: leave one")
                    self._facilities[place] = _trust(certificate, key, facility_)
            except ValueError as wrong:
                raise StreamError("bad-message", str(wrong)) from None
        self._servers: dict[Address, Server] = {}

    @classmethod
    def from_config(cls, path: Path | str | None = None, *, reactor: Any = None, remember: bool = True) -> Client:
        """Make a client with the certificates that a configuration file names.

        :param path: the file; ``~/.config/scistream/s2uc.toml`` if not given, as for the command.
        :raises ConfigError: if it cannot be read, is wrong, or names no certificates.
        """
        file = Path(path) if path is not None else default_config()
        settings = load(file, S2UCConfig)
        there = (settings.certificate, settings.key, settings.authorities or settings.facilities)
        if not settings.insecure and not all(there):
            missing = ("certificate", "key", "authorities")[[*map(bool, there)].index(False)]
            raise ConfigError(f"{file}: {missing}: names no certificates: set certificate, key, and authorities")
        return cls(**arguments_of(settings, file), reactor=reactor, remember=remember)

    @property
    def reactor(self) -> Any:
        """What its links run in.

        :raises StreamError: `wrong-state`, if it belongs to another event loop than the one this is called in.
        """
        if self._finds_reactor:
            loop = current_loop()
            if self._reactor is None:
                self._reactor, self._loop = current_reactor(), loop
            elif loop is not self._loop and loop is not None:
                raise StreamError(
                    "wrong-state",
                    "this Client belongs to another event loop (or to Twisted's reactor), where it was used first: "
                    "make a Client for each event loop",
                )
        return self._reactor

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def request(
        self,
        *,
        prod: str,
        cons: str,
        num_conn: int = 1,
        rate: float | str = DEFAULT_RATE,
        uid: str | None = None,
        expires: float | None = None,
        hello_timeout: float | None = None,
        app_from: Sequence[str] | None = None,
        label: str | None = None,
        listen_ports: Mapping[Role, Sequence[int]] | None = None,
    ) -> Requested:
        """Ask both facilities for a stream; the result is there when both have reserved.

        :param prod: HOST:PORT of the S2CS at the producer's facility; `cons`: at the consumer's.
        :param num_conn: channels, 1 to 1024.
        :param rate: of the whole stream, in each direction: Mbit/s, or text such as ``10Gbit``.
        :param uid: a UUID; made if not given.
        :param expires: seconds that the stream lives at most; the facilities decide if not given, and the shorter of
            their two answers counts (`Stream.seconds_left`).
        :param hello_timeout: seconds that the facilities wait for the applications; theirs to choose if not given.
        :param app_from: networks that applications may connect from.
        :param listen_ports: for ``"CONS"``, ``"PROD"`` or both: the ports that the listeners of that side's gateways
            shall have, one for each channel. At the consumer's side it is what the application connects to; at the
            producer's side, what the other gateway connects to. A port that a facility does not grant refuses the
            request.

        If the wait for the stream is cancelled, or the client is closed before the stream was awaited, it is released.

        :raises StreamError: the refusal of a side; the other side is released then. Also `bad-message`, for a
            wrong argument.
        :raises ConfigError: if the stream cannot be added to the user's list.
        :raises CertificateError: if the user's files of certificates cannot be used.
        """
        try:
            servers = {PROD: Address.parse(prod), CONS: Address.parse(cons)}
            uid = _checked_uid(uid or str(uuid.uuid4()))
            wishes = StreamRequest(
                num_conn, _mbit(rate), expires, hello_timeout, app_from, _encodable(label), listen_ports or {}
            )
            wishes.check(uid)
        except ValueError as wrong:
            raise StreamError("bad-message", str(wrong)) from None
        stream = Stream(self, uid, servers)
        try:
            self._remember(uid, servers, wishes, stream._effects)
            return Requested(stream, stream._effects.request(wishes).addCallback(lambda _: stream))
        except BaseException:
            stream._effects.machine.release()
            raise

    @cached_property
    def _memory(self) -> StreamHistory:
        return StreamHistory()

    def _remember(self, uid: str, servers: dict[Role, Address], wishes: StreamRequest, effects: ClientStream) -> None:
        """Write a stream down before anybody hears of it, and strike it out when it is known to be over everywhere."""
        if not self._remembers:
            return
        now = time.time()
        known = RememberedStream(
            uid=uid,
            prod=str(servers[PROD]),
            cons=str(servers[CONS]),
            num_conn=wishes.num_conn,
            rate=wishes.rate,
            asked_at=now,
            expires_at=None if wishes.expires is None else now + wishes.expires,
            label=wishes.label,
        )
        if self._memory.add(known):
            effects.on_reserved = lambda: self._note_end(uid, effects.seconds_left)
            effects.on_released = lambda: self._forget(uid)

    def _note_end(self, uid: str, seconds_left: float) -> None:
        try:
            self._memory.note_end(uid, time.time() + seconds_left)
        except ConfigError as problem:
            self._log.warn("stream {uid} stays in the list without its end: {problem}", uid=uid, problem=problem)

    def _forget(self, uid: str) -> None:
        try:
            if self._remembers:
                self._memory.note_release(uid)
        except ConfigError as problem:
            self._log.warn("stream {uid} is released, and stays in the list: {problem}", uid=uid, problem=problem)

    def probe(
        self,
        *,
        prod: str,
        cons: str,
        num_conn: int = 1,
        rate: float | str = DEFAULT_RATE,
        seconds: float = timing.PROBE_DATA,
        listen_ports: Mapping[Role, Sequence[int]] | None = None,
        tell: Callable[[Check], None] | None = None,
    ) -> Awaitable[Report]:
        """Find out whether a stream can be had, and what passes between the gateways: they send each other test data.

        It holds ports and capacity like a stream, for a minute at most, and releases them at its end.

        :param rate: Mbit/s, as for `request`; no more than that is measured.
        :param seconds: how long test data flows each way.
        :param listen_ports: as for `request`: whether each facility grants these ports is found out, too.
        :param tell: called with each check as soon as it is made.
        :raises StreamError: `bad-message`, for a wrong argument; what goes wrong otherwise is in the report.
        """
        try:
            addresses = {PROD: Address.parse(prod), CONS: Address.parse(cons)}
            probing = Probing(
                self.reactor,
                addresses,
                self._trust_at,
                num_conn=num_conn,
                rate=_mbit(rate),
                seconds=seconds,
                listen_ports=listen_ports or {},
                tell=tell or (lambda _: None),
            )
        except ValueError as wrong:
            raise StreamError("bad-message", str(wrong)) from None
        return Awaitable(Deferred.fromCoroutine(probing.run()))

    def streams_at(self, s2cs: str) -> Awaitable[list[StreamStatus]]:
        """List the streams at an S2CS that this user may see: their own, and for an administrator of the facility all.

        :param s2cs: its HOST:PORT.
        :raises StreamError: if it does not answer, or refuses.
        """
        return Awaitable(Deferred.fromCoroutine(admin.streams_at(self._reached(s2cs))))

    def stream_at(self, s2cs: str, uid: str) -> Awaitable[list[StreamStatus]]:
        """Ask one S2CS about a stream of this user or, as an administrator of the facility, of any user.

        :raises StreamError: if it does not answer, or refuses, or has no such stream.
        """
        return Awaitable(Deferred.fromCoroutine(admin.stream_at(self._reached(s2cs), _uid_of(uid))))

    def release_at(self, s2cs: str, uid: str) -> Awaitable[list[StreamStatus]]:
        """Release one S2CS's side of a stream of this user or, as an administrator of the facility, of any user.

        :returns: what it had of it.
        :raises StreamError: if it does not answer, or refuses.
        """
        return Awaitable(Deferred.fromCoroutine(admin.release_at(self._reached(s2cs), _uid_of(uid))))

    def reason_at(self, s2cs: str) -> str:
        """Say why an S2CS that was asked cannot be reached, in words for a person; empty if it can be."""
        return self._server(Address.parse(s2cs)).dialer.outbox.reason

    def _reached(self, s2cs: str) -> Dialer:
        try:
            link = self._server(Address.parse(s2cs)).dialer
        except ValueError as wrong:
            raise StreamError("bad-message", str(wrong)) from None
        if not link.running:
            link.startService()
        return link

    def remembered(self, uid: str, *, prod: str, cons: str) -> Stream:
        """Return a stream that was asked for earlier, perhaps by another process, to look at it or release it."""
        try:
            servers = {PROD: Address.parse(prod), CONS: Address.parse(cons)}
            uid = _checked_uid(uid)
        except ValueError as wrong:
            raise StreamError("bad-message", str(wrong)) from None
        stream = Stream(self, uid, servers, remembered=True)
        stream._effects.on_released = lambda: self._forget(uid)
        return stream

    @property
    def warnings(self) -> dict[str, list[str]]:
        """What the facilities have said, in their last answers to Status, of certificates that expire soon.

        By the address of the S2CS; those that have said nothing are left out.
        """
        return {str(address): server.warnings for address, server in self._servers.items() if server.warnings}

    def close(self) -> Awaitable[None]:
        """Close the links once releases under way are done. A stream that was handed out goes on without the client."""
        return Awaitable(Deferred.fromCoroutine(self._close()))

    async def _close(self) -> None:
        held = {effects for server in self._servers.values() for effects in server.streams}
        for effects in held:
            if not effects.handed_out:
                effects.machine.release()
        for effects in held:
            if effects.core.state == "Releasing":
                await effects.when_ended()
        await gatherResults([server.dialer.stopService() for server in self._servers.values()])
        self._servers.clear()
        if self._unclosed is not None:
            self._unclosed.detach()
            self._unclosed = None
        if self._finds_reactor and self._reactor is not None:
            leave(self._reactor)
            self._reactor = None

    def _trust_at(self, address: Address) -> CertificateFiles | None:
        """Who vouches for a facility: the authorities that are named for it alone, or those for all others."""
        trust = self._facilities.get(one_form(address), self._trust)
        if trust is not None and not trust.authorities:
            raise StreamError(
                "not-authenticated",
                f"no authority vouches for {address}: name its authorities under [[facilities]], or in `authorities`",
            )
        return trust

    def _server(self, address: Address) -> Server:
        if self._unclosed is None:
            self._unclosed = weakref.finalize(self, _warn_unclosed)
        if address not in self._servers:
            self._servers[address] = Server(dialer(self.reactor, address, str(address), self._trust_at(address)))
        return self._servers[address]


class Stream:
    """One stream, as its user sees it. Made by `Client.request`, or by `Client.remembered`."""

    def __init__(self, client: Client, uid: str, servers: dict[Role, Address], *, remembered: bool = False) -> None:
        self.uid = uid
        self.servers = servers
        self._effects = ClientStream(client.reactor, uid, servers, client._server, remembered=remembered)

    @property
    def state(self) -> str:
        """The state of the stream's machine, as the protocol names it."""
        return self._effects.core.state

    @property
    def waits_for(self) -> str:
        """While it does not stream yet: who or what is missing, in words for a person."""
        return self._effects.waits_for()

    @property
    def was_reached(self) -> bool:
        """Whether any side may have heard of the stream."""
        return bool(self._effects.core.reached)

    @property
    def unknown_at(self) -> dict[Role, Address]:
        """Once it is released: the sides that had no stream of this user with this uid, so that nothing ended there."""
        return {role: self.servers[role] for role in self.servers if role in self._effects.core.unknown_at}

    @property
    def generation(self) -> int:
        """The generation of the targets that were set last; 0 before the first time."""
        return self._effects.core.generation

    @property
    def connection_map(self) -> dict[str, str]:
        """Each listener of both sides with its target; empty before ProdApp's Hello."""
        return self._effects.connection_map

    @property
    def listeners(self) -> dict[Role, list[str]]:
        """What the gateways of each side that has reserved listen on, one for each channel.

        The consumer's application connects to those of ``"CONS"``, the consumer's gateways to those of ``"PROD"``.
        Empty for a stream that was asked for elsewhere, before `attach`.
        """
        return self._effects.listeners

    @property
    def unused_listeners(self) -> list[str]:
        """Listeners of ProdApp that no channel leads to, since it has more than the stream has channels."""
        return self._effects.unused_listeners

    @property
    def seconds_left(self) -> float:
        """Seconds until the stream expires: the shorter of what both facilities granted.

        0 before both have reserved, and for a stream that was asked for elsewhere.
        """
        return self._effects.seconds_left

    @property
    def process_seconds(self) -> float:
        """The time that the protocol took: from REQ to the last RESP, less the wait for ProdApp's Hello."""
        return self._effects.reserve_seconds + self._effects.provision_seconds

    @property
    def join(self) -> dict[Role, str]:
        """The join string of each side's application; a secret. Good once both sides have reserved.

        Empty for a stream that was asked for elsewhere: only who asked knows them.
        """
        self._effects.handed_out = True
        return self._effects.join_strings()

    def attach(self) -> Awaitable[None]:
        """Go on with a stream that `Client.remembered` gave, from wherever it stands.

        If its targets are not set at both sides, they are set under a higher generation as soon as ProdApp has said
        Hello. The `join` strings of a stream that was asked for elsewhere are not known here.

        :raises StreamError: if a side does not answer, or the stream is over at one side; the other is released then.
        """
        return Awaitable(Deferred.fromCoroutine(self._effects.attach()))

    def provisioned(self) -> Awaitable[dict[str, str]]:
        """Wait until both sides stream; gives the connection map.

        :raises StreamError: if the stream fails or is released first.
        """
        return Awaitable(self._effects.when_streaming())

    def release(self) -> Awaitable[None]:
        """End the stream at both sides.

        :raises StreamError: naming a side that did not confirm within 30 s; it releases by itself when the
            stream expires.
        """
        self._effects.machine.release()
        return Awaitable(self._effects.when_ended().addCallback(lambda _: self._effects.check_released()))

    def abandon(self) -> None:
        """Wait no longer for a release: what has not confirmed it goes on by itself, and `release` names it."""
        self._effects.abandon()

    def fail(self, error: StreamError) -> None:
        """End the stream at both sides because of this; what waits for it fails with it."""
        self._effects.machine.failed(error)

    def sides(self) -> Awaitable[tuple[dict[Role, StreamStatus], dict[Role, StreamError]]]:
        """What each side says of the stream now, as far as it can be reached within seconds; and why another does not.

        A side that does not know it is in neither.
        """
        return Awaitable(Deferred.fromCoroutine(self._effects.sides()))

    def ended(self) -> Awaitable[None]:
        """Wait until the stream is over.

        :raises StreamError: if it ended otherwise than by `release`.
        """
        return Awaitable(self._effects.when_ended().addCallback(lambda _: self._effects.check_ended()))

    def status(self) -> Awaitable[dict[Role, StreamStatus]]:
        """What each side says of the stream now; a side that does not know it is left out.

        :raises StreamError: if a side does not answer, or refuses.
        """
        return Awaitable(Deferred.fromCoroutine(self._effects.status()))


class Requested(Awaitable[Stream]):
    """A stream that was asked for: await it to have it reserved. `stream` can be released before that."""

    def __init__(self, stream: Stream, deferred: Deferred[Stream]) -> None:
        super().__init__(deferred)
        self.stream = stream

    @property
    def deferred(self) -> Deferred[Stream]:
        """The result, for code that handles Deferreds itself and owns the stream from then on."""
        self._taken()
        return super().deferred

    def _taken(self) -> None:
        self.stream._effects.handed_out = True

    def _not_taken(self) -> None:
        if not self.stream._effects.handed_out:
            self.stream._effects.machine.release()


def default_config() -> Path:
    """``$XDG_CONFIG_HOME/scistream/s2uc.toml``, or the like below ``~/.config``.

    :raises ConfigError: if there is no such folder.
    """
    return user_folder("XDG_CONFIG_HOME", "~/.config") / "scistream" / "s2uc.toml"


def arguments_of(settings: S2UCConfig, file: Path) -> dict[str, Any]:
    """What a configuration file says, as arguments of `Client`."""

    def paths(names: Sequence[str]) -> tuple[Path, ...]:
        return tuple(resolve_path(file, name) for name in names)

    return {
        "certificate": resolve_path(file, settings.certificate) if settings.certificate else None,
        "key": resolve_path(file, settings.key) if settings.key else None,
        "authorities": paths(settings.authorities),
        "crl": paths(settings.crl),
        "insecure": settings.insecure,
        "facilities": {one.address: Facility(paths(one.authorities), paths(one.crl)) for one in settings.facilities},
    }


def _trust(certificate: Path | str, key: Path | str, facility_: Facility) -> CertificateFiles:
    authorities, crl = (tuple(map(Path, files)) for files in facility_)
    return CertificateFiles(Path(certificate), Path(key), authorities, crl)


def _warn_unclosed() -> None:
    warnings.warn(
        "a scistream Client was not closed: use `async with Client(...)`, or await its `close()`",
        ResourceWarning,
        stacklevel=2,
    )


def _mbit(rate: float | str) -> float:
    return parse_rate(rate) if isinstance(rate, str) else rate


def _encodable(label: str | None) -> str | None:
    """A label as the protocol can carry it: bytes of a command line that are no UTF-8 become question marks."""
    return label if label is None else label.encode(errors="replace").decode()


def _uid_of(text: str) -> str:
    """:raises StreamError: `bad-message`, if it is none."""
    try:
        return _checked_uid(text)
    except ValueError as wrong:
        raise StreamError("bad-message", str(wrong)) from None


def _checked_uid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise ValueError(f"uid {text!r} is no UUID: leave it out and one is made") from None
