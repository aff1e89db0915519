"""The start of `appctrl`: the join string is hidden before any slow import."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

KEY = "qP3_x8ZkT0wLmN-yRf7uVb2sHdJ5gCe9aXo1iQtKzE4"
JOIN = f"scistream://0123abcd-4567-89ef-0123-456789abcdef:{KEY}@127.0.0.1:9/cons"
LOOK = """
import ctypes, sys
class Spy:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("click", "twisted", "msgspec"):
            try:
                with open("/proc/self/environ") as file:
                    is_open = sys.argv[1] in file.read()
            except PermissionError:  # it is hidden from all but root, itself too
                is_open = False
            print("open" if is_open else "hidden", ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
            sys.exit(0)
sys.meta_path.insert(0, Spy())
"""
AT_ONCE = LOOK + "import click\n"
AS_INSTALLED = LOOK + "from scistream.entry import appctrl\nappctrl()\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows environments in /proc")
@pytest.mark.parametrize(
    ("code", "seen"), [(AT_ONCE, "open 1"), (AS_INSTALLED, "hidden 0")], ids=["control", "appctrl"]
)
def test_the_join_string_is_hidden_before_the_first_import_that_takes_time(code: str, seen: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", code, KEY, "cons"],
        env={**os.environ, "SCISTREAM_JOIN": JOIN},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout == f"{seen}\n"
