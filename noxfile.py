"""`make test-all`: commands of the Makefile, each in an environment of its own, under each Python that is there."""

from __future__ import annotations

import shlex

import nox

PYTHONS = ["3.11", "3.12", "3.13"]

nox.options.error_on_missing_interpreters = False


def make(session: nox.Session, command: str) -> None:
    """Run a command of the Makefile in the environment of this session."""
    arguments = [f"ARGS={shlex.join(session.posargs)}"] if session.posargs else []
    session.run("make", command, f"VENV={session.virtualenv.location}", *arguments, external=True)


@nox.session(python=PYTHONS[0])
def lint(session: nox.Session) -> None:
    """Check the format, the style and the types."""
    make(session, "lint")


@nox.session(python=PYTHONS[0])
def docs(session: nox.Session) -> None:
    """Build the pages."""
    make(session, "docs")


@nox.session(python=PYTHONS)
def test(session: nox.Session) -> None:
    """Run the tests, or those that are named behind `--`."""
    make(session, "test")
