"""The files behind a control link: certificates, keys, authorities, and lists of what was revoked (CRLs).

`read_material` reads all that a party's settings name, at one moment, and checks what can be checked without a far
end; tls.py makes contexts of it. Nothing here writes a file, and no key is ever part of a message.
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
"""The kinds of key that certificates here may have."""

WEAK_HASHES = frozenset({"md5", "sha1"})
"""What nothing may be signed with."""

_MOST_TEXT = 200
_CRL_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)


class CertificateError(Exception):
    """A certificate, or a file of one, is not what it should be. The message is a sentence with the remedy."""


@dataclass(frozen=True)
class CertificateFiles:
    """With what a party shows itself (a chain and its key), which authorities it believes, and what they revoked.

    :ivar crl: files of CRLs; with none, nobody is asked whether a certificate was revoked.
    """

    certificate: Path
    key: Path
    authorities: tuple[Path, ...]
    crl: tuple[Path, ...] = ()


@dataclass(frozen=True)
class HeldCertificate:
    """A certificate, and the file that it stands in."""

    file: Path
    certificate: x509.Certificate


@dataclass(frozen=True)
class HeldCrl:
    """A CRL, and the file that it stands in."""

    file: Path
    crl: x509.CertificateRevocationList


@dataclass(frozen=True)
class LoadedCertificates:
    """What the files of one party hold, read at one moment.

    :ivar chain: what it presents, its own certificate first; empty if it presents none.
    :ivar is_whole: whether the chain leads from the first certificate to a self-signed one.
    """

    chain: tuple[HeldCertificate, ...]
    key: PrivateKey | None = field(repr=False)
    authorities: tuple[HeldCertificate, ...]
    crls: tuple[HeldCrl, ...]
    is_whole: bool = False

    def refusal(self, path: Sequence[x509.Certificate]) -> str | None:
        """Why a path that was verified earlier would not be believed now: revoked, or its authority dropped.

        What has expired since then is no reason: a link ends by itself when a certificate of its path does, and a CRL
        that has expired ends no link that is there.

        :param path: the far end's certificate first, the authority last.
        :returns: words that go on after the certificate's name, or None.
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
        """When and why a certificate was revoked, in words, if it was.

        :param issuer: the certificate of its authority; None believes the CRL of that name, as is right only where
            OpenSSL has found the certificate revoked and nothing but the words are missing.
        """
        for held in self.crls:
            if held.crl.issuer == certificate.issuer and (issuer is None or is_signed_by(held.crl, issuer) is True):
                entry = held.crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
                if entry is not None:
                    return f"it was revoked on {entry.revocation_date_utc:%Y-%m-%d}{_reason(entry)}"
        return None

    def gaps(self, now: datetime) -> list[str]:
        """What makes the CRLs refuse certificates that nobody has revoked, a sentence each with the remedy."""
        if not self.crls:
            return []
        found = []
        for held in self.crls:
            until = held.crl.next_update_utc
            if until is not None and until <= now:
                found.append(
                    f"the CRL {held.file} of {name_of(held.crl.issuer)} has expired on {until:%Y-%m-%d %H:%M} UTC: "
                    "every certificate of that authority is refused until a fresh one is there (scistream pki crl, "
                    "then reload)"
                )
        for authority in self.authorities:
            if not any(is_signed_by(held.crl, authority.certificate) is True for held in self.crls):
                found.append(
                    f"no file in `crl` is from the authority {name_of(authority.certificate.subject)} of "
                    f"{authority.file}: every certificate that it has issued itself is refused until its CRL is "
                    "named there"
                )
        return found


NOT_AMONG_OURS = "its authority is not in `authorities`"


def read_material(
    certificate: Path | None, key: Path | None, authorities: Sequence[Path], crl: Sequence[Path] = ()
) -> LoadedCertificates:
    """Read all of it.

    :raises CertificateError: if a file is missing, unreadable, too readable or does not fit the others.
    """
    if not authorities:
        raise CertificateError("No authority is trusted: name at least one file in `authorities`.")
    trusted = [HeldCertificate(path, each) for path in authorities for each in _load_authorities(path)]
    if (certificate is None) != (key is None):
        raise CertificateError("A certificate and its key go together: set both `certificate` and `key`, or neither.")
    chain: tuple[HeldCertificate, ...] = ()
    is_whole = False
    private_key = None
    if certificate is not None and key is not None:
        chain = tuple(HeldCertificate(certificate, each) for each in load_certificates(certificate, "certificate"))
        private_key = load_key(key)
        _check_pair(chain[0].certificate, certificate, private_key, key)
        chain, is_whole = _completed(chain, trusted)
    believed = [held.certificate for held in trusted]
    crls = tuple(HeldCrl(path, each) for path in crl for each in _load_crls(path, believed))
    return LoadedCertificates(chain, private_key, tuple(trusted), crls, is_whole)


def path_upwards(leaf: x509.Certificate, others: Sequence[x509.Certificate]) -> tuple[list[x509.Certificate], bool]:
    """From a certificate upwards as far as the others lead, and whether that is to a self-signed end."""
    path = [leaf]
    while has_issued(path[-1], path[-1]) is False:
        issuer = next((each for each in others if each not in path and has_issued(each, path[-1]) is not False), None)
        if issuer is None:
            return path, False
        path.append(issuer)
    return path, True


def has_issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool | None:
    """Whether one certificate has signed the other; None if it bears that name and this cannot be checked here.

    Nothing is trusted for it: whoever is dialled by, or dials, the owner of the certificate checks for himself.
    """
    if issuer.subject != certificate.issuer:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except InvalidSignature:
        return False
    except UnsupportedAlgorithm:
        return None
    except (ValueError, TypeError):  # signed by another kind of key than this one
        return False
    return True


def _completed(
    chain: tuple[HeldCertificate, ...], trusted: Sequence[HeldCertificate]
) -> tuple[tuple[HeldCertificate, ...], bool]:
    """A chain with what its file lacks and `authorities` have, and whether it leads to a self-signed certificate."""
    present = [held.certificate for held in chain]
    path, is_whole = path_upwards(present[0], [*present[1:], *(held.certificate for held in trusted)])
    missing = [certificate for certificate in path if certificate not in present]
    added = (next(held for held in trusted if held.certificate == certificate) for certificate in missing)
    return (*chain, *added), is_whole


def is_signed_by(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool | None:
    """Whether a CRL is this authority's; None if it cannot be checked here."""
    if crl.issuer != issuer.subject:
        return False
    try:
        return crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except InvalidSignature:
        return False
    except Exception:  # a kind of key or signature that the library does not know: it has several exceptions for it
        return None


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether a certificate says that it may sign others."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False


def printable(text: str) -> str:
    """Words of the far end, or of a file, as a log may hold them: printable, and not too many."""
    return errors.printable(text[:_MOST_TEXT])


def name_of(name: x509.Name) -> str:
    """A distinguished name for people."""
    return printable(name.rfc4514_string()) or "one without a name"


def load_certificates(path: Path, setting: str) -> list[x509.Certificate]:
    """All certificates of a PEM file, at least one.

    :raises CertificateError: if there is none, or it cannot be read.
    """
    data = _read(path, setting)
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as wrong:
        raise CertificateError(
            f"{path} holds no certificates in PEM form: {wrong}. Correct the file, or the setting `{setting}`."
        ) from wrong


def load_key(path: Path) -> PrivateKey:
    """A private key that only its owner can read.

    :raises CertificateError: if it is none, is locked, or others may read it.
    """
    data = _read(path, "key", secret=True)
    try:
        key = serialization.load_pem_private_key(data, None)
    except TypeError as wrong:
        raise CertificateError(
            f"{path} is locked with a passphrase, which a server cannot be asked for: store the key without one."
        ) from wrong
    except Exception as wrong:  # ValueError, or UnsupportedAlgorithm, which is no subclass of it
        raise CertificateError(
            f"{path} holds no private key in PEM form: {wrong}. Correct the file, or the setting `key`."
        ) from wrong
    if not isinstance(key, PrivateKey):
        raise CertificateError(
            f"{path} is a key of another kind than elliptic curve, Ed25519, Ed448 and RSA: have one of these issued."
        )
    return key


def exposure(found: os.stat_result) -> str | None:
    """Why the file of a private key is not safe, with its mode; None if it is.

    A group may read what belongs to root: so are secrets handed to a service by systemd and by Kubernetes.
    """
    mode = stat.S_IMODE(found.st_mode)
    allowed = 0o740 if found.st_uid == 0 else 0o700
    if not mode & 0o777 & ~allowed:
        return None
    return f"others than its owner may use it (mode {mode:04o})"


def _read(path: Path, setting: str, *, secret: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            exposed = exposure(os.fstat(file.fileno())) if secret else None
            if exposed is not None:
                raise CertificateError(
                    f"{path} is a private key and {exposed}: run chmod 600 {path}, or let it belong to root with mode "
                    "0640 and the group of this service."
                )
            return file.read()
    except FileNotFoundError as wrong:
        command = "crl" if setting == "crl" else "issue"
        raise CertificateError(
            f"{path} is not there: have it made (scistream pki {command}), or correct the setting `{setting}`."
        ) from wrong
    except OSError as wrong:
        raise CertificateError(
            f"{path} could not be read: {wrong.strerror}. Let this user read it, or correct the setting `{setting}`."
        ) from wrong


def _load_authorities(path: Path) -> Iterable[x509.Certificate]:
    for authority in load_certificates(path, "authorities"):
        if not is_authority(authority):
            raise CertificateError(
                f"{path} has a certificate that is not an authority's, {printable(authority.subject.rfc4514_string())}"
                ": name the authority's own file in `authorities`."
            )
        yield authority


def _load_crls(path: Path, authorities: Sequence[x509.Certificate]) -> list[x509.CertificateRevocationList]:
    """All CRLs of a PEM file, at least one."""
    blocks = _CRL_BLOCK.findall(_read(path, "crl"))
    try:
        if not blocks:
            raise ValueError("nothing in it looks like one")
        crls = [x509.load_pem_x509_crl(block) for block in blocks]
        for crl in crls:
            _ = crl.next_update_utc, crl.extensions, list(crl)  # what is read only when it is asked for
    except ValueError as wrong:
        raise CertificateError(
            f"{path} holds no list of revoked certificates (CRL) in PEM form: {wrong}. Correct the file, or the "
            "setting `crl`."
        ) from wrong
    for crl in crls:
        verdicts = [is_signed_by(crl, authority) for authority in authorities if _may_be_of(crl, authority)]
        if not verdicts or True in verdicts:
            continue
        what = f"{path} has a CRL in the name of {name_of(crl.issuer)}"
        if None in verdicts:
            raise CertificateError(
                f"{what}, and its signature ({algorithm_of(crl)}) cannot be checked here: whether it is right is not "
                "known. Have the authority sign by ECDSA, RSA, Ed25519 or Ed448."
            )
        raise CertificateError(
            f"{what}, and the signature is not that authority's: have it made again (scistream pki crl)."
        )
    return crls


def algorithm_of(signed: x509.Certificate | x509.CertificateRevocationList) -> str:
    """What something is signed by, as far as the library has a name for it."""
    oid = signed.signature_algorithm_oid
    return oid.dotted_string if oid._name == "Unknown OID" else oid._name


def _may_be_of(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    """Whether a CRL says that it is this authority's, and not of another one of the same name, as after a rollover."""
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
        raise CertificateError(f"{certificate} holds a public key that cannot be used: {wrong}.") from wrong
    if not fits:
        raise CertificateError(
            f"The key {key} does not belong to the certificate {certificate}, or the latter does not begin with the "
            "certificate of its owner: name the two files that were issued together."
        )


def _reason(entry: x509.RevokedCertificate) -> str:
    try:
        reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    except (x509.ExtensionNotFound, ValueError):
        return ""
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in reason.value)
    return "" if reason is x509.ReasonFlags.unspecified else f" ({words})"


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)
