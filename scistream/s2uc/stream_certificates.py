"""The user's half of a stream's credentials: an authority for one stream and generation, used once and forgotten.

The client calls `issue_credentials` with the certificate requests that both sides sent with their listeners, and
sends what comes back as `data_conn_key`. Of a request it takes the public key and nothing else. Nothing here does
any I/O or keeps anything. Protocol sections 9.1 and 9.2.
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
"""More certificates than this would not fit into a `data_conn_key`."""

AFTERLIFE = timedelta(hours=1)
"""Certificates outlive their stream by this much, because the clocks of two parties may differ."""

_REQUEST = re.compile(r"-----BEGIN CERTIFICATE REQUEST-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE REQUEST-----")


def issue_credentials(uid: str, generation: int, seconds_left: float, csr: Mapping[Role, str]) -> dict[Role, str]:
    """Certificates for all gateways of a stream, under a new authority whose key no one has once this returns.

    :param seconds_left: how long the stream still lives, by the word of its facilities: at most `MAX_LIFE` counts.
    :param csr: for each role a PEM bundle, one certificate request a gateway.
    :return: for each role a PEM bundle: the authority, then a certificate for each of its requests, in order.
    :raises StreamError: ``gateway-failed``, if a bundle has no request, too many, or one that is not sound.
    """
    keys = {role: _public_keys(role, bundle) for role, bundle in csr.items()}
    not_after = datetime.now(UTC) + timedelta(seconds=min(max(0.0, seconds_left), MAX_LIFE)) + AFTERLIFE
    authority_key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"stream {uid} {generation}")])
    authority = make_authority(subject, authority_key, not_after)
    bundles: dict[Role, str] = {}
    for role, public_keys in keys.items():
        name, usage = (
            (producer_name(uid), ExtendedKeyUsageOID.SERVER_AUTH)
            if role == PROD
            else (consumer_name(uid), ExtendedKeyUsageOID.CLIENT_AUTH)
        )
        leaves = [
            make_leaf(name, [x509.DNSName(name)], usage, public_key, authority, authority_key, not_after)
            for public_key in public_keys
        ]
        bundles[role] = "".join(
            certificate.public_bytes(serialization.Encoding.PEM).decode() for certificate in (authority, *leaves)
        )
    return bundles


def _public_keys(role: Role, bundle: str) -> list[ec.EllipticCurvePublicKey]:
    """The keys in a bundle of requests, each proved to be in the hands of whoever asks."""
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
    return StreamError("gateway-failed", f"A gateway of the {side}'s facility {what}: its operator has to look at it.")
