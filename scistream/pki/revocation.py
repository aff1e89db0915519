"""Revoking what an authority has issued, its CRL (``crl.pem`` in its directory), and renewing before the end.

What is revoked is in the register first and in the CRL then; a CRL can be made from the register at any time.
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
"""How long a revoked certificate stays in the CRL after its own end."""


def revoke(directory: Path, which: str, reason: str = "unspecified", days: int = CRL_DAYS) -> list[Entry]:
    """Revoke a certificate, or all of one name that have not expired, and make a new CRL.

    :param which: a name that was issued here, a certificate's file, or a serial number in hex.
    :param days: until the CRL has to be made anew.
    :returns: what is revoked by this, and was not before.
    :raises PkiError: if it is not known, not of this authority, or revoked already.
    """
    check_days(days)
    if reason not in REASONS:
        raise PkiError(f"{reason!r} is no reason: choose one of {', '.join(REASONS)}.")
    authority = load_authority(directory)
    _check_may_sign_crls(authority, directory)
    with locked(directory):
        found = _find(directory, authority.certificate, which)
        fresh = [entry for entry in found if entry.revoked is None]
        if not fresh:
            raise PkiError(f"{which} was {found[0].state(datetime.now(UTC))} already: nothing has changed.")
        for entry in fresh:
            record_revocation(directory, entry, reason)
        _write_crl(directory, authority, days)
    return fresh


def make_crl(directory: Path, days: int = CRL_DAYS) -> x509.CertificateRevocationList:
    """Make the CRL anew: ``crl.pem``, in place of the old one.

    :param days: until it has to be made anew again.
    :raises PkiError: if there is no authority, or it may not.
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
        raise PkiError(f"The authority in {directory} may not sign CRLs (its key usage says so): nobody would heed it.")


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
        f"{which} is neither a name nor a serial number that was issued here, nor a file: scistream pki list "
        f"{directory} shows what there is."
    )


def _entry_of_file(path: Path, authority: x509.Certificate, entries: list[Entry]) -> Entry:
    leaf = _load_leaf(path)
    try:
        leaf.verify_directly_issued_by(authority)
    except UnsupportedAlgorithm as wrong:
        raise PkiError(
            f"{path} is signed in a way that cannot be checked here ({algorithm_of(leaf)}): use its serial number."
        ) from wrong
    except (InvalidSignature, ValueError, TypeError) as wrong:
        raise PkiError(
            f"{path} is no certificate of this authority: only the authority that issued it can revoke it."
        ) from wrong
    if leaf == authority:
        raise PkiError(f"{path} is the authority itself, which cannot revoke itself: make a new one.")
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
        raise PkiError(f"{path} holds no certificate in PEM form: {wrong}.") from wrong


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
    """The number of the CRL that is there, which the next one has to exceed."""
    try:
        old = x509.load_pem_x509_crl(file.read_bytes())
        return old.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (OSError, ValueError, x509.ExtensionNotFound):
        return 0


# -- renewal


def renew(directory: Path, name: str, days: int, request: CertificateRequest | None = None) -> tuple[Issued, Entry]:
    """Issue anew what was issued as `name`: the same names and kind, in place of the old files.

    :param request: of a key that stays where it is; without one, a new key is made here.
    :returns: the files, and what was renewed, which stays valid until its own end.
    :raises PkiError: if it is not known, was revoked, its key was never here, or the request does not fit.
    """
    check_days(days)
    authority = load_authority(directory)
    files = files_of(directory, name)
    old = _latest(directory, authority.certificate, name)
    if old.revoked is not None:
        raise PkiError(
            f"{name} was {old.state(datetime.now(UTC))}, and what is revoked is not renewed: if this is meant, move "
            f"{files.certificate} away and issue or sign it anew."
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
            f"{files.key} is not there: the key of {name} was made elsewhere and stays there. Have a request made "
            "there (scistream pki request), and give it with --csr."
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
            f"{name} was not issued here: scistream pki list {directory} shows what was, and scistream pki issue makes "
            "a first certificate."
        )
    return _entry_of_file(path, authority, entries)


def _check_same_key(files: Issued, request: x509.CertificateSigningRequest) -> None:
    """The key that lies here would not fit the certificate any more."""
    if not files.key.exists():
        return
    try:
        own = serialization.load_pem_private_key(files.key.read_bytes(), None).public_key()
    except (OSError, ValueError, TypeError):
        own = None
    if own != request.public_key():
        raise PkiError(
            f"{files.key} is here and is not the key of the request: move it away if the key is elsewhere from now on, "
            "or leave --csr out."
        )


def general_name(text: str) -> x509.GeneralName:
    """What `name_texts` has written.

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
        raise PkiError(f"The name {text} is of a kind that is not issued here: issue the certificate anew.")
    return makers[kind](value)
