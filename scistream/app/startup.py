"""What `appctrl` does before anything else: it wipes the traces of the join string, which others could read.

Nothing heavy is imported here: the imports of `cli` take the better part of a second.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from scistream.os_process import keep_secrets, take_secret_variable

JOIN_VARIABLE = "SCISTREAM_JOIN"
_PYTHONS_OWN = ("LC_CTYPE", "C.UTF-8")
"""What Python sets in its own environment where no locale is set."""


@dataclass(frozen=True)
class Beginning:
    """What was there when the process started.

    :param join: the join string of the environment; an empty string if there is none.
    :param environment: for the program: what this process was given, without the join string.
    """

    join: str = field(repr=False)
    environment: dict[str, str] = field(repr=False)


_begun: list[Beginning] = []


def prepare() -> None:
    """Hide the join string before the command is imported; `begin` gives what was found."""
    _begun.append(begin())
    keep_secrets(no_core=False)  # the program's core files are its own affair


def begin() -> Beginning:
    """Take the join string out of the environment, and note what is left."""
    if _begun:
        return _begun.pop()
    join = take_secret_variable(JOIN_VARIABLE)
    environment = dict(os.environ)
    name, value = _PYTHONS_OWN
    if environment.get(name) == value and not _was_given(name):
        del environment[name]
    return Beginning(join, environment)


def _was_given(name: str) -> bool:
    """Whether a variable was in the environment that this process was started with."""
    try:
        with open("/proc/self/environ", "rb") as file:
            return any(entry.startswith(name.encode() + b"=") for entry in file.read().split(b"\0"))
    except OSError:
        return True  # a system that does not tell
