"""The register of an authority's certificates: the file ``issued.jsonl`` in its directory, one event per line.

With the register a certificate can be revoked even if its file is lost. Lines are only appended, under a lock. It
contains no secrets; without it no certificate is lost, only the means to revoke by name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from msgspec import Struct

from scistream.file_lock import NotLockedError, locked_file
from scistream.tls.certificate_names import names_of

FILE = "issued.jsonl"

_decoder: msgspec.json.Decoder[IssueEvent | RevokeEvent]


class PkiError(Exception):
    """The certificate tool cannot do what was asked. The message is a sentence with the reason and the remedy."""


class IssueEvent(Struct, frozen=True, kw_only=True, tag_field="event", tag="issued"):
    """A certificate was signed. `serial` and `key` (SHA-256 of the public key, DER) are hex."""

    serial: str
    kind: str
    name: str
    names: list[str]
    until: datetime
    key: str
    at: datetime


class RevokeEvent(Struct, frozen=True, kw_only=True, tag_field="event", tag="revoked"):
    """A certificate was revoked; `until` is when it would have expired."""

    serial: str
    name: str
    until: datetime
    key: str
    reason: str
    at: datetime


class Entry(Struct, frozen=True, kw_only=True):
    """The current state of a certificate. `kind` is empty if it was issued before the register existed.

    :ivar names: as formatted by `name_texts`.
    """

    serial: int
    kind: str
    name: str
    names: list[str]
    until: datetime
    key: str
    revoked: RevokeEvent | None = None

    def state(self, now: datetime) -> str:
        """Describe the state: valid, expired or revoked, and since or until when."""
        if self.revoked is not None:
            reason = "" if self.revoked.reason == "unspecified" else f" ({self.revoked.reason})"
            return f"revoked on {self.revoked.at:%Y-%m-%d}{reason}"
        return "expired" if self.until <= now else f"valid until {self.until:%Y-%m-%d}"


_decoder = msgspec.json.Decoder(IssueEvent | RevokeEvent)


def record_issue(directory: Path, kind: str, name: str, leaf: x509.Certificate) -> None:
    """Append a new certificate. Called before the certificate is handed out, so that none is missing.

    :raises PkiError: if the register cannot be written.
    """
    _append(
        directory,
        IssueEvent(
            serial=f"{leaf.serial_number:x}",
            kind=kind,
            name=name,
            names=names_of(leaf),
            until=leaf.not_valid_after_utc,
            key=key_digest(leaf),
            at=datetime.now(UTC),
        ),
    )


def record_revocation(directory: Path, entry: Entry, reason: str) -> None:
    """Append the revocation of a certificate.

    :raises PkiError: if the register cannot be written.
    """
    _append(
        directory,
        RevokeEvent(
            serial=f"{entry.serial:x}",
            name=entry.name,
            until=entry.until,
            key=entry.key,
            reason=reason,
            at=datetime.now(UTC).replace(microsecond=0),
        ),
    )


def read_register(directory: Path) -> list[Entry]:
    """Return all certificates in the order of their issue; an empty list if there is no register yet.

    :raises PkiError: if the register cannot be read, or has an invalid line.
    """
    file = directory / FILE
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as wrong:
        raise PkiError(f"{file} could not be read: {wrong.strerror}. Run this as its owner.") from wrong
    entries: dict[str, Entry] = {}
    for number, line in enumerate(lines, 1):
        try:
            _take_in(entries, _decoder.decode(line))
        except (msgspec.DecodeError, ValueError) as wrong:
            raise PkiError(f"{file}: line {number} is not a valid event ({wrong}): restore the file.") from wrong
    return list(entries.values())


def _take_in(entries: dict[str, Entry], event: IssueEvent | RevokeEvent) -> None:
    serial = int(event.serial, 16)
    if isinstance(event, IssueEvent):
        entries[event.serial] = Entry(
            serial=serial, kind=event.kind, name=event.name, names=event.names, until=event.until, key=event.key
        )
        return
    known = entries.get(event.serial) or Entry(
        serial=serial, kind="", name=event.name, names=[], until=event.until, key=event.key
    )
    entries[event.serial] = msgspec.structs.replace(known, revoked=event)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lock the register, and the files derived from it, against changes by other processes.

    :raises PkiError: if the directory cannot be written, or the lock cannot be taken.
    """
    lock = directory / f".{FILE}.lock"
    with ExitStack() as held:
        try:
            held.enter_context(locked_file(lock))
        except NotLockedError as wrong:
            raise PkiError(
                f"{wrong}. The directory must be on a file system with locks, such as a local disk."
            ) from wrong
        except OSError as wrong:
            raise PkiError(
                f"{lock} could not be written: {wrong.strerror}. Run this as the owner of the directory."
            ) from wrong
        yield


def _append(directory: Path, event: IssueEvent | RevokeEvent) -> None:
    file = directory / FILE
    try:
        handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(handle, msgspec.json.encode(event) + b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as wrong:
        raise PkiError(f"{file} could not be written: {wrong.strerror}. Run this as the owner of the file.") from wrong


def kind_of(leaf: x509.Certificate) -> str:
    """Return the kind of a certificate by its names: ``controller``, ``server``, or else ``user``."""
    names = names_of(leaf)
    if any(name.startswith("URI:scistream:controller:") for name in names):
        return "controller"
    return "server" if any(name.startswith(("DNS:", "IP:")) for name in names) else "user"


def key_digest(holder: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """Return the SHA-256 of the public key (DER) in hex, which operators can compare by telephone."""
    der = holder.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    return digest.finalize().hex()
