"""Old certificates: issued again by the authority in a folder, with other dates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from scistream.pki.authority import pem_of


def age(file: Path, *, life: timedelta, left: timedelta) -> x509.Certificate:
    """Let the certificate that a file begins with be one that ends in `left`, after a life of `life`.

    The authority, ``ca.pem`` and ``ca.key``, lies beside it.
    """
    folder = file.parent
    old, *chain = x509.load_pem_x509_certificates(file.read_bytes())
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    end = datetime.now(UTC) + left
    builder = (
        x509.CertificateBuilder(old.issuer, old.subject, old.public_key(), x509.random_serial_number())
        .not_valid_before(end - life)
        .not_valid_after(end)
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    new = builder.sign(key, hashes.SHA256())
    new.verify_directly_issued_by(authority)
    file.write_bytes(pem_of(new, *chain))
    return new
