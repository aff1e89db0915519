"""Checks before an S2CS starts: whether this machine can give it what its settings ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from scistream.config import SettingProblem, unless
from scistream.protocol.address import Address
from scistream.reactors import check_bindable
from scistream.s2cs.audit.sinks import audit_file
from scistream.s2cs.settings import S2CSConfig
from scistream.shared_settings import resolve_path

_BESIDE_STORE = ("", ".lock", "-wal", "-shm", "-journal")
"""Endings that are added to the name of the store to name the files that belong to it."""


def machine_problems(config: S2CSConfig, config_file: Path) -> Iterator[SettingProblem]:
    """Yield what the settings ask for and this machine does not have.

    :param config_file: where the settings came from: relative paths start there.
    """
    yield from unless(lambda text: check_bindable(Address.parse(text)), config.listen, "listen")
    state = [*unless(_check_file, resolve_path(config_file, config.state), "state")]
    yield from state
    if state:  # the place of the audit trail may follow from it
        return
    audit = audit_file(config.audit, config_file, resolve_path(config_file, config.state))
    if audit is not None:
        problems = [*unless(_check_file, audit, "audit")]
        yield from problems
        if problems:
            return
    yield from _files_written_over(config, config_file, audit)


def _check_file(path: Path) -> None:
    """:raises ValueError: if there is something of this name that is no file, or no file can have it."""
    if not path.name or path.name == ".." or path.is_dir():
        raise ValueError(f"{path} is a folder, and no file can be there: name a file in it")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file, and nothing that is written there could be read again")


def _files_written_over(config: S2CSConfig, config_file: Path, audit: Path | None) -> Iterator[SettingProblem]:
    """Which settings name a file that is written, and that something else needs."""
    store = resolve_path(config_file, config.state).resolve()
    mine = {_identity(store.with_name(store.name + ending)): "state" for ending in _BESIDE_STORE}
    if audit is not None and mine.setdefault(_identity(audit), "audit") != "audit":
        yield SettingProblem(("audit", "state"), f"{audit} is a file of the store (state): name another one")
    for key, path in (
        ("", config_file),
        *((key, resolve_path(config_file, name)) for key, name in _files_read(config)),
    ):
        writer = mine.get(_identity(path))
        if writer is not None:
            yield SettingProblem(
                (writer, *([key] if key else [])), f"{path} is {_needed_as(key)}, and would be written over"
            )


def _needed_as(key: str) -> str:
    return f"the file that {key} names" if key else "the configuration file itself"


def _files_read(config: S2CSConfig) -> Iterator[tuple[str, str]]:
    """The setting and the name of each file that is read."""
    if config.policy:
        yield "policy", config.policy
    for prefix, section in (("", config), ("controller.", config.controller)):
        if section is not None:
            yield from ((f"{prefix}{key}", name) for key in ("certificate", "key") if (name := getattr(section, key)))
            yield from ((f"{prefix}authorities", name) for name in section.authorities)
            yield from ((f"{prefix}crl", name) for name in section.crl)


def _identity(path: Path) -> object:
    """Return a value that is equal for two paths if they lead to the same file."""
    try:
        found = path.stat()
    except OSError:
        return str(path.resolve())
    return found.st_dev, found.st_ino


def unmake(file: Path) -> None:
    """Remove a file that a start has made which was refused after that."""
    with suppress(OSError):
        file.unlink()
