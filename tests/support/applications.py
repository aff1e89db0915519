"""Applications at the ends of a stream, in the test's own process: what they send, and how their connections end."""

from __future__ import annotations

import hashlib
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from scistream.protocol.address import Address
from support.leased_ports import HOST
from support.waiting import PATIENCE

MIB = 1024 * 1024
NOISE = random.Random(0).randbytes(MIB)
_RESET = struct.pack("ii", 1, 0)


# Connections


def listen(host: str = HOST) -> socket.socket:
    """Open a listener of a ProdApp on a free port."""
    sock = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=64)
    sock.settimeout(PATIENCE)
    return sock


def address_of(sock: socket.socket) -> str:
    """Where a listener listens, as the protocol writes it."""
    return str(Address(*sock.getsockname()[:2]))


def accept(listener: socket.socket) -> socket.socket:
    """Accept the next connection."""
    sock, _ = listener.accept()
    sock.settimeout(PATIENCE)
    return sock


def connect(listener: str) -> socket.socket:
    """Open a connection of a ConsApp."""
    address = Address.parse(listener)
    return socket.create_connection((address.host, address.port), timeout=PATIENCE)


def is_reset(listener: str, limit: float = PATIENCE) -> bool:
    """Return True if a connection of a ConsApp is reset, at once or after it was accepted."""
    try:
        with closing(connect(listener)) as sock:
            sock.settimeout(limit)
            return sock.recv(1) != b""
    except ConnectionResetError:
        return True


def noise(count: int, seed: int = 0) -> bytes:
    """Return `count` random bytes, the same for each call with one seed."""
    return random.Random(seed).randbytes(count)


def send_all(sock: socket.socket, data: bytes) -> None:
    """Send all of it and end this direction."""
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def receive(sock: socket.socket) -> bytes:
    """All until the other side ends its direction."""
    parts = []
    while part := sock.recv(MIB):
        parts.append(part)
    return b"".join(parts)


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """Receive `count` bytes; fail if the connection ends before."""
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        assert part, f"the end came after {len(data)} of {count} bytes"
        data += part
    return data


def sha256(data: bytes) -> str:
    """Return the digest of `data`: comparing digests keeps the report of a failure short."""
    return f"{len(data)} bytes, {hashlib.sha256(data).hexdigest()}"


@contextmanager
def listeners(count: int, host: str = HOST) -> Iterator[list[socket.socket]]:
    """So many listeners of a ProdApp, closed at the end."""
    with ExitStack() as opened:
        yield [opened.enter_context(listen(host)) for _ in range(count)]


# Much data


def send(sock: socket.socket, count: int) -> str:
    """Send that many bytes; their SHA-256."""
    digest = hashlib.sha256()
    while count:
        chunk = memoryview(NOISE)[: min(count, MIB)]
        sock.sendall(chunk)
        digest.update(chunk)
        count -= len(chunk)
    return digest.hexdigest()


def send_and_end(sock: socket.socket, count: int) -> str:
    """Send that many bytes and end this direction; their SHA-256."""
    digest = send(sock, count)
    sock.shutdown(socket.SHUT_WR)
    return digest


def receive_digest(sock: socket.socket) -> tuple[int, str]:
    """Receive until the end: how many bytes, and their SHA-256."""
    digest, count, buffer = hashlib.sha256(), 0, bytearray(MIB)
    while got := sock.recv_into(buffer):
        digest.update(memoryview(buffer)[:got])
        count += got
    return count, digest.hexdigest()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


def how_it_ends(sock: socket.socket) -> str:
    """'end' or 'reset', after whatever still comes."""
    try:
        receive_digest(sock)
    except ConnectionResetError:
        return "reset"
    return "end"


def push(sock: socket.socket) -> str:
    """Send until that fails; what the failure is."""
    try:
        while True:
            sock.sendall(NOISE)
    except ConnectionResetError:
        return "reset"
    except BrokenPipeError:
        return "broken pipe"
