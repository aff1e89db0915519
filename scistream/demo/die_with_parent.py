"""Runs a program that does not outlive the process that started it.

``python -m scistream.demo.die_with_parent PARENT PROGRAM [ARGUMENT ...]``: makes a session of its own, asks the kernel
for a SIGTERM should the process PARENT die in any way, and becomes PROGRAM. Where the kernel knows no such request
(other systems than Linux), only an orderly end of the parent ends the program.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Become the program; does not return."""
    parent, program = int(arguments[0]), arguments[1:]
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("tether: the parent has gone")
    os.execvp(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
