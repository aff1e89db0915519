"""Listen for HTTP as the section ``[http]`` says, and change that while the daemon runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger
from twisted.web.resource import IResource

from scistream.config import ConfigError
from scistream.http.settings import HttpSettings
from scistream.http.site import HttpSite
from scistream.links.admission import Admission, AdmissionController, AdmissionFactory, Bounds
from scistream.protocol.address import Address
from scistream.reactors import explain_bind
from scistream.shared_settings import LOOPBACK, networks
from scistream.tls.endpoints import wrap_server_factory
from scistream.tls.files import CertificateFiles
from scistream.tls.reloadable import ReloadableCredentials, http_credentials
from scistream.tls.verify import Identity

BOUNDS = Bounds(
    links=128,
    links_per_address=128,
    unproven=48,
    unproven_per_address=16,
    links_per_identity=64,
    commands_per_second=50.0,
    failures=20,
    longest_refusal=30.0,
)
"""The limits of the listener, counted as those of a control listener are, but apart from them: however many connections
come here, those to the control listener find its limits and descriptors as before."""
BACKLOG = 64


def check_http(settings: HttpSettings, trust: CertificateFiles | None) -> ReloadableCredentials | None:
    """Return the certificates of a listener with these settings; None if it needs none, or there is no listener.

    :raises ConfigError: if it needs certificates and there are none.
    :raises CertificateError: if they cannot be used.
    """
    address = settings.address
    if address is None or address.is_on_loopback:
        return None
    if trust is None:
        raise ConfigError(f"http.listen: {address} is not on loopback, and there are no certificates for it")
    return http_credentials(trust)


class HttpServer:
    """The HTTP listener of a daemon, which may be none.

    :param settings: the section ``[http]``, without problems.
    :param trust: the files of the daemon's certificates, for a listener beyond loopback; None if it has none.
    :param root: the resource of ``/``.
    :param is_reader: whether an identity may read beyond loopback. Asked for each request.
    :param remedy: what somebody does who may not read, for messages.
    :raises CertificateError: if the listener needs certificates and they cannot be used.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        settings: HttpSettings,
        trust: CertificateFiles | None,
        root: IResource,
        is_reader: Callable[[Identity], bool],
        remedy: str,
    ) -> None:
        self._reactor = reactor
        self._root = root
        self._is_reader = is_reader
        self._remedy = remedy
        self._listener = self._listener_of(settings, trust)

    def _listener_of(self, settings: HttpSettings, trust: CertificateFiles | None) -> _Listener | None:
        address, credentials = settings.address, check_http(settings, trust)
        if address is None:
            return None
        return _Listener(self._reactor, address, credentials, self._root, self._is_reader, self._remedy)

    def start(self) -> None:
        """Listen, if the settings say so.

        :raises ConfigError: if the address cannot be listened on.
        """
        if self._listener is not None:
            self._listener.open()

    def stop(self) -> Deferred[Any]:
        """Close the listener and all its connections."""
        listener, self._listener = self._listener, None
        return succeed(None) if listener is None else listener.close()

    def prepare(self, settings: HttpSettings, trust: CertificateFiles | None) -> Callable[[], None]:
        """Prepare other settings, and return a function that applies them and cannot fail.

        A new address is listened on at once, before the old one is closed. Call this as the last step of a reload that
        can fail.

        :raises ConfigError: if the new address cannot be listened on.
        :raises CertificateError: if the certificates cannot be used. Nothing has changed then.
        """
        old = self._listener
        if old is not None and old.address == settings.address:
            read = old.credentials.read(trust) if old.credentials is not None else None

            def apply() -> None:
                if read is not None:
                    read()
                old.site.check_again()

            return apply
        new = self._listener_of(settings, trust)
        if new is not None:
            new.open()

        def replace() -> None:
            self._listener = new
            if old is not None:
                old.close()

        return replace

    def check_again(self) -> None:
        """Close the connections of those who may not read any more. Call this when `is_reader` has changed."""
        if self._listener is not None:
            self._listener.site.check_again()


class _Listener:
    """One listening port and its connections."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        address: Address,
        credentials: ReloadableCredentials | None,
        root: IResource,
        is_reader: Callable[[Identity], bool],
        remedy: str,
    ) -> None:
        self._reactor = reactor
        self.address = address
        self.credentials = credentials
        self._port: IListeningPort | None = None
        self._admission_controller = AdmissionController(
            reactor, BOUNDS, f"the HTTP listener at {address}", known_refusal=0.0, known=networks(LOOPBACK)
        )

        def factory(admission: Callable[[], Admission]) -> IProtocolFactory:
            self.site = HttpSite(reactor, root, credentials, is_reader, remedy, admission)
            if credentials is None:
                return self.site
            return wrap_server_factory(lambda: credentials.context, self.site, reactor)

        self._factory = AdmissionFactory(self._admission_controller, factory)

    def open(self) -> None:
        try:
            self._port = self._reactor.listenTCP(self.address.port, self._factory, BACKLOG, self.address.host)
        except CannotListenError as problem:
            why = explain_bind(self.address, problem.socketError)
            raise ConfigError(f"http.listen: {why}") from None
        self.log.info(
            "HTTP listens on {address}, {who}",
            address=str(self.address),
            who="without a login" if self.credentials is None else "for administrators, with a client certificate",
        )

    def close(self) -> Deferred[Any]:
        port, self._port = self._port, None
        self.site.abort_all()
        self._admission_controller.stop()
        return succeed(None) if port is None else maybeDeferred(port.stopListening)
