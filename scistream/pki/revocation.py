"""Revoke and renew the certificates of an authority, and write its CRL (``crl.pem`` in its directory).

A revocation is written to the register first and to the CRL second, so the CRL can always be rebuilt.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from scistream.pki.authority import (
    BACKDATE,
    Authority,
    Issued,
    Kind,
    certify,
    check_days,
    files_of,
    hash_for,
    issuer_id,
    key_pem,
    load_authority,
    pem_of,
    replace_files,
)
from scistream.pki.enrolment import CertificateRequest, check_key_is_new_or_good, check_names_asked
from scistream.pki.register import (
    Entry,
    PkiError,
    key_digest,
    kind_of,
    locked,
    read_register,
    record_issue,
    record_revocation,
)
from scistream.tls.certificate_names import names_of
from scistream.tls.files import algorithm_of

CRL_DAYS = 90
REASONS = {
    "unspecified": x509.ReasonFlags.unspecified,
    "keyCompromise": x509.ReasonFlags.key_compromise,
    "affiliationChanged": x509.ReasonFlags.affiliation_changed,
    "superseded": x509.ReasonFlags.superseded,
    "cessationOfOperation": x509.ReasonFlags.cessation_of_operation,
    "privilegeWithdrawn": x509.ReasonFlags.privilege_withdrawn,
}

_KEEP = timedelta(days=30)
"""How long a revoked certificate stays in the CRL after it has expired."""


def revoke(directory: Path, which: str, reason: str = "unspecified", days: int = CRL_DAYS) -> list[Entry]:
    """Revoke a certificate, or all certificates of a name that have not expired, and write a new CRL.

    :param which: the name of a certificate of this authority, a certificate's file, or a serial number in hex.
    :param days: how long the CRL is valid.
    :returns: the certificates that were not revoked before.
    :raises PkiError: if no such certificate is known, or it is of another authority, or revoked already.
    """
    check_days(days)
    if reason not in REASONS:
        raise PkiError(f"{reason!r} is not a reason: choose one of {', '.join(REASONS)}.")
    authority = load_authority(directory)
    _check_may_sign_crls(authority, directory)
    with locked(directory):
        found = _find(directory, authority.certificate, which)
        fresh = [entry for entry in found if entry.revoked is None]
        if not fresh:
            raise PkiError(f"{which} was already {found[0].state(datetime.now(UTC))}: nothing has changed.")
        for entry in fresh:
            record_revocation(directory, entry, reason)
        _write_crl(directory, authority, days)
    return fresh


def make_crl(directory: Path, days: int = CRL_DAYS) -> x509.CertificateRevocationList:
    """Write a new CRL: ``crl.pem``, replacing the old one.

    :param days: how long the CRL is valid.
    :raises PkiError: if there is no authority, or it may not sign CRLs.
    """
    check_days(days)
    authority = load_authority(directory)
    _check_may_sign_crls(authority, directory)
    with locked(directory):
        return _write_crl(directory, authority, days)


def _check_may_sign_crls(authority: Authority, directory: Path) -> None:
    try:
        may = authority.certificate.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
    except x509.ExtensionNotFound:
        return
    if not may:
        raise PkiError(f"The authority in {directory} may not sign CRLs (by its key usage): use one that may.")


def _find(directory: Path, authority: x509.Certificate, which: str) -> list[Entry]:
    entries = read_register(directory)
    now = datetime.now(UTC)
    named = [entry for entry in entries if entry.name == which]
    if named:
        return [entry for entry in named if entry.until > now or entry.revoked is not None] or named
    by_serial = [entry for entry in entries if f"{entry.serial:x}" == which.lower().replace(":", "").lstrip("0")]
    if by_serial:
        return by_serial
    for path in (Path(which), files_of(directory, which).certificate):
        if path.is_file():
            return [_entry_of_file(path, authority, entries)]
    raise PkiError(
        f"{which} is neither the name or serial number of a certificate of this authority nor a file: scistream pki "
        f"list {directory} lists all certificates."
    )


def _entry_of_file(path: Path, authority: x509.Certificate, entries: list[Entry]) -> Entry:
    leaf = _load_leaf(path)
    try:
        leaf.verify_directly_issued_by(authority)
    except UnsupportedAlgorithm as wrong:
        raise PkiError(
            f"The signature of {path} cannot be checked here ({algorithm_of(leaf)}): use its serial number."
        ) from wrong
    except (InvalidSignature, ValueError, TypeError) as wrong:
        raise PkiError(
            f"{path} is not a certificate of this authority: only the authority that issued it can revoke it."
        ) from wrong
    if leaf == authority:
        raise PkiError(f"{path} is the authority itself, which cannot be revoked: create a new authority.")
    known = next((entry for entry in entries if entry.serial == leaf.serial_number), None)
    return known or Entry(
        serial=leaf.serial_number,
        kind=kind_of(leaf),
        name=path.stem,
        names=names_of(leaf),
        until=leaf.not_valid_after_utc,
        key=key_digest(leaf),
    )


def _load_leaf(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())[0]
    except OSError as wrong:
        raise PkiError(f"{path} could not be read: {wrong.strerror}.") from wrong
    except ValueError as wrong:
        raise PkiError(f"{path} contains no certificate in PEM form: {wrong}.") from wrong


def _write_crl(directory: Path, authority: Authority, days: int) -> x509.CertificateRevocationList:
    now = datetime.now(UTC).replace(microsecond=0)
    file = directory / "crl.pem"
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now - BACKDATE)
        .next_update(now + timedelta(days=days))
        .add_extension(x509.CRLNumber(max(_number(file) + 1, int(now.timestamp()))), critical=False)
        .add_extension(issuer_id(authority.certificate), critical=False)
    )
    for entry in read_register(directory):
        if entry.revoked is not None and entry.until > now - _KEEP:
            one = x509.RevokedCertificateBuilder().serial_number(entry.serial).revocation_date(entry.revoked.at)
            if entry.revoked.reason != "unspecified":
                one = one.add_extension(x509.CRLReason(REASONS[entry.revoked.reason]), critical=False)
            builder = builder.add_revoked_certificate(one.build())
    crl = builder.sign(authority.key, hash_for(authority.key))
    replace_files((file, crl.public_bytes(serialization.Encoding.PEM), 0o644))
    return crl


def _number(file: Path) -> int:
    """Return the number of the current CRL, which the next one has to exceed; 0 if there is none."""
    try:
        old = x509.load_pem_x509_crl(file.read_bytes())
        return old.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (OSError, ValueError, x509.ExtensionNotFound):
        return 0


# -- renewal


def renew(directory: Path, name: str, days: int, request: CertificateRequest | None = None) -> tuple[Issued, Entry]:
    """Issue a new certificate with the names and kind of the certificate `name`, and replace its files.

    :param request: for a key that stays where it is; None creates a new key here.
    :returns: the files, and the old certificate, which stays valid until it expires.
    :raises PkiError: if the certificate is unknown or revoked, its key was made elsewhere, or the request is refused.
    """
    check_days(days)
    authority = load_authority(directory)
    files = files_of(directory, name)
    old = _latest(directory, authority.certificate, name)
    if old.revoked is not None:
        raise PkiError(
            f"{name} was {old.state(datetime.now(UTC))}, so it cannot be renewed: to certify {name} again, move "
            f"{files.certificate} away and issue or sign a new certificate."
        )
    names = [general_name(text) for text in old.names]
    kind = cast(Kind, old.kind)
    if request is not None:
        check_names_asked(request, names)
        check_key_is_new_or_good(directory, request, authority.certificate)
        _check_same_key(files, request.csr)
        leaf = certify(authority, kind, name, names, request.csr.public_key(), days)
        record_issue(directory, kind, name, leaf)
        replace_files((files.certificate, pem_of(leaf, *authority.chain), 0o644))
        return files, old
    if not files.key.exists():
        raise PkiError(
            f"{files.key} does not exist: the key of {name} was made elsewhere and stays there. Have a request made "
            "there (scistream pki request), and name it with --csr."
        )
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = certify(authority, kind, name, names, key.public_key(), days)
    record_issue(directory, kind, name, leaf)
    replace_files((files.key, key_pem(key), 0o600), (files.certificate, pem_of(leaf, *authority.chain), 0o644))
    return files, old


def _latest(directory: Path, authority: x509.Certificate, name: str) -> Entry:
    entries = read_register(directory)
    named = [entry for entry in entries if entry.name == name and entry.kind]
    if named:
        return named[-1]
    path = files_of(directory, name).certificate
    if not path.is_file():
        raise PkiError(
            f"{name} was not issued here: scistream pki list {directory} lists all certificates, and scistream pki "
            "issue makes a first one."
        )
    return _entry_of_file(path, authority, entries)


def _check_same_key(files: Issued, request: x509.CertificateSigningRequest) -> None:
    """Refuse a request whose key is not the one stored here, since key and certificate would no longer match."""
    if not files.key.exists():
        return
    try:
        own = serialization.load_pem_private_key(files.key.read_bytes(), None).public_key()
    except (OSError, ValueError, TypeError):
        own = None
    if own != request.public_key():
        raise PkiError(
            f"{files.key} is not the key of the request: move it away if the key is kept elsewhere from now on, or "
            "leave --csr out."
        )


def general_name(text: str) -> x509.GeneralName:
    """Parse a name that `name_texts` has formatted.

    :raises PkiError: if it is of a kind that is never issued here.
    """
    kind, _, value = text.partition(":")
    if kind == "IP":
        return x509.IPAddress(ip_address(value))
    makers: dict[str, type[x509.DNSName] | type[x509.RFC822Name] | type[x509.UniformResourceIdentifier]] = {
        "DNS": x509.DNSName,
        "email": x509.RFC822Name,
        "URI": x509.UniformResourceIdentifier,
    }
    if kind not in makers:
        raise PkiError(f"The name {text} is of a kind that is not issued here: issue a new certificate.")
    return makers[kind](value)
