"""What an authority has issued and revoked: the file ``issued.jsonl`` in its directory, one line an event.

The register knows certificates whose files are lost, so that these can be revoked all the same. Lines are only ever
added, under a lock. It holds nothing secret; losing it loses no certificate, only the means to revoke by name.
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
    """An authority or a certificate could not be made. The message is a sentence with the remedy."""


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
    """A certificate as the register knows it now. `kind` is empty for one that was issued before there was a register.

    :ivar names: in the form of `name_texts`.
    """

    serial: int
    kind: str
    name: str
    names: list[str]
    until: datetime
    key: str
    revoked: RevokeEvent | None = None

    def state(self, now: datetime) -> str:
        """In words."""
        if self.revoked is not None:
            reason = "" if self.revoked.reason == "unspecified" else f" ({self.revoked.reason})"
            return f"revoked on {self.revoked.at:%Y-%m-%d}{reason}"
        return "expired" if self.until <= now else f"valid until {self.until:%Y-%m-%d}"


_decoder = msgspec.json.Decoder(IssueEvent | RevokeEvent)


def record_issue(directory: Path, kind: str, name: str, leaf: x509.Certificate) -> None:
    """Write down a certificate; before it is handed out, so that none is unknown.

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
    """Write down that a certificate is revoked.

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
    """All certificates, in the order in which they were issued; none if there is no register yet.

    :raises PkiError: if it cannot be read, or a line of it is none.
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
            raise PkiError(f"{file}: line {number} is no line of a register ({wrong}): restore the file.") from wrong
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
    """Nobody else who asks for this changes the register, or what is made of it, meanwhile.

    :raises PkiError: if the directory cannot be written, or its lock is not had.
    """
    lock = directory / f".{FILE}.lock"
    with ExitStack() as held:
        try:
            held.enter_context(locked_file(lock))
        except NotLockedError as wrong:
            raise PkiError(
                f"{wrong}. The pki has to lie on a file system that has locks, such as a local disk."
            ) from wrong
        except OSError as wrong:
            raise PkiError(
                f"{lock} could not be written: {wrong.strerror}. Run this as the owner of the pki."
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
        raise PkiError(f"{file} could not be written: {wrong.strerror}. Run this as the owner of the pki.") from wrong


def kind_of(leaf: x509.Certificate) -> str:
    """Whom a certificate is for, by its names: a controller, a server, or else a user."""
    names = names_of(leaf)
    if any(name.startswith("URI:scistream:controller:") for name in names):
        return "controller"
    return "server" if any(name.startswith(("DNS:", "IP:")) for name in names) else "user"


def key_digest(holder: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """The SHA-256 of a public key (DER), in hex: what people compare by telephone."""
    der = holder.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    return digest.finalize().hex()
