"""Attackers: sockets and links by hand, from any loopback address.

127.0.0.0/8 is one machine, so a test can come from as many addresses as it likes.
"""

from __future__ import annotations

import resource
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from raw_peers import TIMEOUT

from scistream.protocol.address import Address


@contextmanager
def many_descriptors() -> Iterator[None]:
    """Let this process open thousands of descriptors meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connection(address: Address, source: str) -> socket.socket:
    """Open a TCP connection from `source`."""
    return socket.create_connection(address, timeout=TIMEOUT, source_address=(source, 0))


def client_hello(protocol: str = "scistream/1") -> bytes:
    """Return the first flight of a TLS client that offers `protocol`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols([protocol])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    handshake = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with suppress(ssl.SSLWantReadError):
        handshake.do_handshake()
    return outgoing.read()


@contextmanager
def half_open(address: Address, sources: Sequence[str], count: int) -> Iterator[list[socket.socket]]:
    """So many connections that begin a TLS handshake and say no more, spread over the source addresses."""
    with ExitStack() as opened:
        begun = client_hello()
        sockets = []
        for number in range(count):
            sock = opened.enter_context(connection(address, sources[number % len(sources)]))
            with suppress(OSError):  # it is closed already
                sock.sendall(begun[: len(begun) // 2])
            sockets.append(sock)
        yield sockets


def closed(sockets: Sequence[socket.socket]) -> int:
    """How many of these the other side has closed or reset by now. Nothing is ever sent on them."""
    looking = select.poll()
    for sock in sockets:
        looking.register(sock, select.POLLIN)
    return len(looking.poll(0))


def is_shut_out(address: Address, source: str) -> bool:
    """Return True if a connection from `source` is closed at once, before the server reads a byte of it."""
    with connection(address, source) as sock:
        try:
            sock.sendall(client_hello())
            return not sock.recv(1)
        except ConnectionResetError:
            return True


def seconds_of_dripping(sock: socket.socket, data: bytes) -> float:
    """Send a byte a second until the other side has had enough; how long that took."""
    began = time.monotonic()
    for number in range(len(data)):
        try:
            sock.sendall(data[number : number + 1])
            sock.settimeout(1.0)
            if not sock.recv(65536):
                break
        except TimeoutError:
            continue
        except (OSError, ssl.SSLError):
            break
        finally:
            sock.settimeout(TIMEOUT)
    return time.monotonic() - began


def attempted(work: Callable[[], Any]) -> bool:
    """Return True if the attack worked and was not cut off."""
    try:
        work()
    except (OSError, ssl.SSLError):
        return False
    return True
