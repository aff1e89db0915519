"""The library of S2UC: request a stream from two facilities, wait until it streams, release it.

It works under Twisted (`task.react`) and under plain asyncio (`asyncio.run`)::

    async with Client(certificate=..., key=..., authorities=[...]) as client:
        async with client.request(prod="anl.example:5000", cons="ornl.example:5000", num_conn=4) as stream:
            start_jobs(stream.join["PROD"], stream.join["CONS"])
            await stream.provisioned()
            ...

Programs without coroutines use the same calls of `scistream.s2uc.blocking`.
"""

from __future__ import annotations

import time
import uuid
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from scistream import timing
from scistream.awaitable import Awaitable, current_reactor, leave, loop_of_reactor
from scistream.config import ConfigError, load
from scistream.links.dialer import Dialer
from scistream.links.tls_links import dialer
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, DrainProgress, Role, StreamStatus
from scistream.s2uc import admin
from scistream.s2uc.facilities import FacilityCheck, check_facility
from scistream.s2uc.handle import StreamHandle, app_keys_of
from scistream.s2uc.happened import HappenedEvent, StreamEvents, merged
from scistream.s2uc.history import RememberedStream, StreamHistory
from scistream.s2uc.observers import Observers, StateChange, StreamFigures, Subscription
from scistream.s2uc.probe import Probing, Report
from scistream.s2uc.probe_side import Check
from scistream.s2uc.server import Server
from scistream.s2uc.settings import FACILITY_NAME, S2UCConfig
from scistream.s2uc.stream import ClientStream, StreamRequest
from scistream.s2uc.user_files import default_config
from scistream.shared_settings import canonical, resolve_path
from scistream.tls.files import CertificateFiles
from scistream.units import DEFAULT_RATE, parse_rate

__all__ = [
    "Client",
    "Facility",
    "HappenedEvent",
    "Requested",
    "StateChange",
    "Stream",
    "StreamEvents",
    "StreamFigures",
    "StreamHandle",
    "Subscription",
    "default_config",
]

_log = Logger()


class Facility(NamedTuple):
    """The certificate authorities that vouch for one facility.

    :param authorities: files of authorities (PEM), one or more.
    :param crl: files of revocation lists (PEM): one for each of these authorities, or none at all.
    """

    authorities: Sequence[Path | str]
    crl: Sequence[Path | str] = ()


class Client:
    """A user's client, with persistent links to the S2CS of each facility that it talks to.

    Use it in ``async with``, or await `close` at the end.

    :param certificate: file with the user's certificate chain (PEM).
    :param key: file with the private key of that certificate (PEM).
    :param authorities: files of the authorities that vouch for the facilities (PEM).
    :param crl: files of revocation lists (PEM): one for each of `authorities`, or none at all.
    :param insecure: use plain TCP without certificates; on loopback only.
    :param facilities: authorities for single facilities, by HOST:PORT of their S2CS; they replace `authorities` there.
    :param names: HOST:PORT by name of the facility; wherever a HOST:PORT of an S2CS is asked for, such a name will do.
    :param reactor: the Twisted reactor; by default the one that runs when the client is first used. A client that is
        first used in an asyncio event loop belongs to that loop.
    :param remember: keep each requested stream in the user's list, for ``s2uc list`` and the other commands, until it
        is released.
    :raises StreamError: `not-authenticated`, if certificates are missing and `insecure` is not set; `bad-message`, if
        an address in `facilities` is not valid or is named twice.
    """

    def __init__(
        self,
        *,
        certificate: Path | str | None = None,
        key: Path | str | None = None,
        authorities: Sequence[Path | str] = (),
        crl: Sequence[Path | str] = (),
        insecure: bool = False,
        facilities: Mapping[str, Facility] | None = None,
        names: Mapping[str, str] | None = None,
        reactor: Any = None,
        remember: bool = True,
    ) -> None:
        self._names = dict(names or {})
        self._reactor = reactor
        self._finds_reactor = reactor is None
        self._loop: Any = None
        self._remembers = remember
        self._unclosed_warning: weakref.finalize[..., Client] | None = None
        self._certificates: CertificateFiles | None = None
        self._facilities: dict[Address, CertificateFiles] = {}
        if not insecure:
            if certificate is None or key is None or not (authorities or facilities):
                raise StreamError(
                    "not-authenticated",
                    "no certificates: pass certificate, key and authorities, or insecure=True on loopback",
                )
            self._certificates = _certificate_files(certificate, key, Facility(authorities, crl))
            try:
                for text, facility in (facilities or {}).items():
                    address = canonical(Address.parse(text))
                    if address in self._facilities:
                        raise ValueError(f"{text} is named twice among the facilities, in two forms: leave one out")
                    self._facilities[address] = _certificate_files(certificate, key, facility)
            except ValueError as wrong:
                raise StreamError("bad-message", str(wrong)) from None
        self._servers: dict[Address, Server] = {}
        self._observers: weakref.WeakSet[Observers] = weakref.WeakSet()

    @classmethod
    def from_config(cls, path: Path | str | None = None, *, reactor: Any = None, remember: bool = True) -> Client:
        """Make a client with the certificates, and the names of facilities, that a configuration file has.

        :param path: the file; by default ``~/.config/scistream/s2uc.toml``, as for the command.
        :param reactor: as for `Client`.
        :param remember: as for `Client`.
        :raises ConfigError: if the file cannot be read, has a wrong setting, or names no certificates.
        """
        file = Path(path) if path is not None else default_config()
        settings = load(file, S2UCConfig)
        needed = {
            "certificate": settings.certificate,
            "key": settings.key,
            "authorities": settings.authorities or any(one.authorities for one in settings.facilities),
        }
        missing = [name for name, value in needed.items() if not value]
        if missing and not settings.insecure:
            raise ConfigError(f"{file}: {missing[0]}: not set: a client needs certificate, key, and authorities")
        return cls(**arguments_of(settings, file), reactor=reactor, remember=remember)

    @property
    def reactor(self) -> Any:
        """The reactor in which the links run.

        :raises StreamError: `wrong-state`, if the client belongs to another event loop than the running one.
        """
        if self._finds_reactor:
            loop = loop_of_reactor()
            if self._reactor is None:
                self._reactor, self._loop = current_reactor(), loop
            elif loop is not self._loop and loop is not None:
                raise StreamError(
                    "wrong-state",
                    "this Client was first used in another event loop (or in Twisted's reactor) and belongs to it: "
                    "make one Client for each event loop",
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
        wan_dialer: Role | None = None,
    ) -> Requested:
        """Request a stream from both facilities. Await the result: it is a `Stream` once both have reserved.

        If the wait is cancelled, or the client is closed before the result was awaited, the stream is released::

            stream = await client.request(prod="anl.example:5000", cons="ornl.example:5000", num_conn=4, rate="10Gbit")

        :param prod: HOST:PORT of the S2CS at the producer's facility.
        :param cons: HOST:PORT of the S2CS at the consumer's facility.
        :param num_conn: number of channels, 1 to 1024.
        :param rate: rate of the whole stream in each direction: Mbit/s, or text such as ``"10Gbit"``.
        :param uid: UUID of the stream; by default a new one.
        :param expires: seconds after which the stream ends. By default each facility chooses, and the stream ends at
            the earlier time (`Stream.seconds_left`).
        :param hello_timeout: seconds that the facilities wait for the applications; by default each facility chooses.
        :param app_from: networks from which applications may connect, such as ``["192.0.2.0/24"]``; by default those
            of the facility's own settings.
        :param label: a name for people; the facilities see it.
        :param listen_ports: for ``"CONS"``, ``"PROD"`` or both, the ports on which the gateways of that side listen,
            one for each channel. The application connects to those at the consumer's side; the consumer's gateways
            connect to those at the producer's side. If a facility does not grant a port, the request fails.
        :param wan_dialer: the side whose gateways dial the others over the WAN, ``"PROD"`` or ``"CONS"``. By default
            the consumer's dial if the facilities allow it, and otherwise the producer's.
        :raises StreamError: if a side refuses or fails; the other side is released. `bad-message`, if an argument is
            wrong.
        :raises ConfigError: if the stream cannot be added to the user's list.
        :raises CertificateError: if the user's certificate files cannot be used.
        """
        try:
            servers = {PROD: self._address(prod), CONS: self._address(cons)}
            uid = _parse_uid(uid or str(uuid.uuid4()))
            request = StreamRequest(
                num_conn,
                _mbit(rate),
                expires,
                hello_timeout,
                app_from,
                _encodable(label),
                listen_ports or {},
                wan_dialer,
            )
            request.check(uid)
        except ValueError as wrong:
            raise StreamError("bad-message", str(wrong)) from None
        stream = Stream(self, uid, servers)
        try:
            self._remember(uid, servers, request, stream._effects)
            return Requested(stream, stream._effects.request(request).addCallback(lambda _: stream))
        except BaseException:
            stream._effects.machine.release()
            raise

    @cached_property
    def _history(self) -> StreamHistory:
        return StreamHistory()

    def _remember(self, uid: str, servers: dict[Role, Address], request: StreamRequest, effects: ClientStream) -> None:
        """Add a stream to the user's list before it is requested; remove it when both sides have released it."""
        if not self._remembers:
            return
        now = time.time()
        remembered = RememberedStream(
            uid=uid,
            prod=str(servers[PROD]),
            cons=str(servers[CONS]),
            num_conn=request.num_conn,
            rate=request.rate,
            asked_at=now,
            expires_at=None if request.expires is None else now + request.expires,
            label=request.label,
        )
        if self._history.add(remembered):
            effects.on_reserved = lambda: self._note_end(uid, effects.seconds_left)
            effects.on_extended = lambda seconds_left: self._note_end(uid, seconds_left)
            effects.on_released = lambda: self._note_release(uid)

    def _note_end(self, uid: str, seconds_left: float) -> None:
        try:
            self._history.note_end(uid, time.time() + seconds_left)
        except ConfigError as problem:
            _log.warn(
                "the time at which stream {uid} ends cannot be noted in the user's list: {problem}",
                uid=uid,
                problem=problem,
            )

    def _note_release(self, uid: str) -> None:
        try:
            if self._remembers:
                self._history.note_release(uid)
        except ConfigError as problem:
            _log.warn(
                "stream {uid} is released but cannot be removed from the user's list: {problem}",
                uid=uid,
                problem=problem,
            )

    def probe(
        self,
        *,
        prod: str,
        cons: str,
        num_conn: int = 1,
        rate: float | str = DEFAULT_RATE,
        seconds: float | None = None,
        listen_ports: Mapping[Role, Sequence[int]] | None = None,
        wan_dialer: Role | None = None,
        tell: Callable[[Check], None] | None = None,
    ) -> Awaitable[Report]:
        """Test whether a stream can be set up, and how fast the gateways can send each other test data.

        The probe reserves ports and capacity like a stream, for one minute at most, and releases them at its end.

        :param prod: HOST:PORT of the S2CS at the producer's facility.
        :param cons: HOST:PORT of the S2CS at the consumer's facility.
        :param num_conn: number of channels, 1 to 1024.
        :param rate: rate to reserve, as for `request`; no more than that is measured.
        :param seconds: how long test data flows in each direction; 5 by default.
        :param listen_ports: as for `request`: the report says whether each facility grants these ports.
        :param wan_dialer: as for `request`.
        :param tell: called with each check as soon as its result is known.
        :returns: the report. Every failure of a facility or of the path is in it.
        :raises StreamError: `bad-message`, if an argument is wrong.
        """
        try:
            addresses = {PROD: self._address(prod), CONS: self._address(cons)}
            probing = Probing(
                self.reactor,
                addresses,
                self._certificates_for,
                num_conn=num_conn,
                rate=_mbit(rate),
                seconds=timing.PROBE_DATA if seconds is None else seconds,
                listen_ports=listen_ports or {},
                wan_dialer=wan_dialer,
                tell=tell or (lambda _: None),
            )
        except ValueError as wrong:
            raise StreamError("bad-message", str(wrong)) from None
        return Awaitable(Deferred.fromCoroutine(probing.run()))

    def streams_at(self, s2cs: str) -> Awaitable[list[StreamStatus]]:
        """List the streams at an S2CS: the user's own, or all if the user is an administrator of the facility.

        :param s2cs: HOST:PORT of the S2CS.
        :raises StreamError: if the S2CS does not answer, or refuses.
        """
        server = self._server_at(s2cs)
        return Awaitable(Deferred.fromCoroutine(admin.streams_at(self._dialer_to(s2cs), server.note_warnings)))

    def stream_at(self, s2cs: str, uid: str) -> Awaitable[list[StreamStatus]]:
        """Ask one S2CS about a stream of this user or, as an administrator of the facility, of any user.

        :param s2cs: HOST:PORT of the S2CS.
        :param uid: the whole UUID.
        :returns: the status of each side of the stream that is at this S2CS.
        :raises StreamError: if the S2CS does not answer, refuses, or has no such stream; `bad-message`, if `uid` is
            not a UUID.
        """
        return Awaitable(Deferred.fromCoroutine(admin.stream_at(self._dialer_to(s2cs), _parse_uid(uid))))

    def events_at(self, s2cs: str, uid: str) -> Awaitable[StreamEvents]:
        """Ask one S2CS what has happened to a stream of this user or, as an administrator, of any user.

        :param s2cs: HOST:PORT of the S2CS.
        :param uid: the whole UUID.
        :raises StreamError: if the S2CS does not answer, refuses, or has no such stream; `bad-message`, if `uid` is
            not a UUID.
        """
        link, uid = self._dialer_to(s2cs), _parse_uid(uid)

        async def events() -> StreamEvents:
            return merged(await admin.stream_at(link, uid, events=True), {}, time.time())

        return Awaitable(Deferred.fromCoroutine(events()))

    def release_at(self, s2cs: str, uid: str) -> Awaitable[list[StreamStatus]]:
        """Release one S2CS's side of a stream of this user or, as an administrator of the facility, of any user.

        :param s2cs: HOST:PORT of the S2CS.
        :param uid: the whole UUID.
        :returns: the status of each side that was released, as it was before.
        :raises StreamError: if the S2CS does not answer, refuses, or has no such stream; `bad-message`, if `uid` is
            not a UUID.
        """
        return Awaitable(Deferred.fromCoroutine(admin.release_at(self._dialer_to(s2cs), _parse_uid(uid))))

    def drain_at(
        self,
        s2cs: str,
        action: Literal["start", "undo", "show"],
        gateway: str | None = None,
        within: float | None = None,
    ) -> Awaitable[list[DrainProgress]]:
        """As an administrator of a facility, let a gateway or all of its S2CS get no new streams, or end that.

        :param s2cs: HOST:PORT of the S2CS.
        :param action: "start", "undo", or "show", which changes nothing.
        :param gateway: the name of the gateway in the settings of the S2CS; None: all gateways.
        :param within: with "start", the seconds after which the streams that are left are released; None: never.
        :returns: everything that is drained there, and what is left of its streams.
        :raises StreamError: if the S2CS does not answer, or refuses.
        """
        return Awaitable(Deferred.fromCoroutine(admin.drain_at(self._dialer_to(s2cs), action, gateway, within)))

    def reason_at(self, s2cs: str) -> str:
        """Say why an S2CS cannot be reached, as a sentence for a person; empty if it can be, or was never asked.

        :param s2cs: HOST:PORT of the S2CS.
        :raises StreamError: `bad-message`, if `s2cs` is not HOST:PORT.
        """
        return self._server_at(s2cs).dialer.outbox.reason

    def _dialer_to(self, s2cs: str) -> Dialer:
        to_server = self._server_at(s2cs).dialer
        if not to_server.running:
            to_server.startService()
        return to_server

    def _server_at(self, s2cs: str) -> Server:
        try:
            return self._server(self._address(s2cs))
        except ValueError as wrong:
            raise StreamError("bad-message", str(wrong)) from None

    def _address(self, text: str) -> Address:
        """Return the address of a facility, which is given by its address or by its name.

        :raises ValueError: if the text is neither.
        """
        if text not in self._names and FACILITY_NAME.match(text):
            names = ", ".join(sorted(self._names)) or "none are set"
            raise ValueError(
                f"{text!r} is neither HOST:PORT nor the name of a facility in s2uc.toml (its names: {names})"
            )
        return Address.parse(self._names.get(text, text))

    @property
    def names(self) -> dict[str, str]:
        """HOST:PORT of the S2CS of each facility that has a name."""
        return dict(self._names)

    def check_facilities(self, *facilities: str) -> Awaitable[list[FacilityCheck]]:
        """Find out which facilities answer, of which version they are, and what they warn about, all at the same time.

        :param facilities: names, or HOST:PORT of their S2CS; by default all that have a name.
        :returns: a check for each, in order, after 10 s at most. Every failure of a facility is in it.
        :raises StreamError: `bad-message`, if an argument is neither a name nor an address.
        """
        asked = facilities or tuple(self._names)
        servers = [(text, self._server_at(text)) for text in asked]
        checks = [
            check_facility(text if text in self._names else None, str(self._address(text)), server)
            for text, server in servers
        ]
        return Awaitable(gatherResults([Deferred.fromCoroutine(check) for check in checks], consumeErrors=True))

    def remembered(self, uid: str, *, prod: str, cons: str) -> Stream:
        """Return a stream that was requested earlier, perhaps by another process, to check, attach or release it.

        :param uid: the whole UUID.
        :param prod: HOST:PORT of the S2CS at the producer's facility.
        :param cons: HOST:PORT of the S2CS at the consumer's facility.
        :raises StreamError: `bad-message`, if an argument is wrong.
        """
        return self._remembered(StreamHandle(uid, prod, cons))

    def _remembered(self, handle: StreamHandle) -> Stream:
        """Return the stream of a handle.

        :raises StreamError: `bad-message`, if the handle is damaged.
        """
        try:
            servers = {PROD: self._address(handle.prod), CONS: self._address(handle.cons)}
            uid = _parse_uid(handle.uid)
            keys = app_keys_of(handle)
        except ValueError as wrong:
            raise StreamError("bad-message", str(wrong)) from None
        stream = Stream(self, uid, servers, remembered=True, app_keys=keys)
        if self._remembers:
            stream._effects.on_extended = lambda seconds_left: self._note_end(uid, seconds_left)
        stream._effects.on_released = lambda: self._note_release(uid)
        return stream

    def attach(self, handle: StreamHandle) -> Awaitable[Stream]:
        """Go on with a stream of this process or another, in whatever state it is.

        It is `remembered` and `Stream.attach` in one. If the process that requested the stream still runs, close its
        client, so that only one of them sets targets.

        :param handle: from `Stream.handle`.
        :returns: the stream. Its `join` has the join strings, if the handle has them.
        :raises StreamError: if a side does not answer, or the stream is over at one side. The other side is released.
            `bad-message`, if the handle is damaged.
        """
        stream = self._remembered(handle)

        async def attached() -> Stream:
            await stream._effects.attach()
            return stream

        return Awaitable(Deferred.fromCoroutine(attached()))

    @property
    def warnings(self) -> dict[str, list[str]]:
        """Warnings of the facilities about certificates that expire soon, by HOST:PORT of the S2CS.

        They come with the answers to `Stream.status` and `streams_at`; an S2CS without warnings is left out.
        """
        return {str(address): server.warnings for address, server in self._servers.items() if server.warnings}

    def close(self) -> Awaitable[None]:
        """Close the links as soon as no release is in progress.

        Streams whose request was awaited continue without the client; the others are released.
        """
        return Awaitable(Deferred.fromCoroutine(self._close()))

    async def _close(self) -> None:
        streams = {stream for server in self._servers.values() for stream in server.streams}
        for observers in list(self._observers):
            observers.stop_polling()
        for stream in streams:
            stream.client_closes()
        for stream in streams:  # only now: one may begin its release while another's is awaited
            await stream.when_released()
        await gatherResults([server.dialer.stopService() for server in self._servers.values()])
        for observers in list(self._observers):
            observers.tell_pending()
        self._servers.clear()
        if self._unclosed_warning is not None:
            self._unclosed_warning.detach()
            self._unclosed_warning = None
        if self._finds_reactor and self._reactor is not None:
            leave(self._reactor)
            self._reactor = None

    def _certificates_for(self, address: Address) -> CertificateFiles | None:
        """Return the user's certificate with the authorities for one facility; None for plain TCP.

        :raises StreamError: `not-authenticated`, if no authorities are named for this facility or for all.
        """
        files = self._facilities.get(canonical(address), self._certificates)
        if files is not None and not files.authorities:
            raise StreamError(
                "not-authenticated",
                f"no authority vouches for {address}: name its authorities under [[facilities]], or in `authorities`",
            )
        return files

    def _server(self, address: Address) -> Server:
        if self._unclosed_warning is None:
            self._unclosed_warning = weakref.finalize(self, _warn_unclosed)
        if address not in self._servers:
            files = self._certificates_for(address)
            self._servers[address] = Server(dialer(self.reactor, address, str(address), files))
        return self._servers[address]


class Stream:
    """A stream, made by `Client.request` or `Client.remembered`.

    Sides are named by their role, ``"PROD"`` or ``"CONS"``.

    :ivar uid: the UUID of the stream.
    """

    def __init__(
        self,
        client: Client,
        uid: str,
        servers: dict[Role, Address],
        *,
        remembered: bool = False,
        app_keys: Mapping[Role, str] | None = None,
    ) -> None:
        self.uid = uid
        self.servers = servers
        self._client = client
        self._effects = ClientStream(
            client.reactor, uid, servers, client._server, remembered=remembered, app_keys=app_keys
        )

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, kind: object, raised: BaseException | None, _: object) -> None:
        """Release the stream. If that fails after an exception, it is logged, and the exception goes on."""
        try:
            await self.release()
        except StreamError as error:
            if raised is None:
                raise
            _log.warn("uid={uid} {reason}", uid=self.uid, reason=error.msg)

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled.

        :raises TypeError: with the remedy.
        """
        raise TypeError("a Stream cannot be pickled, since it has links: pickle `stream.handle()`, and attach to that")

    @property
    def state(self) -> str:
        """The state, as the protocol names it: Reserving, Reserved, Provisioning, Updating, Streaming, ..."""
        return self._effects.core.state

    @property
    def waits_for(self) -> str:
        """The end of the sentence "waiting for ...": what is missing before the stream is streaming or released."""
        return self._effects.waits_for()

    @property
    def was_reached(self) -> bool:
        """True if any side may know of the stream."""
        return bool(self._effects.core.reached)

    @property
    def unknown_at(self) -> dict[Role, Address]:
        """After a release: the S2CS of each side that had no stream of this user with this uid."""
        return {role: self.servers[role] for role in self.servers if role in self._effects.core.unknown_at}

    @property
    def generation(self) -> int:
        """The generation of the targets that were set last; 0 before any were set."""
        return self._effects.core.generation

    @property
    def connection_map(self) -> dict[str, str]:
        """The target of each listener, for the listeners of both sides; empty before ProdApp's Hello."""
        return self._effects.connection_map

    @property
    def listeners(self) -> dict[Role, list[str]]:
        """The HOST:PORT on which the gateways of each side listen, one for each channel, in order.

        The consumer's application connects to those of ``"CONS"``, the consumer's gateways to those of ``"PROD"``. A
        side that has not reserved is left out, and so are both sides of a remembered stream before `attach`.
        """
        return self._effects.listeners

    @property
    def wan_dialer(self) -> Role:
        """The side whose gateways dial the others over the WAN, ``"PROD"`` or ``"CONS"``.

        ``"CONS"`` before both sides have reserved, and for a remembered stream before `attach`.
        """
        return self._effects.core.wan_dialer

    @property
    def unused_listeners(self) -> list[str]:
        """The listeners of ProdApp that no channel leads to, since ProdApp has more than the stream has channels."""
        return self._effects.unused_listeners

    @property
    def seconds_left(self) -> float:
        """Seconds until the stream expires: the shorter of the times that both facilities have granted.

        0 before both have reserved, and for a remembered stream before `attach`.
        """
        return self._effects.seconds_left

    @property
    def process_seconds(self) -> float:
        """Seconds that the protocol took from REQ to the last RESP, without the wait for ProdApp's Hello."""
        return self._effects.reserve_seconds + self._effects.provision_seconds

    @property
    def join(self) -> dict[Role, str]:
        """The join string for the application of each side. They are secrets, valid once both sides have reserved.

        Empty for a remembered stream, since join strings are not stored, unless its handle has them. Reading them marks
        the stream as handed over to its applications: it is not released when the client is closed.
        """
        self._effects.handed_out = True
        return self._effects.join_strings()

    def attach(self) -> Awaitable[None]:
        """Continue a stream that `Client.remembered` returned, in whatever state it is.

        If its targets are not set at both sides, they are set under a higher generation as soon as ProdApp has said
        Hello. Await `provisioned` after this.

        :raises StreamError: if a side does not answer, or the stream is over at one side. The other side is released.
        """
        return Awaitable(Deferred.fromCoroutine(self._effects.attach()))

    def handle(self, *, secrets: bool = False) -> StreamHandle:
        """Return what another process needs to go on with the stream (`Client.attach`). It can be pickled.

        The stream is handed over with it: it is not released when this client is closed.

        :param secrets: include the join strings. Whoever has them can take the place of an application.
        """
        self._effects.handed_out = True
        join = self._effects.join_strings() if secrets else {}
        return StreamHandle(self.uid, str(self.servers[PROD]), str(self.servers[CONS]), join)

    def on_state(self, callback: Callable[[StateChange], object]) -> Subscription:
        """Call `callback` after each change of the stream's state.

        It is called from the event loop, so it must not block. If it raises an exception, that is logged, and the
        stream goes on. A stream that was only `remembered`, and not attached, tells of its release alone.

        :raises TypeError: if it cannot be called, or is a coroutine function.
        """
        return self._observed.on_state(callback)

    def on_figures(
        self, callback: Callable[[StreamFigures], object], *, interval: float = timing.FIGURES_INTERVAL
    ) -> Subscription:
        """Call `callback` every `interval` seconds with the traffic of the stream, as both facilities report it.

        It is called as for `on_state`, for the last time when both sides have released the stream. The client has to
        be open meanwhile.

        :param interval: seconds between the figures, at least 0.2. The figures of a facility may be a few seconds old.
        :raises StreamError: `bad-message`, if the interval is too short.
        :raises TypeError: if `callback` cannot be called, or is a coroutine function.
        """
        return self._observed.on_figures(callback, interval)

    @property
    def _observed(self) -> Observers:
        self._client._observers.add(self._effects.observers)
        return self._effects.observers

    def provisioned(self) -> Awaitable[dict[str, str]]:
        """Wait until both sides stream, and return the connection map: the target of each listener.

        :raises StreamError: if the stream fails or is released first.
        """
        return Awaitable(self._effects.when_streaming())

    def extend(self, by: float) -> Awaitable[float]:
        """Let the stream end later, at both sides or at neither.

        Each facility limits the whole lifetime, counted from the request. If a side refuses or does not answer, the
        other is put back.

        :param by: seconds, after the earlier of the ends at both facilities.
        :returns: seconds until the stream ends.
        :raises StreamError: if a side does not accept; the message says which, why, and what became of the other.
            `bad-message`, if `by` is wrong.
        """
        return Awaitable(Deferred.fromCoroutine(self._effects.extend(by)))

    def release(self) -> Awaitable[None]:
        """End the stream at both sides.

        :raises StreamError: if a side does not answer for 30 s, or has not released after 60 s. The message names the
            side, which releases by itself when the stream expires.
        """
        self._effects.machine.release()
        return Awaitable(self._effects.when_ended().addCallback(lambda _: self._effects.check_released()))

    def abandon(self) -> None:
        """Stop waiting for a release. The pending `release` then fails and names the sides that have not confirmed."""
        self._effects.abandon()

    def fail(self, error: StreamError) -> None:
        """End the stream at both sides with this error. Everything that waits for the stream fails with it."""
        self._effects.machine.failed(error)

    def sides(self) -> Awaitable[tuple[dict[Role, StreamStatus], dict[Role, StreamError]]]:
        """Return the status of each side that can be reached within 5 s, and the reason for each that cannot.

        A side that does not know the stream is in neither.
        """
        return Awaitable(Deferred.fromCoroutine(self._effects.sides()))

    def events(self) -> Awaitable[StreamEvents]:
        """Return what has happened to the stream: at both sides, in the order of time.

        Each facility keeps the latest 64 events of its side, until a day after the stream has ended. A side that cannot
        be reached within 5 s is in `StreamEvents.unreachable`.
        """

        async def events() -> StreamEvents:
            sides, unreachable = await self._effects.sides(events=True)
            return merged(sides.values(), unreachable, time.time())

        return Awaitable(Deferred.fromCoroutine(events()))

    def ended(self) -> Awaitable[None]:
        """Wait until the stream is over.

        :raises StreamError: if the stream was not ended by this object's `release`: `released`, if its owner has
            released it elsewhere, `expired`, or why it has failed.
        """
        return Awaitable(self._effects.when_ended().addCallback(lambda _: self._effects.check_ended()))

    def status(self) -> Awaitable[dict[Role, StreamStatus]]:
        """Return the status of each side as its facility reports it now.

        A side that does not know the stream is left out.

        :raises StreamError: if a side does not answer, or refuses.
        """
        return Awaitable(Deferred.fromCoroutine(self._effects.status()))


class Requested(Awaitable[Stream]):
    """A requested stream. Await it to get the `Stream` once both sides have reserved.

    :ivar stream: the same stream, which can be released before both sides have reserved.
    """

    def __init__(self, stream: Stream, deferred: Deferred[Stream]) -> None:
        super().__init__(deferred)
        self.stream = stream

    @property
    def deferred(self) -> Deferred[Stream]:
        """The result as a Deferred. Code that takes it owns the stream and has to release it."""
        self._taken()
        return super().deferred

    async def __aenter__(self) -> Stream:
        """Wait for the stream, which is released at the end of ``async with``."""
        return await self

    async def __aexit__(self, kind: object, raised: BaseException | None, traceback: object) -> None:
        await self.stream.__aexit__(kind, raised, traceback)

    def _taken(self) -> None:
        self.stream._effects.handed_out = True

    def _not_taken(self) -> None:
        if not self.stream._effects.handed_out:
            self.stream._effects.machine.release()


def arguments_of(settings: S2UCConfig, file: Path) -> dict[str, Any]:
    """Return the settings of a configuration file as keyword arguments of `Client`."""

    def paths(names: Sequence[str]) -> tuple[Path, ...]:
        return tuple(resolve_path(file, name) for name in names)

    return {
        "certificate": resolve_path(file, settings.certificate) if settings.certificate else None,
        "key": resolve_path(file, settings.key) if settings.key else None,
        "authorities": paths(settings.authorities),
        "crl": paths(settings.crl),
        "insecure": settings.insecure,
        "facilities": {
            one.address: Facility(paths(one.authorities), paths(one.crl))
            for one in settings.facilities
            if one.authorities
        },
        "names": {one.name: one.address for one in settings.facilities if one.name},
    }


def _certificate_files(certificate: Path | str, key: Path | str, facility: Facility) -> CertificateFiles:
    authorities, crl = (tuple(map(Path, files)) for files in facility)
    return CertificateFiles(Path(certificate), Path(key), authorities, crl)


def _warn_unclosed() -> None:
    warnings.warn(
        "a scistream Client was not closed: use `with` or `async with`, or call its `close()`",
        ResourceWarning,
        stacklevel=2,
    )


def _mbit(rate: float | str) -> float:
    return parse_rate(rate) if isinstance(rate, str) else rate


def _encodable(label: str | None) -> str | None:
    """Return the label with question marks for bytes of the command line that are not valid UTF-8."""
    return label if label is None else label.encode(errors="replace").decode()


def _parse_uid(text: str) -> str:
    """Return a uid in canonical form.

    :raises StreamError: `bad-message`, if the text is not a UUID.
    """
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise StreamError("bad-message", f"uid {text!r} is not a UUID") from None
