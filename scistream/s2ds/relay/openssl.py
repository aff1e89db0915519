"""OpenSSL's own calls on a connection of pyOpenSSL, which keeps its handle of OpenSSL's to itself.

All private names of pyOpenSSL and of cryptography's bindings that a relay needs are in this file. Used by tls.py,
handshake.py and buffers.py.
"""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL

ffi = Binding.ffi
"""Its `errno` is that of the last call."""

read = Binding.lib.SSL_read
write = Binding.lib.SSL_write
get_error = Binding.lib.SSL_get_error
WANT_READ = Binding.lib.SSL_ERROR_WANT_READ
WANT_WRITE = Binding.lib.SSL_ERROR_WANT_WRITE


def address_of(view: memoryview) -> Any:
    """Return the address of writable memory, for `read` and `write`."""
    return ffi.from_buffer("char[]", view, require_writable=True)


def handle_of(connection: SSL.Connection) -> Any:
    """Return what the calls of OpenSSL take for a connection."""
    return connection._ssl


def end_reads_at_each_record(connection: SSL.Connection) -> None:
    """Let a read return after a record without application data; OpenSSL would read on while such records come."""
    Binding.lib.SSL_clear_mode(connection._ssl, Binding.lib.SSL_MODE_AUTO_RETRY)


def move_to_socket(connection: SSL.Connection, descriptor: int) -> None:
    """Let OpenSSL read and write a socket from now on, in place of its two buffers in memory, which it frees."""
    Binding.lib.SSL_set_fd(connection._ssl, descriptor)
    connection._into_ssl = connection._from_ssl = None


def unread_bytes(connection: SSL.Connection) -> int:
    """Return how many of the bytes that were written into its buffer in memory OpenSSL has not read."""
    left: int = Binding.lib.BIO_get_mem_data(connection._into_ssl, ffi.new("char **"))
    return left


def raise_error(connection: SSL.Connection, result: int) -> None:
    """Raise what is wrong, after a call of OpenSSL has returned `result`, as pyOpenSSL does.

    :raises SSL.Error: of the kind that it is.
    """
    connection._raise_ssl_error(connection._ssl, result)
