"""Collect the problems that keep a daemon from starting or reloading, to report all of them at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from twisted.internet.error import CannotListenError

from scistream.config import ConfigError
from scistream.protocol.errors import StreamError
from scistream.tls.files import CertificateError

SETUP_PROBLEMS = (ConfigError, CertificateError, StreamError, CannotListenError)
"""The errors that an operator can fix, by changing the configuration or its files."""


class SetupProblems:
    """Collects the problems of several independent steps.

    Use it like this::

    problems = SetupProblems()
    with problems.of_step():
        ...
    with problems.of_step():
        ...
    problems.raise_if_any()
    """

    def __init__(self) -> None:
        self._lines: list[str] = []

    @property
    def lines(self) -> tuple[str, ...]:
        """A line for each problem so far."""
        return tuple(self._lines)

    @contextmanager
    def of_step(self) -> Iterator[None]:
        """Run a step; if it fails, keep its problems and go on with the next one."""
        try:
            yield
        except SETUP_PROBLEMS as problem:
            self._lines += [line for line in str(problem).splitlines() if line not in self._lines]

    def raise_if_any(self) -> None:
        """Report the problems of all steps.

        :raises ConfigError: if there are any, with a line for each.
        """
        if self._lines:
            raise ConfigError("\n".join(self._lines))
