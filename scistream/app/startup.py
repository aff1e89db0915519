"""Hide the join string of `appctrl` from other processes, before anything else is imported.

The imports of `cli` take most of a second, during which the join string could be read, so this module imports little.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from scistream.os_process import keep_secrets, take_secret_variable

JOIN_VARIABLE = "SCISTREAM_JOIN"
_SET_BY_PYTHON = ("LC_CTYPE", "C.UTF-8")
"""The variable that Python adds to its own environment if no locale is set."""


@dataclass(frozen=True)
class StartEnvironment:
    """The environment with which the process was started.

    :param join: the join string; empty if there is none.
    :param environment: the variables for the program, which are all but the join string.
    """

    join: str = field(repr=False)
    environment: dict[str, str] = field(repr=False)


_prepared: list[StartEnvironment] = []


def prepare() -> None:
    """Hide the join string before the command is imported; `take_environment` then returns it."""
    _prepared.append(take_environment())
    keep_secrets(no_core=False)  # the program inherits the limit, and may want core files


def take_environment() -> StartEnvironment:
    """Remove the join string from the environment of this process, and return it with all other variables."""
    if _prepared:
        return _prepared.pop()
    join = take_secret_variable(JOIN_VARIABLE)
    environment = dict(os.environ)
    name, value = _SET_BY_PYTHON
    if environment.get(name) == value and not _was_given(name):
        del environment[name]
    return StartEnvironment(join, environment)


def _was_given(name: str) -> bool:
    """Return True if the process was started with this variable, or if the system cannot tell."""
    try:
        with open("/proc/self/environ", "rb") as file:
            return any(entry.startswith(name.encode() + b"=") for entry in file.read().split(b"\0"))
    except OSError:
        return True
