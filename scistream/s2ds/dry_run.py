"""What `--check-config` checks for an S2DS: everything that a start checks, without opening or writing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scistream.config import raise_if_any
from scistream.http.listener import check_http
from scistream.links.tls_links import LinkListener
from scistream.protocol.address import Address
from scistream.s2ds.paths import wan_paths
from scistream.s2ds.settings import S2DSConfig
from scistream.s2ds.start import element_settings, machine_problems
from scistream.setup_problems import SetupProblems
from scistream.shared_settings import trust_of


def check(reactor: Any, config: S2DSConfig, config_file: Path) -> SetupProblems:
    """Return the problems that would keep a gateway from starting with these settings, or from reloading them.

    Addresses and ports on which this gateway already listens are no problem.
    """
    problems = SetupProblems()
    with problems.of_step():
        raise_if_any(config_file, list(machine_problems(config, may_run=True)))
    trust = None if config.insecure else trust_of(config, config_file)
    with problems.of_step():
        LinkListener(reactor, Address.parse(config.listen), trust, client_certificate="required")
    with problems.of_step():
        check_http(config.http, trust)
    with problems.of_step():
        element_settings(config, wan_paths(config.wan))
    return problems
