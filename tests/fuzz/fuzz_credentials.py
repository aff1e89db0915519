"""The credentials of a stream as a far side sends them: requests that a gateway makes, certificates that a user signs.

The first byte chooses which; the rest is a bundle as it stands, or the DER of one part of an otherwise good one.
"""

import base64
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fuzzing import fuzz

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, Role
from scistream.s2uc.stream_certificates import issue_credentials
from scistream.tls.stream_channels import StreamSecret

UID = "12345678-1234-4234-8234-123456789abc"
_secrets: dict[Role, StreamSecret] = {PROD: StreamSecret(), CONS: StreamSecret()}
_good = issue_credentials(UID, 1, 3600.0, {role: secret.csr for role, secret in _secrets.items()})
_authority, _leaf = x509.load_pem_x509_certificates(_good[PROD].encode())


def _pem(kind: str, der: bytes) -> str:
    return f"-----BEGIN {kind}-----\n{base64.encodebytes(der).decode()}-----END {kind}-----\n"


def _sign(csr: str) -> None:
    bundles = issue_credentials(UID, 2, 60.0, {PROD: csr, CONS: _secrets[CONS].csr})
    for bundle in bundles.values():
        assert 2 <= len(x509.load_pem_x509_certificates(bundle.encode())) <= 65


def _take(bundle: str) -> None:
    for role, secret in _secrets.items():
        secret.credentials(bundle, UID, role).context()


def _text(use: Callable[[str], None]) -> Callable[[bytes], None]:
    return lambda data: use(data.decode("utf-8", "replace"))


_AS_AUTHORITY = _leaf.public_bytes(Encoding.PEM).decode()
_BEFORE_LEAF = _authority.public_bytes(Encoding.PEM).decode()

FORMS: list[tuple[Callable[[bytes], None], list[bytes]]] = [
    (_text(_sign), [_secrets[PROD].csr.encode()]),
    (_text(_take), [_good[PROD].encode(), _good[CONS].encode()]),
    (
        lambda der: _sign(_pem("CERTIFICATE REQUEST", der)),
        [x509.load_pem_x509_csr(_secrets[PROD].csr.encode()).public_bytes(Encoding.DER)],
    ),
    (lambda der: _take(_pem("CERTIFICATE", der) + _AS_AUTHORITY), [_authority.public_bytes(Encoding.DER)]),
    (lambda der: _take(_BEFORE_LEAF + _pem("CERTIFICATE", der)), [_leaf.public_bytes(Encoding.DER)]),
]


def one_input(data: bytes) -> None:
    """One bundle: it is used, or refused with a code and a sentence."""
    if not data:
        return
    use, _ = FORMS[data[0] % len(FORMS)]
    try:
        use(data[1:])
    except StreamError as refused:
        assert refused.msg
        assert "PRIVATE" not in refused.msg


if __name__ == "__main__":
    fuzz(one_input, [bytes([number]) + seed for number, (_, seeds) in enumerate(FORMS) for seed in seeds])
