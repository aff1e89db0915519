"""Issue the credentials of a stream: a certificate authority for one stream and generation, used once and forgotten.

The client calls `issue_credentials` with the certificate requests that both sides sent with their listeners, and
sends the result as `data_conn_key`. Only the public key of a request is used. Nothing here does input or output, or
stores anything. Protocol sections 9.1 and 9.2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from scistream.pki.authority import make_authority, make_leaf
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import MAX_LIFE, PROD, Role
from scistream.tls.stream_channels import consumer_name, producer_name

MAX_GATEWAYS = 64
"""The most certificates for which a `data_conn_key` has space."""

AFTERLIFE = timedelta(hours=1)
"""Certificates are valid for so long after the end of their stream, because the clocks of parties may differ."""

_USAGES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
"""A gateway of either side may be the one that dials, which is TLS's client."""

_REQUEST = re.compile(r"-----BEGIN CERTIFICATE REQUEST-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE REQUEST-----")


def issue_credentials(uid: str, generation: int, seconds_left: float, csr: Mapping[Role, str]) -> dict[Role, str]:
    """Issue certificates for all gateways of a stream, under a new authority whose key is discarded on return.

    :param seconds_left: seconds until the stream ends at the latest, also if it is extended; limited to `MAX_LIFE`.
    :param csr: for each role a PEM bundle with one certificate request for each gateway.
    :returns: for each role a PEM bundle: the authority, then a certificate for each of its requests, in order.
    :raises StreamError: ``gateway-failed``, if a bundle has no request, too many, or an invalid one.
    """
    keys = {role: _public_keys(role, bundle) for role, bundle in csr.items()}
    not_after = datetime.now(UTC) + timedelta(seconds=min(max(0.0, seconds_left), MAX_LIFE)) + AFTERLIFE
    authority_key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"stream {uid} {generation}")])
    authority = make_authority(subject, authority_key, not_after)
    bundles: dict[Role, str] = {}
    for role, public_keys in keys.items():
        name = producer_name(uid) if role == PROD else consumer_name(uid)
        leaves = [
            make_leaf(name, [x509.DNSName(name)], _USAGES, public_key, authority, authority_key, not_after)
            for public_key in public_keys
        ]
        bundles[role] = "".join(
            certificate.public_bytes(serialization.Encoding.PEM).decode() for certificate in (authority, *leaves)
        )
    return bundles


def _public_keys(role: Role, bundle: str) -> list[ec.EllipticCurvePublicKey]:
    """Return the public keys in a bundle of requests, each of which is signed with its private key."""
    requests = _REQUEST.findall(bundle)
    if not requests or _REQUEST.sub("", bundle).strip():
        raise _failed(role, "sent no certificate requests in PEM form")
    if len(requests) > MAX_GATEWAYS:
        raise _failed(
            role, f"sent {len(requests)} certificate requests, and a stream has at most {MAX_GATEWAYS} gateways"
        )
    return [_public_key(role, request) for request in requests]


def _public_key(role: Role, request: str) -> ec.EllipticCurvePublicKey:
    try:
        parsed = x509.load_pem_x509_csr(request.encode())
        signed = parsed.is_signature_valid
        key = parsed.public_key()
    except Exception as wrong:  # ValueError, TypeError, UnsupportedAlgorithm, InvalidVersion: no common base
        raise _failed(role, f"sent a certificate request that cannot be read ({wrong})") from wrong
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _failed(role, "sent a certificate request for a key that is not on the curve P-256")
    if not signed:
        raise _failed(role, "sent a certificate request whose signature is wrong")
    return key


def _failed(role: Role, what: str) -> StreamError:
    side = "producer" if role == PROD else "consumer"
    return StreamError("gateway-failed", f"a gateway of the {side}'s facility {what}: ask its operator to check it")
