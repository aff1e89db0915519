"""An end of a TLS 1.3 connection that seals its own records.

It can send what no library would, such as thousands of key updates.

The handshake is OpenSSL's; its key log gives the secret from which the keys of this end's records are derived as
RFC 8446, section 7, says.
"""

from __future__ import annotations

import socket
import struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from OpenSSL import SSL

APPLICATION_DATA = 23
HANDSHAKE = 22
KEY_UPDATE = bytes.fromhex("1800000100")
"""The handshake message: no answer is asked for."""
KEY_UPDATE_OF_BOTH = bytes.fromhex("1800000101")
"""The same, which asks the far end to update its keys, too."""
NEW_SESSION_TICKET = bytes.fromhex("04000010" + "00000e10" + "00000000" + "0101" + "0002abcd" + "0000")
"""The smallest such message: lifetime, a number to add to ages, nonce, ticket, extensions."""
TICKETS = 2
"""Records with tickets that OpenSSL's server sends after its handshake, by itself."""


class _RecordEnd:
    """A connection on which nothing is sent after the handshake but what `seal` makes.

    :param sock: connected to the far end.
    :param context: with which to shake hands.
    :param name: whom to ask for, as a client; None: this is the server's end.
    """

    def __init__(self, sock: socket.socket, context: SSL.Context, name: str | None) -> None:
        logged: list[bytes] = []
        context.set_keylog_callback(lambda _connection, line: logged.append(line))
        self.sock = sock
        self.connection = SSL.Connection(context, sock)
        if name is None:
            self.connection.set_accept_state()
        else:
            self.connection.set_tlsext_host_name(name.encode())
            self.connection.set_connect_state()
        label = b"SERVER_TRAFFIC_SECRET_0" if name is None else b"CLIENT_TRAFFIC_SECRET_0"
        limit = sock.gettimeout()
        sock.setblocking(True)  # as OpenSSL has to find it
        self.connection.do_handshake()
        sock.settimeout(limit)
        (secret,) = [line.split()[2] for line in logged if line.startswith(label)]
        cipher = self.connection.get_cipher_name()
        assert cipher is not None
        self._hash = hashes.SHA384() if cipher.endswith("384") else hashes.SHA256()
        self._key_size = 32 if "256_GCM" in cipher else 16
        assert "GCM" in cipher
        self._use(bytes.fromhex(secret.decode()))
        self._count = TICKETS if name is None else 0

    def seal(self, kind: int, content: bytes) -> bytes:
        """Return a record under the current keys."""
        inner = content + bytes([kind])
        header = struct.pack("!BHH", APPLICATION_DATA, 0x0303, len(inner) + 16)
        nonce = (int.from_bytes(self._iv) ^ self._count).to_bytes(12)
        self._count += 1
        return header + self._aead.encrypt(nonce, inner, header)

    def key_update(self, message: bytes = KEY_UPDATE) -> bytes:
        """Return a record with which this end switches to its next keys."""
        record = self.seal(HANDSHAKE, message)
        self._use(self._expand(self._secret, b"traffic upd", self._hash.digest_size))
        return record

    def _use(self, secret: bytes) -> None:
        self._secret = secret
        self._aead = AESGCM(self._expand(secret, b"key", self._key_size))
        self._iv = self._expand(secret, b"iv", 12)
        self._count = 0

    def _expand(self, secret: bytes, label: bytes, length: int) -> bytes:
        label = b"tls13 " + label
        info = struct.pack("!HB", length, len(label)) + label + b"\0"
        return HKDFExpand(self._hash, length, info).derive(secret)


class RecordClient(_RecordEnd):
    """The client's end, of a socket that is connected to the server."""

    def __init__(self, sock: socket.socket, context: SSL.Context, name: str) -> None:
        super().__init__(sock, context, name)


class RecordServer(_RecordEnd):
    """The server's end, of the socket of a client that has just connected."""

    def __init__(self, sock: socket.socket, context: SSL.Context) -> None:
        super().__init__(sock, context, None)
