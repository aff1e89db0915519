"""A false server: it listens in place of a real one, and keeps every byte that it can decrypt."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from raw_peers import TIMEOUT, Chain

from scistream.protocol.address import Address
from support.facilities import HOST

Message = dict[str, Any]


def silence(_command: Message) -> list[Message]:
    return []


class FalseServer:
    """Accepts until the end of its context, in threads of its own.

    :param chain: what it shows; `folder`: where its files go.
    :param alpn: what it speaks; `newest`: its newest version of TLS.
    :param port: 0 takes a free one.
    :param answer: gives what to say to a message.
    """

    def __init__(
        self,
        chain: Chain,
        folder: Path,
        *,
        alpn: Sequence[str] = ("scistream/1",),
        newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
        port: int = 0,
        answer: Callable[[Message], list[Message]] = silence,
    ) -> None:
        issued = chain.write(folder)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.maximum_version = newest
        self._context.load_cert_chain(issued.certificate, issued.key)
        if alpn:
            self._context.set_alpn_protocols(list(alpn))
        self._answer = answer
        self._heard: list[bytes] = []
        self._visits: list[threading.Thread] = []
        self._listener = socket.create_server((HOST, port))
        self.address = Address(HOST, self._listener.getsockname()[1])
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def __enter__(self) -> FalseServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def heard(self) -> bytes:
        """All that its visitors have said, once the last of them has left; somebody must have come."""
        self._close()
        assert self._visits, "nobody has dialled it"
        return b"".join(self._heard)

    def _close(self) -> None:
        with suppress(OSError):  # closed before
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(TIMEOUT)
        self._listener.close()
        for visit in self._visits:
            visit.join(2 * TIMEOUT)
            assert not visit.is_alive(), "a visitor does not leave"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(TIMEOUT)
            visit = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._visits.append(visit)
            visit.start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, suppress(OSError), self._context.wrap_socket(sock, server_side=True) as secured:
            line = b""
            while data := secured.recv(65536):
                self._heard.append(data)
                *lines, line = (line + data).split(b"\n")
                answers = [answer for each in lines for answer in self._answer(json.loads(each))]
                secured.sendall(b"".join(json.dumps(answer).encode() + b"\n" for answer in answers))
