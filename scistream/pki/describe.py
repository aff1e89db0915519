"""Describe a certificate, a request, a CRL or a key for ``scistream pki show``. Private keys are never shown.

The description says what SciStream makes of a certificate: under which names clients accept a server, and under which
issuer and identity an S2CS or S2DS knows a client.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID

from scistream.pki.enrolment import weakness
from scistream.pki.register import PkiError, key_digest
from scistream.tls.certificate_names import names_of
from scistream.tls.expiry import Expiry
from scistream.tls.files import (
    WEAK_HASHES,
    algorithm_of,
    exposure,
    has_issued,
    is_authority,
    name_of,
    path_upwards,
    printable,
)
from scistream.tls.purpose import usages

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_MOST_REVOKED = 20


@dataclass
class Description:
    """The description of a file, line by line, and the problems found in it."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def describe(file: Path, now: datetime, ca: Path | None = None) -> Description:
    """Describe the contents of a file.

    :param ca: a file with the authority of a certificate, if `file` does not contain it.
    :raises PkiError: if nothing in the file can be decoded.
    """
    data = _read(file)
    found = Description()
    blocks = [(match[1].decode(), match[0]) for match in _BLOCK.finditer(data)]
    certificates = [
        block for kind, block in blocks if kind in ("CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE")
    ]
    try:
        if certificates:
            chain = [x509.load_pem_x509_certificate(block) for block in certificates]
            above = x509.load_pem_x509_certificates(_read(ca)) if ca is not None else []
            _certificate(found, chain, above, now)
        for kind, block in blocks:
            if kind in ("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"):
                _request(found, x509.load_pem_x509_csr(block))
            elif kind == "X509 CRL":
                _crl(found, x509.load_pem_x509_crl(block), now)
            elif kind.endswith("PRIVATE KEY"):
                _key(found, file, kind, block, certificates)
    except ValueError as wrong:
        raise PkiError(f"{file} cannot be read: {printable(str(wrong))}.") from wrong
    if not found.lines:
        raise PkiError(f"{file} contains no certificate, request, CRL or key in PEM form.")
    return found


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as wrong:
        raise PkiError(f"{file} could not be read: {wrong.strerror}.") from wrong


# -- certificates


def _certificate(
    found: Description, chain: Sequence[x509.Certificate], above: Sequence[x509.Certificate], now: datetime
) -> None:
    leaf = chain[0]
    found.lines.append(f"certificate for: {', '.join(_names(leaf)) or name_of(leaf.subject)}")
    path, whole = path_upwards(chain[0], [*chain[1:], *above])
    if is_authority(leaf):
        found.lines.append("good for: signing certificates, as an authority (name it in `authorities`)")
    else:
        found.lines += _uses(found, leaf, path[-1] if whole else None)
    found.lines += _validity(found, "the certificate", leaf, now)
    found.lines.append(f"issuer: {name_of(leaf.issuer)}")
    found.lines.append(f"serial: {leaf.serial_number:x}")
    found.lines.append(f"SHA-256 of the certificate: {leaf.fingerprint(hashes.SHA256()).hex()}")
    found.lines.append(f"key: {key_words(leaf.public_key())}, SHA-256 {key_digest(leaf)}")
    _weaknesses(found, leaf)
    for number, each in enumerate(path[1:], 1):
        found.lines.append(
            f"chain {number}: {name_of(each.subject)}, until {each.not_valid_after_utc:%Y-%m-%d}, SHA-256 "
            f"{each.fingerprint(hashes.SHA256()).hex()}"
        )
        _validity(found, f"the authority {name_of(each.subject)}", each, now)
    if not whole:
        found.problems.append(
            "its chain does not end at a self-signed authority: servers send their whole chain, so append the missing "
            "certificates to the file (or name the authority's file with --ca)"
        )
    found.problems += [
        f"the signature of {name_of(each.issuer)} on {name_of(each.subject)} cannot be checked here "
        f"({algorithm_of(each)}), and perhaps not by its peers either"
        for each, issuer in zip(path, (*path[1:], path[-1]), strict=True)
        if has_issued(issuer, each) is None
    ]
    strays = [each for each in chain if each not in path]
    if strays:
        found.problems.append(
            f"in the file but not part of the chain: {', '.join(name_of(each.subject) for each in strays)}"
        )


def _uses(found: Description, leaf: x509.Certificate, anchor: x509.Certificate | None) -> Iterator[str]:
    purposes = usages(leaf)
    texts = _names(leaf)
    hosts = [text.partition(":")[2] for text in texts if text.startswith(("DNS:", "IP:"))]
    people = [text.partition(":")[2] for text in texts if text.startswith(("email:", "URI:"))]
    as_server = purposes is None or ExtendedKeyUsageOID.SERVER_AUTH in purposes
    as_client = purposes is None or ExtendedKeyUsageOID.CLIENT_AUTH in purposes
    if as_server and hosts:
        yield f"good for: an S2CS or S2DS that clients reach as {', '.join(hosts)}"
    if as_client and len(people) == 1:
        controller = people[0].startswith("scistream:controller:")
        yield f"good for: {'an S2CS, as the controller of its S2DS' if controller else 'a user, at an S2CS'}"
        issuer = f"sha256:{key_digest(anchor)}" if anchor is not None else "not known without its authority (--ca FILE)"
        yield f"  known there as identity {people[0]}, issuer {issuer}"
        if controller:
            yield f'  in s2ds.toml: controller = "{people[0]}"'
    elif as_client and people:
        found.problems.append("a client certificate needs exactly one e-mail address or URI, but this one has several")
    if not (as_server and hosts) and not (as_client and len(people) == 1):
        found.problems.append(
            "it cannot be used with SciStream: a server certificate needs the extended key usage serverAuth (or none) "
            "and host names or addresses, a client certificate clientAuth (or none) and one e-mail address or URI"
        )


def _names(holder: x509.Certificate | x509.CertificateSigningRequest) -> list[str]:
    return [printable(text) for text in names_of(holder)]


def _validity(found: Description, what: str, certificate: x509.Certificate, now: datetime) -> list[str]:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < start:
        found.problems.append(
            f"{what} is not valid before {start:%Y-%m-%d %H:%M} UTC, and it is {now:%Y-%m-%d %H:%M} here"
        )
    elif end <= now:
        found.problems.append(
            f"{what} expired on {end:%Y-%m-%d %H:%M} UTC, and it is {now:%Y-%m-%d %H:%M} here: have it renewed "
            "(scistream pki renew)"
        )
    else:
        warning = Expiry(what, start, end, "have it renewed in time").warning(now)
        found.problems += [] if warning is None else [warning]
    return [f"valid: from {start:%Y-%m-%d %H:%M} until {end:%Y-%m-%d %H:%M} UTC ({max(0, (end - now).days)} days left)"]


def _weaknesses(found: Description, certificate: x509.Certificate) -> None:
    weak = weakness(certificate.public_key())
    if weak is not None:
        found.problems.append(f"its key is refused: {weak}")
    algorithm = certificate.signature_hash_algorithm
    if algorithm is not None and algorithm.name in WEAK_HASHES:
        found.problems.append(f"it is signed with {algorithm.name.upper()}, which is broken: have a new one issued")


def key_words(public_key: PublicKeyTypes) -> str:
    """Return the kind and size of a key."""
    if isinstance(public_key, rsa.RSAPublicKey):
        exponent = public_key.public_numbers().e
        return f"RSA with {public_key.key_size} bits" + (
            "" if exponent == 65537 else f" and public exponent {exponent}"
        )
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return f"elliptic curve {public_key.curve.name}"
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return "Ed25519"
    return "Ed448" if isinstance(public_key, ed448.Ed448PublicKey) else "of another kind"


# -- the others


def _request(found: Description, csr: x509.CertificateSigningRequest) -> None:
    found.lines.append(f"certificate request for: {', '.join(_names(csr)) or 'no names'}")
    found.lines.append(f"subject (not verified): {name_of(csr.subject)}")
    found.lines.append(f"key: {key_words(csr.public_key())}, SHA-256 {key_digest(csr)}")
    if not csr.is_signature_valid:
        found.problems.append("it is not signed by its own key: it was changed, or its sender does not have the key")
    weak = weakness(csr.public_key())
    if weak is not None:
        found.problems.append(f"its key is refused: {weak}")


def _crl(found: Description, crl: x509.CertificateRevocationList, now: datetime) -> None:
    until = crl.next_update_utc
    found.lines.append(f"list of revoked certificates (CRL) of: {name_of(crl.issuer)}")
    left = f" ({max(0, (until - now).days)} days left)" if until is not None else ""
    end = f"{until:%Y-%m-%d %H:%M} UTC" if until is not None else "no end"
    found.lines.append(f"valid: from {crl.last_update_utc:%Y-%m-%d %H:%M} until {end}{left}")
    found.lines.append(f"revoked: {len(crl)}")
    for number, entry in enumerate(crl):
        if number == _MOST_REVOKED:
            found.lines.append(f"  and {len(crl) - number} more")
            break
        found.lines.append(f"  serial {entry.serial_number:x}, on {entry.revocation_date_utc:%Y-%m-%d %H:%M} UTC")
    if until is not None and until <= now:
        found.problems.append(
            "it has expired: servers that use it refuse every certificate of this authority; make a new one (scistream "
            "pki crl)"
        )
    elif until is not None:
        warning = Expiry("it", crl.last_update_utc, until, "make a new one (scistream pki crl)").warning(now)
        found.problems += [] if warning is None else [warning]


def _key(found: Description, file: Path, kind: str, block: bytes, certificates: Sequence[bytes]) -> None:
    exposed = exposure(file.stat())
    if exposed is not None:
        found.problems.append(f"{exposed}: run chmod 600 {file}")
    if kind == "ENCRYPTED PRIVATE KEY" or b"ENCRYPTED" in block:
        found.lines.append("private key: encrypted with a passphrase")
        found.problems.append("a server cannot ask for a passphrase: store the key without one")
        return
    try:
        public_key = serialization.load_pem_private_key(block, None).public_key()
    except Exception as wrong:  # ValueError, TypeError, UnsupportedAlgorithm
        raise PkiError(f"{file} contains a private key that cannot be decoded.") from wrong
    der = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    found.lines.append(
        f"private key (not shown): {key_words(public_key)}, SHA-256 of the public key {digest.finalize().hex()}"
    )
    weak = weakness(public_key)
    if weak is not None:
        found.problems.append(f"it is refused: {weak}")
    beside = file.with_suffix(".pem")
    partners = certificates or ([beside.read_bytes()] if file.suffix == ".key" and beside.is_file() else [])
    for partner in partners[:1]:
        if x509.load_pem_x509_certificate(partner).public_key() == public_key:
            found.lines.append(f"belongs to: the certificate {'in this file' if certificates else beside}")
        else:
            where = "in this file" if certificates else str(beside)
            found.problems.append(f"it does not belong to the certificate {where}")
