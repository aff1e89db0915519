"""Checks before an S2CS starts: whether its settings can work on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from scistream.config import SettingProblem, unless
from scistream.protocol.address import Address
from scistream.reactors import NO_SOCKETS, check_bindable
from scistream.s2cs.audit.events import FIRST_BYTES
from scistream.s2cs.audit.sinks import audit_file
from scistream.s2cs.record import Record
from scistream.s2cs.settings import S2CSConfig
from scistream.shared_settings import resolve_path
from scistream.systemd.sockets import InheritedSockets

_STORE_SUFFIXES = ("", ".lock", "-wal", "-shm", "-journal")
"""Suffixes of the files that belong to the store, after the name of the store."""


MOST_NAMED = 10
"""Streams that one error message names."""


def machine_problems(
    config: S2CSConfig, config_file: Path, inherited: InheritedSockets = NO_SOCKETS, *, may_run: bool = False
) -> Iterator[SettingProblem]:
    """Yield the settings that cannot work on this machine.

    :param config_file: the file of the settings; relative paths start at its folder.
    :param inherited: sockets on which this process listens already.
    :param may_run: this S2CS may be running, so that its addresses are in use.
    """

    def check(text: str) -> None:
        check_bindable(Address.parse(text), inherited, may_be_used=may_run)

    yield from unless(check, config.listen, "listen")
    if config.http.listen:
        yield from unless(check, config.http.listen, "http.listen")
    state = [*unless(_check_file, resolve_path(config_file, config.state), "state")]
    yield from state
    if state:  # with `audit = "auto"` the path of the audit trail depends on it
        return
    audit = audit_file(config.audit, config_file, resolve_path(config_file, config.state))
    if audit is not None:
        problems = [*unless(_check_file, audit, "audit"), *unless(_check_trail, audit, "audit")]
        yield from problems
        if problems:
            return
    yield from _files_written_over(config, config_file, audit)


def orphan_problems(config: S2CSConfig, records: Iterable[Record], now: float) -> list[str]:
    """Return the gateways that are missing in the settings though they may hold streams, which could not be released.

    :param records: the streams that are not released.
    :param now: seconds since the epoch.
    """
    pool = {one.name for one in config.gateways}
    orphans: dict[str, list[str]] = {}
    for record in records:
        for name in record.plan:
            if name not in pool and record.may_be_held_by(name, now):
                orphans.setdefault(name, []).append(f"{record.uid} ({record.role})")
    return [
        f"gateways: {name!r} is missing, and may hold {len(streams)} stream{'s' if len(streams) > 1 else ''}: "
        f"{', '.join(sorted(streams)[:MOST_NAMED])}{' and others' if len(streams) > MOST_NAMED else ''}. Put it "
        "back, and remove it when they are released (`scistream drain`, s2uc release) or have expired"
        for name, streams in sorted(orphans.items())
    ]


def _check_file(path: Path) -> None:
    """Check that a file can be written and read at `path`.

    :raises ValueError: if `path` is a folder or a special file.
    """
    if not path.name or path.name == ".." or path.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file, so it cannot be read back: name another file")


def _check_trail(path: Path) -> None:
    """Check that a file at `path`, if there is one, is an audit trail, since the S2CS appends to it.

    :raises ValueError: if the file begins with something else.
    """
    if not path.is_file():
        return
    with suppress(OSError), path.open("rb") as file:  # `FileSink` says why it cannot be opened
        if not FIRST_BYTES.startswith(file.read(len(FIRST_BYTES))):
            raise ValueError(f"{path} exists and is not an audit trail: name another file, or move this one away")


def _files_written_over(config: S2CSConfig, config_file: Path, audit: Path | None) -> Iterator[SettingProblem]:
    """Yield the settings that would make the S2CS write over a file that it reads, or over its own store."""
    store = resolve_path(config_file, config.state).resolve()
    written = {_identity(store.with_name(store.name + suffix)): "state" for suffix in _STORE_SUFFIXES}
    if audit is not None and written.setdefault(_identity(audit), "audit") != "audit":
        yield SettingProblem(("audit", "state"), f"{audit} is a file of the store (state): name another one")
    for key, path in (
        ("", config_file),
        *((key, resolve_path(config_file, name)) for key, name in _files_read(config)),
    ):
        writer = written.get(_identity(path))
        if writer is not None:
            yield SettingProblem(
                (writer, *([key] if key else [])), f"{path} is {_purpose(key)}, and would be overwritten"
            )


def _purpose(key: str) -> str:
    return f"the file that {key} names" if key else "the configuration file itself"


def _files_read(config: S2CSConfig) -> Iterator[tuple[str, str]]:
    """Yield the setting and the name of each file that the S2CS reads."""
    if config.policy:
        yield "policy", config.policy
    for prefix, section in (("", config), ("controller.", config.controller)):
        if section is not None:
            yield from ((f"{prefix}{key}", name) for key in ("certificate", "key") if (name := getattr(section, key)))
            yield from ((f"{prefix}authorities", name) for name in section.authorities)
            yield from ((f"{prefix}crl", name) for name in section.crl)


def _identity(path: Path) -> object:
    """Return a value that is equal for two paths if they name the same file."""
    try:
        found = path.stat()
    except OSError:
        return str(path.resolve())
    return found.st_dev, found.st_ino


def remove_new_file(file: Path) -> None:
    """Remove a file that a failed start has created. A file that cannot be removed stays."""
    with suppress(OSError):
        file.unlink()
