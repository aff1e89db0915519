"""Explain to the user why a link failed."""

from __future__ import annotations

import errno
import socket

from OpenSSL import SSL
from twisted.internet import error
from twisted.python.failure import Failure

from scistream.tls.files import (
    printable,
)


class RefusedCertificate(SSL.Error):
    """The handshake failed because we refuse the peer's certificate.

    :param sentence: which certificate is refused and why.
    :param reason: why, with the same wording for each certificate.
    """

    def __init__(self, sentence: str, reason: str) -> None:
        super().__init__([("SSL routines", "", sentence)])
        self.sentence = sentence
        self.reason = reason


def explain(problem: Failure | BaseException) -> str:
    """Return a sentence for the user, who got this failure instead of a link."""
    wrong = problem.value if isinstance(problem, Failure) else problem
    if isinstance(wrong, RefusedCertificate):
        return wrong.sentence
    if isinstance(wrong, SSL.Error):
        return _explain_tls(wrong)
    for kinds, sentence in _NETWORK_PROBLEMS:
        if isinstance(wrong, kinds):
            return sentence
    code = getattr(wrong, "osError", None) or getattr(wrong, "errno", None)
    if code in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return "There is no route to that address: check the address and this machine's network."
    if isinstance(wrong, OSError) and wrong.strerror:
        return f"The connection failed: {wrong.strerror}."
    return str(wrong) or type(wrong).__name__


def _explain_tls(wrong: SSL.Error) -> str:
    reason = openssl_reason(wrong)
    if reason is None or reason.casefold().startswith("unexpected eof"):
        return _CLOSED
    before, alert, name = reason.rpartition(" alert ")
    if alert and not before.count(" "):
        said = printable(name)
        return _ALERTS.get(name, f"The far end ended the TLS handshake, saying {said!r}: its log says more.")
    return _TLS_PROBLEMS.get(reason, f"TLS failed: {printable(reason)}.")


def openssl_reason(wrong: SSL.Error) -> str | None:
    """Return OpenSSL's text for the first error in its queue, or None."""
    if isinstance(wrong, SSL.SysCallError):
        return str(wrong.args[-1]) if wrong.args else None
    queue = wrong.args[0] if wrong.args else None
    return str(queue[0][-1]) if queue else None


_CLOSED = "The far end closed the connection without a reason: check the address and the port, and see its log."
_NOT_OURS = "The far end does not speak scistream/1, the control protocol: check its address, its port and its version."
_NOT_TLS = "The far end does not speak TLS: check the address and the port."

_ALERTS: dict[str, str] = {
    "certificate required": "The far end asks for a client certificate and got none: set `certificate` and `key`.",
    "unknown ca": "The far end does not trust the authority of our certificate: use a certificate that this facility "
    "issued, or ask its operator to trust the authority.",
    "certificate expired": "The far end says that our certificate has expired (have a new one issued, and compare the "
    "clocks), or its CRL has (then its log says so).",
    "certificate revoked": "The far end says that our certificate is revoked: have a new one issued.",
    "certificate unknown": "The far end refuses our certificate without saying why: its log says more.",
    "bad certificate": "The far end refuses our certificate as invalid: compare the clocks, and see its log.",
    "unsupported certificate": "The far end refuses our certificate because it is for another purpose: a client needs "
    "a user or controller certificate, a server needs a server certificate.",
    "decrypt error": "The far end refuses our signature: check that `certificate` and `key` belong together.",
    "access denied": "The far end denies us access: its operator can say why.",
    "no application protocol": _NOT_OURS,
    "protocol version": "The far end does not speak TLS 1.3, which SciStream requires: check the address and the port.",
    "handshake failure": "The far end found no common TLS parameters: check the address and the port.",
    "internal error": "The far end failed inside the TLS handshake: its log says more.",
}
_TLS_PROBLEMS: dict[str, str] = {
    "certificate verify failed": "The far end's certificate is refused: check `authorities`.",
    "peer did not return a certificate": "The far end sent no client certificate, and one is required.",
    "no application protocol": _NOT_OURS,
    "unsupported protocol": "The far end does not speak TLS 1.3, which SciStream requires.",
    "wrong version number": _NOT_TLS,
    "packet length too long": _NOT_TLS,
    "http request": _NOT_TLS,
    "https proxy request": _NOT_TLS,
}
_NETWORK_PROBLEMS: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    (
        (error.ConnectionRefusedError, ConnectionRefusedError),
        "The connection was refused: check the address and the port, and that the server is running.",
    ),
    (
        (error.TimeoutError, error.TCPTimedOutError, TimeoutError),
        "There was no answer in time: check the address, and that no firewall blocks the connection.",
    ),
    (
        (error.DNSLookupError, error.UnknownHostError, socket.gaierror),
        "The host name could not be resolved: check its spelling and this machine's name service.",
    ),
    (
        (error.NoRouteError,),
        "There is no route to that address: check the address and this machine's network.",
    ),
    ((error.ConnectionDone, error.ConnectionLost, ConnectionResetError, BrokenPipeError), _CLOSED),
)
