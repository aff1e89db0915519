"""Direct calls of OpenSSL on a connection of pyOpenSSL, whose handle is private.

All private names of pyOpenSSL and of cryptography's bindings that a relay needs are in this file. `tls.py`,
`handshake.py` and `buffers.py` use it.
"""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL

ffi = Binding.ffi
"""The foreign function interface; its `errno` is that of the last call."""

read = Binding.lib.SSL_read
peek = Binding.lib.SSL_peek
write = Binding.lib.SSL_write
get_error = Binding.lib.SSL_get_error
WANT_READ = Binding.lib.SSL_ERROR_WANT_READ
WANT_WRITE = Binding.lib.SSL_ERROR_WANT_WRITE


def address_of(view: memoryview) -> Any:
    """Return the address of writable memory, for `read` and `write`."""
    return ffi.from_buffer("char[]", view, require_writable=True)


def handle_of(connection: SSL.Connection) -> Any:
    """Return the handle of a connection for the calls of OpenSSL."""
    return connection._ssl


def end_reads_at_each_record(connection: SSL.Connection) -> None:
    """Let a read return after a record without application data; OpenSSL would read on while such records come."""
    Binding.lib.SSL_clear_mode(connection._ssl, Binding.lib.SSL_MODE_AUTO_RETRY)


def move_to_socket(connection: SSL.Connection, descriptor: int) -> None:
    """Let OpenSSL read from and write to a socket in place of its two memory buffers, which it frees."""
    Binding.lib.SSL_set_fd(connection._ssl, descriptor)
    connection._into_ssl = connection._from_ssl = None


def unread_bytes(connection: SSL.Connection) -> int:
    """Return how many bytes in its memory buffer OpenSSL has not read."""
    left: int = Binding.lib.BIO_get_mem_data(connection._into_ssl, ffi.new("char **"))
    return left


def raise_error(connection: SSL.Connection, result: int) -> None:
    """Raise the exception of pyOpenSSL for the `result` of a call of OpenSSL.

    :raises SSL.Error: or a subclass of it, by the kind of error.
    """
    connection._raise_ssl_error(connection._ssl, result)
