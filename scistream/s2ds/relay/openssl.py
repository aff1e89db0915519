"""Direct calls of OpenSSL on a connection of pyOpenSSL, whose handle is private.

All private names of pyOpenSSL and of cryptography's bindings that a relay needs are in this file. `tls.py`,
`handshake.py` and `buffers.py` use it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL
from twisted.logger import Logger
from twisted.python.failure import Failure

ffi = Binding.ffi
"""The foreign function interface; its `errno` is that of the last call."""

read = Binding.lib.SSL_read
peek = Binding.lib.SSL_peek
write = Binding.lib.SSL_write
get_error = Binding.lib.SSL_get_error
WANT_READ = Binding.lib.SSL_ERROR_WANT_READ
WANT_WRITE = Binding.lib.SSL_ERROR_WANT_WRITE
_AES_128_GCM_SHA256 = b"\x13\x01"

SECRET = 32
"""The length in bytes of a secret that stands for certificates."""


def address_of(view: memoryview) -> Any:
    """Return the address of writable memory, for `read` and `write`."""
    return ffi.from_buffer("char[]", view, require_writable=True)


def handle_of(connection: SSL.Connection) -> Any:
    """Return the handle of a connection for the calls of OpenSSL."""
    return connection._ssl


def end_reads_at_each_record(connection: SSL.Connection) -> None:
    """Let a read return after a record without application data; OpenSSL would read on while such records come."""
    Binding.lib.SSL_clear_mode(connection._ssl, Binding.lib.SSL_MODE_AUTO_RETRY)


def advance_handshake(connection: SSL.Connection) -> bool:
    """Do what a handshake can do now. Return False if it needs more input.

    :raises SSL.Error: or a subclass of it, if it fails.
    """
    result = Binding.lib.SSL_do_handshake(connection._ssl)
    if result == 1:
        return True
    if get_error(connection._ssl, result) != WANT_READ:
        raise_error(connection, result)
    return False


def give_input(connection: SSL.Connection, data: bytes) -> None:
    """Put bytes from the peer into the memory buffer from which OpenSSL reads."""
    Binding.lib.BIO_write(connection._into_ssl, data, len(data))


def take_output(connection: SSL.Connection) -> bytes:
    """Return the bytes for the peer that are in the memory buffer into which OpenSSL writes."""
    taken = b""
    while (count := Binding.lib.BIO_read(connection._from_ssl, _piece, len(_piece))) > 0:
        taken += ffi.buffer(_piece, count)[:]
        if count < len(_piece):
            break
    return taken


_piece = ffi.new("char[]", 16384)


def move_to_socket(connection: SSL.Connection, descriptor: int) -> None:
    """Let OpenSSL read from and write to a socket in place of its two memory buffers, which it frees."""
    Binding.lib.SSL_set_fd(connection._ssl, descriptor)
    connection._into_ssl = connection._from_ssl = None


def write_aside(
    connection: SSL.Connection, descriptor: int, write_to_it: Callable[[], int], send: Callable[[Any], int]
) -> tuple[int, bytes]:
    """Let OpenSSL write into memory instead of its socket, and send what it has written.

    OpenSSL reads nothing more once a write to its socket has failed. Here the write to the socket is the caller's.

    :param descriptor: that of the socket.
    :param write_to_it: writes to the connection.
    :param send: sends a buffer; returns how many of its bytes the socket has taken.
    :returns: the result of `write_to_it`, and the bytes that the socket has not taken.
    """
    lib, at = Binding.lib, ffi.new("char **")
    unused, written = lib.BIO_new(lib.BIO_s_mem()), lib.BIO_new(lib.BIO_s_mem())
    lib.SSL_set_bio(connection._ssl, unused, written)  # which owns both, and drops them with the next call of its kind
    try:
        result = write_to_it()
        size = lib.BIO_get_mem_data(written, at)
        sent = send(ffi.buffer(at[0], size)) if size else 0
        return result, ffi.buffer(at[0] + sent, size - sent)[:]
    finally:
        lib.SSL_set_fd(connection._ssl, descriptor)


def unread_bytes(connection: SSL.Connection) -> int:
    """Return how many bytes in its memory buffer OpenSSL has not read."""
    left: int = Binding.lib.BIO_get_mem_data(connection._into_ssl, ffi.new("char **"))
    return left


def raise_error(connection: SSL.Connection, result: int) -> None:
    """Raise the exception of pyOpenSSL for the `result` of a call of OpenSSL.

    :raises SSL.Error: or a subclass of it, by the kind of error.
    """
    connection._raise_ssl_error(connection._ssl, result)


def set_groups(connection: SSL.Connection, groups: bytes) -> None:
    """Exchange keys with one of these groups, the first of which is tried first, if OpenSSL knows them all."""
    if not Binding.lib.SSL_set1_curves_list(connection._ssl, groups):
        Binding.lib.ERR_clear_error()  # another call would be taken for the one that failed


def group_of(connection: SSL.Connection) -> str | None:
    """Return the group with which the keys of a connection are exchanged; None if that is not known."""
    return connection.get_group_name() if Binding.lib.Cryptography_HAS_SSL_GET0_GROUP_NAME else None


def is_resumed(connection: SSL.Connection) -> bool:
    """Return True if the handshake used a secret of an earlier connection in place of certificates."""
    return bool(Binding.lib.SSL_session_reused(connection._ssl))


def offer_secrets(context: SSL.Context, find: Callable[[SSL.Connection], tuple[bytes, bytes] | None]) -> None:
    """Let the clients of a context offer a secret of an earlier connection.

    :param find: called with the client; returns an identity and the `SECRET` bytes of the secret, or None. If the
        server wants a key of another group, it is called once more and must return the same.
    """

    @ffi.callback(  # type: ignore[untyped-decorator]
        _type_of("SSL_CTX_set_psk_use_session_callback"), error=1, onerror=_log_fault
    )
    def use(ssl: Any, _digest: Any, identity: Any, size: Any, session: Any) -> int:
        found = find(SSL.Connection._reverse_mapping[ssl])
        if found is not None:
            kept[0] = ffi.from_buffer("unsigned char[]", found[0])  # OpenSSL copies it as soon as this returns
            session[0] = _session_of(ssl, found[1])
            identity[0], size[0] = kept[0], len(found[0])
        return 1

    kept: list[Any] = [None]
    Binding.lib.SSL_CTX_set_psk_use_session_callback(context._context, use)
    _callbacks[context] = use


def accept_secrets(context: SSL.Context, find: Callable[[bytes], bytes | None], most: int) -> None:
    """Let the servers of a context accept a secret of an earlier connection.

    :param find: called with an identity that a client offers; returns the `SECRET` bytes of its secret, or None.
    :param most: the length of the longest identity; longer ones are ignored.
    """

    @ffi.callback(  # type: ignore[untyped-decorator]
        _type_of("SSL_CTX_set_psk_find_session_callback"), error=1, onerror=_log_fault
    )
    def look_up(ssl: Any, identity: Any, size: int, session: Any) -> int:
        secret = find(bytes(ffi.buffer(identity, size))) if size <= most else None
        if secret is not None:
            session[0] = _session_of(ssl, secret)
        return 1

    Binding.lib.SSL_CTX_set_psk_find_session_callback(context._context, look_up)
    _callbacks[context] = look_up


_callbacks: WeakKeyDictionary[SSL.Context, Any] = WeakKeyDictionary()
"""The functions that OpenSSL calls, which live as long as their context."""


_log = Logger()


def _log_fault(kind: Any, fault: Any, traceback: Any) -> None:
    """Log an exception in a function that OpenSSL calls; the handshake goes on with certificates."""
    _log.failure("Failed to find the ticket of a connection", failure=Failure(fault, kind, traceback))


def _type_of(setter: str) -> Any:
    return ffi.typeof(getattr(Binding.lib, setter)).args[1]


def _session_of(ssl: Any, secret: bytes) -> Any:
    """Return a session of TLS 1.3 with this secret, which OpenSSL will free."""
    lib = Binding.lib
    session = lib.Cryptography_SSL_SESSION_new()
    lib.SSL_SESSION_set1_master_key(session, secret, len(secret))
    lib.SSL_SESSION_set_cipher(session, lib.SSL_CIPHER_find(ssl, _AES_128_GCM_SHA256))
    lib.SSL_SESSION_set_protocol_version(session, lib.TLS1_3_VERSION)
    return session
