"""Enrolment without copying a private key: a request is made where the key stays, signed at the facility, installed.

`make_request` runs on the user's or gateway's machine, `sign_request` at the facility, and `install` on the first
machine again. A request proves only that its sender has the key: the certificate gets the names that the operator has
given or confirmed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import NameOID
from OpenSSL.crypto import X509, X509Store, X509StoreContext, X509StoreContextError, X509StoreFlags

from scistream.pki.authority import (
    Issued,
    Kind,
    certify,
    check_days,
    create_file,
    files_of,
    key_pem,
    load_authority,
    names_for,
    pem_of,
    refuse_overwriting,
    replace_files,
)
from scistream.pki.register import PkiError, key_digest, locked, read_register, record_issue
from scistream.tls.certificate_names import name_texts
from scistream.tls.files import WEAK_HASHES, PrivateKey, exposure, is_authority, printable

LEAST_RSA_BITS = 2048
LEAST_EXPONENT = 65537
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


# -- on the machine with the key


def make_request(out: Path, kind: Kind, name: str, san: Sequence[str] = ()) -> tuple[Path, Path]:
    """Create a key and a certificate request: ``NAME.key`` and ``NAME.csr`` in `out`, which is created if missing.

    :raises PkiError: if the names do not fit the kind, or a file exists already.
    """
    names = names_for(kind, name, san)
    key_file, csr_file = out / f"{name}.key", out / f"{name}.csr"
    refuse_overwriting(Issued(csr_file, key_file), "For a renewal, choose an empty directory and install from there.")
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as wrong:
        raise PkiError(f"{out} could not be created: {wrong.strerror}. Choose another directory.") from wrong
    key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    create_file(key_file, key_pem(key), 0o600)
    try:
        create_file(csr_file, request.public_bytes(serialization.Encoding.PEM), 0o644)
    except PkiError:
        key_file.unlink(missing_ok=True)
        raise
    return key_file, csr_file


# -- at the facility


@dataclass(frozen=True)
class CertificateRequest:
    """A request that its sender has signed with the key, which is strong enough. The names are not verified.

    :ivar common_name: of the subject; empty if there is none.
    :ivar names: the names that the request asks for.
    """

    csr: x509.CertificateSigningRequest
    common_name: str
    names: list[x509.GeneralName]


def read_request(file: Path) -> CertificateRequest:
    """Load and check a request.

    :raises PkiError: if it cannot be decoded, its signature is bad, or its key is weak.
    """
    try:
        csr = x509.load_pem_x509_csr(file.read_bytes())
        names = _names_asked(csr)
        common = csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        public_key = csr.public_key()
        proven = csr.is_signature_valid
        algorithm = csr.signature_hash_algorithm
    except OSError as wrong:
        raise PkiError(f"{file} could not be read: {wrong.strerror}.") from wrong
    except Exception as wrong:  # the parser raises many types for malformed bytes
        raise PkiError(f"{file} is not a valid certificate request: {printable(str(wrong))}.") from wrong
    if not proven:
        raise PkiError(
            f"{file} is not signed by its own key: it was changed on the way, or its sender does not have the key."
        )
    weak = weakness(public_key)
    if weak is not None:
        raise PkiError(f"{file} is for a key that is refused: {weak}. Have it made with scistream pki request.")
    if algorithm is not None and algorithm.name in WEAK_HASHES:
        raise PkiError(f"{file} is signed with {algorithm.name.upper()}, which is broken: have a new request made.")
    return CertificateRequest(csr, printable(str(common[0].value)) if len(common) == 1 else "", names)


def sign_request(
    directory: Path, request: CertificateRequest, kind: Kind, name: str, san: Sequence[str] = (), days: int = 397
) -> Issued:
    """Certify the key of a request under the names that the operator gives; write ``NAME.pem``, with the whole chain.

    :raises PkiError: as `issue`, and if the request asks for other names, or its key is refused.
    """
    check_days(days)
    names = names_for(kind, name, san)
    check_names_asked(request, names)
    authority = load_authority(directory)
    files = files_of(directory, name)
    refuse_overwriting(files, f"Renew it instead: scistream pki renew {directory} {name} --csr FILE.")
    check_key_is_new_or_good(directory, request, authority.certificate)
    with locked(directory):
        leaf = certify(authority, kind, name, names, request.csr.public_key(), days)
        record_issue(directory, kind, name, leaf)
        create_file(files.certificate, pem_of(leaf, *authority.chain), 0o644)
    return files


def check_names_asked(request: CertificateRequest, allowed: Sequence[x509.GeneralName]) -> None:
    """Check that a request asks only for allowed names.

    :raises PkiError: if not.
    """
    more = [name for name in request.names if name not in allowed]
    if more:
        raise PkiError(
            f"The request asks for {_words(more)}, but only {_words(allowed)} is allowed: nothing is signed. Allow "
            "these names as well (--name, --san), or have another request made."
        )


def check_key_is_new_or_good(directory: Path, request: CertificateRequest, authority: x509.Certificate) -> None:
    """Check that the key of a request is neither the authority's own nor that of a revoked certificate.

    :raises PkiError: if it is.
    """
    digest = key_digest(request.csr)
    if digest == key_digest(authority):
        raise PkiError("The request is for the key of the authority itself: have a request with another key made.")
    for entry in read_register(directory):
        if entry.key == digest and entry.revoked is not None:
            raise PkiError(
                f"The key of the request is that of {entry.name} (serial {entry.serial:x}), which was "
                f"{entry.state(datetime.now(UTC))}: have a request with a new key made."
            )


def weakness(public_key: PublicKeyTypes) -> str | None:
    """Return why a key is too weak or of the wrong kind, or None."""
    if isinstance(public_key, rsa.RSAPublicKey):
        exponent = public_key.public_numbers().e
        if public_key.key_size < LEAST_RSA_BITS:
            return f"RSA with {public_key.key_size} bits, but at least {LEAST_RSA_BITS} are required"
        if exponent < LEAST_EXPONENT:
            return f"RSA with the public exponent {exponent}, but at least {LEAST_EXPONENT} is required"
        return None
    if isinstance(public_key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return None
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        if not isinstance(public_key.curve, _CURVES):
            return f"the curve {public_key.curve.name}, but only P-256, P-384 and P-521 are accepted"
        return None
    return "neither an elliptic-curve (P-256, P-384, P-521, Ed25519, Ed448) nor an RSA key"


def _names_asked(csr: x509.CertificateSigningRequest) -> list[x509.GeneralName]:
    try:
        return list(csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def _words(names: Sequence[x509.GeneralName]) -> str:
    return ", ".join(printable(text) for text in name_texts(list(names))) or "no name"


# -- on the machine with the key again


@dataclass(frozen=True)
class Installed:
    """The files that `install` wrote, and what they contain."""

    files: Issued
    authority: Path
    leaf: x509.Certificate
    anchor: x509.Certificate
    anchor_was_given: bool


def install(certificate: Path, key: Path, directory: Path, ca: Path | None = None) -> Installed:
    """Check a certificate from the facility, and put it, its key and its authority in place.

    The key stays where it is if it is in `directory` already; otherwise it is copied there, with mode 0600.

    :param ca: the authority to which the certificate must lead. None: ``ca.pem`` in `directory` if it exists, else the
        authority in the certificate's file, which the user has to compare.
    :raises PkiError: if the certificate is not for this key, not valid now, or does not lead to the authority; nothing
        is changed then.
    """
    chain = _load_chain(certificate)
    leaf = chain[0]
    private_key = _load_own_key(key)
    if leaf.public_key() != private_key.public_key():
        raise PkiError(f"{certificate} is not for the key {key}: name the key of its request.")
    now = datetime.now(UTC)
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise PkiError(
            f"{certificate} is valid from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} to "
            f"{leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, but it is {now:%Y-%m-%d %H:%M} here: have a new one "
            "signed, or set the clock."
        )
    there = directory / "ca.pem"
    given = ca or (there if there.exists() else None)
    path = _path_to(chain, _anchors(given, chain, certificate), given, certificate)
    files = files_of(directory, certificate.stem)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as wrong:
        raise PkiError(f"{directory} could not be created: {wrong.strerror}. Choose another directory.") from wrong
    new = [(files.key, key_pem(private_key), 0o600), (files.certificate, pem_of(*path), 0o644)]
    if files.key.exists() and os.path.samefile(key, files.key) and exposure(files.key.stat()) is None:
        new.pop(0)
    if not there.exists():
        new.append((there, pem_of(path[-1]), 0o644))
    else:
        there = given or there
    replace_files(*new)
    return Installed(files, there, leaf, path[-1], given is not None)


def _load_chain(file: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(file.read_bytes())
    except OSError as wrong:
        raise PkiError(f"{file} could not be read: {wrong.strerror}.") from wrong
    except ValueError as wrong:
        raise PkiError(f"{file} contains no certificate in PEM form: {printable(str(wrong))}.") from wrong


def _load_own_key(file: Path) -> PrivateKey:
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), None)
    except OSError as wrong:
        raise PkiError(f"{file} could not be read: {wrong.strerror}.") from wrong
    except Exception as wrong:  # ValueError, TypeError (a passphrase), UnsupportedAlgorithm
        raise PkiError(f"{file} contains no private key in PEM form without a passphrase.") from wrong
    if not isinstance(key, PrivateKey):
        raise PkiError(f"{file} is neither an elliptic-curve nor an RSA key.")
    return key


def _anchors(given: Path | None, chain: Sequence[x509.Certificate], certificate: Path) -> list[x509.Certificate]:
    if given is not None:
        found = [each for each in _load_chain(given) if is_authority(each)]
        if not found:
            raise PkiError(f"{given} contains no authority: name the file of the facility's authority.")
        return found
    last = chain[-1]
    if len(chain) < 2 or last.subject != last.issuer or not is_authority(last):
        raise PkiError(
            f"{certificate} does not contain its authority: get the facility's ca.pem, and name it with --ca."
        )
    return [last]


def _path_to(
    chain: list[x509.Certificate], anchors: list[x509.Certificate], given: Path | None, certificate: Path
) -> list[x509.Certificate]:
    """Return the verified path from a certificate to one of the authorities."""
    store = X509Store()
    for anchor in anchors:
        store.add_cert(X509.from_cryptography(anchor))
    store.set_flags(X509StoreFlags.PARTIAL_CHAIN)
    leaf, *others = (X509.from_cryptography(each) for each in chain)
    try:
        path = X509StoreContext(store, leaf, others).get_verified_chain()
    except X509StoreContextError as wrong:
        whom = f"the authority in {given}" if given is not None else "the authority in the same file"
        raise PkiError(
            f"{certificate} does not lead to {whom} ({wrong}): it is from another authority (name it with --ca), or "
            "was changed on the way."
        ) from wrong
    return [each.to_cryptography() for each in path]
