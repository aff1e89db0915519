"""What `--check-config` checks for an S2CS: everything that a start checks, without opening or writing anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from scistream.config import ConfigError, raise_if_any
from scistream.http.listener import check_http
from scistream.links.tls_links import LinkListener
from scistream.protocol.address import Address
from scistream.s2cs.audit.sinks import JournalSink, audit_file
from scistream.s2cs.http import check_readers
from scistream.s2cs.policy.authorizer import policy_of
from scistream.s2cs.settings import S2CSConfig
from scistream.s2cs.start import machine_problems, orphan_problems
from scistream.s2cs.store.check import check_store
from scistream.setup_problems import SetupProblems
from scistream.shared_settings import resolve_path, trust_of
from scistream.tls.reloadable import controller_credentials


def check(reactor: Any, config: S2CSConfig, config_file: Path, now: float) -> SetupProblems:
    """Return the problems that would keep an S2CS from starting with these settings, or from reloading them.

    An address on which this S2CS already listens is no problem.

    :param now: seconds since the epoch.
    """
    problems = SetupProblems()
    with problems.of_step():
        raise_if_any(config_file, list(machine_problems(config, config_file, may_run=True)))
    own = None if config.insecure else trust_of(config, config_file)
    with problems.of_step():
        LinkListener(reactor, Address.parse(config.listen), own, client_certificate="optional")
    if config.controller is not None and not config.insecure:
        with problems.of_step():
            controller_credentials(trust_of(config.controller, config_file))
    with problems.of_step():
        check_http(config.http, own)
    with problems.of_step():
        check_readers(config, policy_of(config, config_file))
    store = resolve_path(config_file, config.state)
    with problems.of_step():
        _check_store(store, config, config_file, now)
    with problems.of_step():
        _check_audit(config, config_file, store)
    return problems


def _check_store(store: Path, config: S2CSConfig, config_file: Path, now: float) -> None:
    """Check that the store is sound, can be written, and has no stream on a gateway that is missing.

    :raises ConfigError: with a line for each problem.
    """
    _check_writable("state", store)
    if not store.exists() or not store.stat().st_size:
        return
    found = check_store(store)
    lines = [f"state: {store}: {problem.what}. {problem.remedy}" for problem in found.problems]
    lines += [f"{config_file}: {problem}" for problem in orphan_problems(config, found.live, now)]
    if lines:
        raise ConfigError("\n".join(lines))


def _check_audit(config: S2CSConfig, config_file: Path, store: Path) -> None:
    """Check that the audit trail can be written.

    :raises ConfigError: if it cannot.
    """
    audit = audit_file(config.audit, config_file, store)
    if audit is not None:
        _check_writable("audit", audit)
    elif config.audit == "journal":
        JournalSink().close()


def _check_writable(key: str, file: Path) -> None:
    """Check that this process could write a file, or create it.

    :raises ConfigError: if it could not.
    """
    if file.exists():
        if not os.access(file, os.R_OK | os.W_OK):
            raise ConfigError(f"{key}: {file} cannot be written: permission denied; run this as the user of the S2CS")
        return
    folder = next(one for one in file.absolute().parents if one.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        why = "permission denied; run this as the user of the S2CS" if folder.is_dir() else "it is no folder"
        raise ConfigError(f"{key}: {file} cannot be created in {folder}: {why}")
