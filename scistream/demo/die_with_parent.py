"""Run a program that does not outlive the process that started it.

``python -m scistream.demo.die_with_parent PARENT PROGRAM [ARGUMENT ...]`` starts a session of its own, asks the kernel
to send SIGTERM when the process PARENT dies, and becomes PROGRAM. On other systems than Linux there is no such request:
there the program ends only if the parent ends it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Become the program. Does not return."""
    parent, program = int(arguments[0]), arguments[1:]
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("die_with_parent: the parent has ended already")
    os.execvp(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
