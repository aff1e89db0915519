"""The files behind a control link: certificates, keys, authorities and CRLs.

`read_material` reads all files that a party's settings name, and checks everything that can be checked without a peer;
contexts.py makes contexts of the result. Nothing here writes a file, and no message contains a key.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from scistream.protocol import errors

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
"""The kinds of keys that certificates may have."""

WEAK_HASHES = frozenset({"md5", "sha1"})
"""Hashes that are refused in signatures."""

_MOST_TEXT = 200
_CRL_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)


class CertificateError(Exception):
    """A certificate or a file cannot be used. The message is a sentence with the reason and the remedy."""


@dataclass(frozen=True)
class CertificateFiles:
    """The files of a party: its certificate chain and key, the authorities that it trusts, and their CRLs.

    :ivar crl: files of CRLs; without any, revocation is not checked.
    """

    certificate: Path
    key: Path
    authorities: tuple[Path, ...]
    crl: tuple[Path, ...] = ()


@dataclass(frozen=True)
class HeldCertificate:
    """A certificate, and the file that it was read from."""

    file: Path
    certificate: x509.Certificate


@dataclass(frozen=True)
class HeldCrl:
    """A CRL, and the file that it was read from."""

    file: Path
    crl: x509.CertificateRevocationList


@dataclass(frozen=True)
class LoadedCertificates:
    """The contents of the files of one party.

    :ivar chain: the certificates that the party shows, its own first; empty if it shows none.
    :ivar is_whole: whether the chain leads from the first certificate to a self-signed one.
    """

    chain: tuple[HeldCertificate, ...]
    key: PrivateKey | None = field(repr=False)
    authorities: tuple[HeldCertificate, ...]
    crls: tuple[HeldCrl, ...]
    is_whole: bool = False

    def refusal(self, path: Sequence[x509.Certificate]) -> str | None:
        """Return why a path that was verified earlier would be refused now: it was revoked, or its authority removed.

        Expiry is not a reason here: a link closes when a certificate of its path expires, and an expired CRL closes no
        established link.

        :param path: the peer's certificate first, the authority last.
        :returns: a clause that continues a sentence about the certificate, or None.
        """
        ours = {held.certificate for held in self.authorities}
        if not path or path[-1] not in ours:
            return NOT_AMONG_OURS
        for certificate, issuer in zip(path, (*path[1:], path[-1]), strict=True):
            revoked = self.revoked(certificate, issuer)
            if revoked is not None:
                return revoked
        return None

    def revoked(self, certificate: x509.Certificate, issuer: x509.Certificate | None = None) -> str | None:
        """Return when and why a certificate was revoked, as a clause, or None if it was not.

        :param issuer: the certificate of its authority. With None the CRL's signature is not checked, which is safe
            only if OpenSSL has already found the certificate revoked and just the explanation is needed.
        """
        for held in self.crls:
            if held.crl.issuer == certificate.issuer and (issuer is None or is_signed_by(held.crl, issuer) is True):
                entry = held.crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
                if entry is not None:
                    return f"it was revoked on {entry.revocation_date_utc:%Y-%m-%d}{_reason(entry)}"
        return None

    def gaps(self, now: datetime) -> list[str]:
        """Return why certificates are refused although they are not revoked: a sentence for each gap in the CRLs."""
        if not self.crls:
            return []
        found = []
        for held in self.crls:
            until = held.crl.next_update_utc
            if until is not None and until <= now:
                found.append(
                    f"the CRL {held.file} of {name_of(held.crl.issuer)} expired on {until:%Y-%m-%d %H:%M} UTC: "
                    "every certificate of that authority is refused until it is replaced (scistream pki crl, then "
                    "reload)"
                )
        for authority in self.authorities:
            if not any(is_signed_by(held.crl, authority.certificate) is True for held in self.crls):
                found.append(
                    f"no file in `crl` is from the authority {name_of(authority.certificate.subject)} of "
                    f"{authority.file}: every certificate that it issued directly is refused until its CRL is added"
                )
        return found


NOT_AMONG_OURS = "its authority is not in `authorities`"


def read_material(
    certificate: Path | None, key: Path | None, authorities: Sequence[Path], crl: Sequence[Path] = ()
) -> LoadedCertificates:
    """Read and check all files of a party.

    :raises CertificateError: if a file is missing, unreadable, readable by others, or does not match the others.
    """
    if not authorities:
        raise CertificateError("`authorities` is empty, so no peer would be trusted: add at least one file.")
    trusted = [HeldCertificate(path, each) for path in authorities for each in _load_authorities(path)]
    if (certificate is None) != (key is None):
        raise CertificateError("Only one of `certificate` and `key` is set: set both or neither.")
    chain: tuple[HeldCertificate, ...] = ()
    is_whole = False
    private_key = None
    if certificate is not None and key is not None:
        chain = tuple(HeldCertificate(certificate, each) for each in load_certificates(certificate, "certificate"))
        private_key = load_key(key)
        _check_pair(chain[0].certificate, certificate, private_key, key)
        chain, is_whole = completed(chain, trusted)
    believed = [held.certificate for held in trusted]
    crls = tuple(HeldCrl(path, each) for path in crl for each in _load_crls(path, believed))
    return LoadedCertificates(chain, private_key, tuple(trusted), crls, is_whole)


def path_upwards(leaf: x509.Certificate, others: Sequence[x509.Certificate]) -> tuple[list[x509.Certificate], bool]:
    """Return the path from `leaf` upwards as far as `others` lead, and whether it ends at a self-signed certificate."""
    path = [leaf]
    while has_issued(path[-1], path[-1]) is False:
        issuer = next((each for each in others if each not in path and has_issued(each, path[-1]) is not False), None)
        if issuer is None:
            return path, False
        path.append(issuer)
    return path, True


def has_issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool | None:
    """Return whether `issuer` signed `certificate`; None if the name matches but the signature cannot be checked here.

    This decides only which certificates are sent, not whom to trust: each peer verifies the chain itself.
    """
    if issuer.subject != certificate.issuer:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except InvalidSignature:
        return False
    except UnsupportedAlgorithm:
        return None
    except (ValueError, TypeError):  # signed by a key of another kind
        return False
    return True


def completed(
    chain: tuple[HeldCertificate, ...], trusted: Sequence[HeldCertificate]
) -> tuple[tuple[HeldCertificate, ...], bool]:
    """Complete a chain from `trusted`, and return whether it then leads to a self-signed certificate."""
    present = [held.certificate for held in chain]
    path, is_whole = path_upwards(present[0], [*present[1:], *(held.certificate for held in trusted)])
    missing = [certificate for certificate in path if certificate not in present]
    added = (next(held for held in trusted if held.certificate == certificate) for certificate in missing)
    return (*chain, *added), is_whole


def is_signed_by(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool | None:
    """Return whether `issuer` signed a CRL; None if the signature cannot be checked here."""
    if crl.issuer != issuer.subject:
        return False
    try:
        return crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except InvalidSignature:
        return False
    except Exception:  # cryptography raises several types for keys and signatures that it does not support
        return None


def is_authority(certificate: x509.Certificate) -> bool:
    """Return True if a certificate is one of an authority, by its BasicConstraints."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False


def printable(text: str) -> str:
    """Return text of a peer or a file for use in a log: printable, and of limited length."""
    return errors.printable(text[:_MOST_TEXT])


def name_of(name: x509.Name) -> str:
    """Format a distinguished name."""
    return printable(name.rfc4514_string()) or "one without a name"


def load_certificates(path: Path, setting: str) -> list[x509.Certificate]:
    """Return all certificates in a PEM file, at least one.

    :param setting: the setting that names the file, for the message.
    :raises CertificateError: if there is none, or the file cannot be read.
    """
    data = _read(path, setting)
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as wrong:
        raise CertificateError(
            f"{path} contains no certificate in PEM form: {wrong}. Correct the file or the setting `{setting}`."
        ) from wrong


def load_key(path: Path) -> PrivateKey:
    """Load a private key from a file that only its owner may read.

    :raises CertificateError: if it is not a private key, is encrypted, or others may read the file.
    """
    data = _read(path, "key", secret=True)
    try:
        key = serialization.load_pem_private_key(data, None)
    except TypeError as wrong:
        raise CertificateError(
            f"{path} is encrypted with a passphrase, which a server cannot ask for: store the key without one."
        ) from wrong
    except Exception as wrong:  # ValueError, or UnsupportedAlgorithm, which is no subclass of it
        raise CertificateError(
            f"{path} contains no private key in PEM form: {wrong}. Correct the file or the setting `key`."
        ) from wrong
    if not isinstance(key, PrivateKey):
        raise CertificateError(
            f"{path} is a key of an unsupported kind: use an elliptic-curve, Ed25519, Ed448 or RSA key."
        )
    return key


def exposure(found: os.stat_result) -> str | None:
    """Return why the mode of a private key's file is not safe; None if it is.

    A group may read a file of root, since systemd and Kubernetes pass secrets to services like that.
    """
    mode = stat.S_IMODE(found.st_mode)
    allowed = 0o740 if found.st_uid == 0 else 0o700
    if not mode & 0o777 & ~allowed:
        return None
    return f"other users may access it (mode {mode:04o})"


def _read(path: Path, setting: str, *, secret: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            exposed = exposure(os.fstat(file.fileno())) if secret else None
            if exposed is not None:
                raise CertificateError(
                    f"{path} is a private key and {exposed}: run chmod 600 {path}, or make it owned by root with mode "
                    "0640 and the group of this service."
                )
            return file.read()
    except FileNotFoundError as wrong:
        command = "crl" if setting == "crl" else "issue"
        raise CertificateError(
            f"{path} does not exist: create it (scistream pki {command}), or correct the setting `{setting}`."
        ) from wrong
    except OSError as wrong:
        raise CertificateError(
            f"{path} could not be read: {wrong.strerror}. Make it readable, or correct the setting `{setting}`."
        ) from wrong


def _load_authorities(path: Path) -> Iterable[x509.Certificate]:
    for authority in load_certificates(path, "authorities"):
        if not is_authority(authority):
            raise CertificateError(
                f"{path} contains {printable(authority.subject.rfc4514_string())}, which is not the certificate of an "
                "authority: name the authority's own file in `authorities`."
            )
        yield authority


def _load_crls(path: Path, authorities: Sequence[x509.Certificate]) -> list[x509.CertificateRevocationList]:
    """Return all CRLs in a PEM file, at least one, checked against `authorities`."""
    blocks = _CRL_BLOCK.findall(_read(path, "crl"))
    try:
        if not blocks:
            raise ValueError("it has no CRL block")
        crls = [x509.load_pem_x509_crl(block) for block in blocks]
        for crl in crls:
            _ = crl.next_update_utc, crl.extensions, list(crl)  # parsed lazily: errors should appear here
    except ValueError as wrong:
        raise CertificateError(
            f"{path} contains no CRL (list of revoked certificates) in PEM form: {wrong}. Correct the file or the "
            "setting `crl`."
        ) from wrong
    for crl in crls:
        verdicts = [is_signed_by(crl, authority) for authority in authorities if _may_be_of(crl, authority)]
        if not verdicts or True in verdicts:
            continue
        what = f"{path} has a CRL with the issuer {name_of(crl.issuer)}"
        if None in verdicts:
            raise CertificateError(
                f"{what}, but its signature ({algorithm_of(crl)}) cannot be checked here: have the authority sign with "
                "ECDSA, RSA, Ed25519 or Ed448."
            )
        raise CertificateError(
            f"{what}, but the signature is not that authority's: have it made again (scistream pki crl)."
        )
    return crls


def algorithm_of(signed: x509.Certificate | x509.CertificateRevocationList) -> str:
    """Return the name of the signature algorithm, or its OID if the library has no name for it."""
    oid = signed.signature_algorithm_oid
    return oid.dotted_string if oid._name == "Unknown OID" else oid._name


def _may_be_of(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    """Return whether a CRL claims to be this authority's.

    After a rollover two authorities may have the same name; the key identifiers then tell them apart.
    """
    if crl.issuer != authority.subject:
        return False
    try:
        meant = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return True
    return meant is None or meant == own


def _check_pair(leaf: x509.Certificate, certificate: Path, private_key: PrivateKey, key: Path) -> None:
    try:
        fits = leaf.public_key() == private_key.public_key()
    except Exception as wrong:
        raise CertificateError(f"{certificate} has a public key that cannot be used: {wrong}.") from wrong
    if not fits:
        raise CertificateError(
            f"The key {key} does not belong to the first certificate in {certificate}: use the two files that were "
            "issued together."
        )


def _reason(entry: x509.RevokedCertificate) -> str:
    try:
        reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    except (x509.ExtensionNotFound, ValueError):
        return ""
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in reason.value)
    return "" if reason is x509.ReasonFlags.unspecified else f" ({words})"


def utc_now() -> datetime:
    """Return the time of the wall clock."""
    return datetime.now(UTC)
