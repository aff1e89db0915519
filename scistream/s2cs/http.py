"""What an S2CS serves over HTTP. Whoever adds a resource does it in `root_of`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from twisted.web.resource import Resource

from scistream.config import ConfigError
from scistream.http.listener import HttpServer
from scistream.http.metrics import DaemonCollector, MetricsResource
from scistream.http.resources import make_root
from scistream.s2cs.metrics import METRICS, values
from scistream.s2cs.policy.file import Policy
from scistream.s2cs.settings import S2CSConfig
from scistream.s2cs.web.events import EventHub
from scistream.s2cs.web.resources import add_pages
from scistream.shared_settings import trust_of
from scistream.tls.files import CertificateFiles
from scistream.tls.verify import Identity

if TYPE_CHECKING:
    from scistream.s2cs.service import ControlServer

_REMEDY = "its operator adds administrators in the policy, a section [[administrators]]"


def http_server(server: ControlServer) -> HttpServer:
    """Return the HTTP listener of an S2CS, which reads nothing of the server before a request comes.

    :raises CertificateError: if the listener needs certificates and they cannot be used.
    """

    def is_reader(identity: Identity) -> bool:
        policy = server.authorizer.policy
        return policy is not None and policy.is_administrator(identity)

    config = server.config
    return HttpServer(
        server.reactor, config.http, http_trust(config, server.config_file), root_of(server), is_reader, _REMEDY
    )


def root_of(server: ControlServer) -> Resource:
    """Return the resource of ``/``; see `scistream.http.resources` for what its children can rely on."""
    root = make_root(lambda: unready(server))
    add_pages(root, server.monitor, EventHub(server.reactor, server.monitor))
    collector = DaemonCollector("s2cs", METRICS, lambda: values(server, unready(server)))
    root.putChild(b"metrics", MetricsResource(server.reactor, collector))
    return root


def unready(server: ControlServer) -> list[str]:
    """Return why an S2CS cannot take new streams now."""
    reasons = []
    if server.is_draining:
        reasons.append("it is draining, so it accepts no new streams")
    problem = server.store.problem()
    if problem is not None:
        reasons.append(problem)
    if server.audit.is_failing:
        reasons.append("the audit trail cannot be written, so new streams are refused")
    answering = [gateway for gateway in server.gateways.values() if gateway.answers]
    if not answering:
        reasons.append(f"none of its gateways answers: {', '.join(server.gateways)}")
    elif all(gateway.is_drained for gateway in answering) and not server.is_draining:
        named = ", ".join(gateway.name for gateway in answering)
        reasons.append(f"every gateway that answers is being drained: {named}")
    return reasons


def http_trust(config: S2CSConfig, config_file: Path) -> CertificateFiles | None:
    """Return the files of the certificates of an S2CS, or None if it has none."""
    return None if config.insecure else trust_of(config, config_file)


def check_readers(config: S2CSConfig, policy: Policy | None) -> None:
    """Check that somebody may read a listener beyond loopback.

    :raises ConfigError: if the policy has no administrators.
    """
    address = config.http.address
    if address is None or address.is_on_loopback or (policy is not None and policy.administrators):
        return
    raise ConfigError(
        f"http.listen: {address} is not on loopback, where only administrators of the policy may read, and there are "
        "none: name them in a section [[administrators]] of the file that `policy` names, or listen on loopback"
    )
