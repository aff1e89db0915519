"""What an S2DS serves over HTTP: its health and its metrics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from twisted.web.resource import Resource

from scistream.http.listener import HttpServer
from scistream.http.metrics import DaemonCollector, MetricsResource
from scistream.http.resources import make_root
from scistream.s2ds.metrics import METRICS, values
from scistream.s2ds.settings import S2DSConfig
from scistream.shared_settings import trust_of
from scistream.tls.files import CertificateFiles
from scistream.tls.verify import Identity

if TYPE_CHECKING:
    from scistream.s2ds.service import DataServer

_REMEDY = "its operator adds the name to `administrators` in [http]"


def http_server(server: DataServer) -> HttpServer:
    """Return the HTTP listener of a gateway.

    :raises CertificateError: if the listener needs certificates and they cannot be used.
    """

    def is_reader(identity: Identity) -> bool:
        return identity.name in (server.config.controller, *server.config.http.administrators)

    config = server.config
    return HttpServer(
        server.reactor, config.http, http_trust(config, server.config_file), root_of(server), is_reader, _REMEDY
    )


def root_of(server: DataServer) -> Resource:
    """Return the resource of ``/``; see `scistream.http.resources` for what its children can rely on."""
    root = make_root(lambda: unready(server))
    collector = DaemonCollector("s2ds", METRICS, lambda: values(server, unready(server)))
    root.putChild(b"metrics", MetricsResource(server.reactor, collector))
    return root


def unready(server: DataServer) -> list[str]:
    """Return why a gateway cannot take new streams now."""
    reasons = []
    if server.is_draining:
        reasons.append("it is draining, so it takes no new streams")
    if not server.elements.ready_count():
        reasons.append(f"none of its {server.elements.count} elements takes connections")
    if not server.is_controlled:
        reasons.append(f"its controller, {server.config.controller or 'an S2CS on loopback'}, is not connected")
    return reasons


def http_trust(config: S2DSConfig, config_file: Path) -> CertificateFiles | None:
    """Return the files of the certificates of a gateway, or None if it has none."""
    return None if config.insecure else trust_of(config, config_file)
