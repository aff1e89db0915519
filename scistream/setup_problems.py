"""What can keep a daemon from starting or from reloading, and how several such problems are told together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from twisted.internet.error import CannotListenError

from scistream.config import ConfigError
from scistream.protocol.errors import StreamError
from scistream.tls.files import CertificateError

SETUP_PROBLEMS = (ConfigError, CertificateError, StreamError, CannotListenError)
"""All of them are the operator's to mend."""


class SetupProblems:
    """Collects the problems of several steps, none of which needs the one before::

    problems = SetupProblems()
    with problems.of_step():
        ...
    with problems.of_step():
        ...
    problems.raise_if_any()
    """

    def __init__(self) -> None:
        self._lines: list[str] = []

    @contextmanager
    def of_step(self) -> Iterator[None]:
        """A step; what stops it is kept, and the next one is taken all the same."""
        try:
            yield
        except SETUP_PROBLEMS as problem:
            self._lines += [line for line in str(problem).splitlines() if line not in self._lines]

    def raise_if_any(self) -> None:
        """:raises ConfigError: with a line for each problem, if there are any."""
        if self._lines:
            raise ConfigError("\n".join(self._lines))
