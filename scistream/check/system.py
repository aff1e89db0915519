"""The files in /proc and /sys that checks read. Tests give another root folder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

NET = "proc/thread-self/net"
"""The folder of the network namespace of this thread."""


class System:
    """Reads /proc and /sys below a root folder. What is not there, or may not be read, is None or empty."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def text(self, name: str) -> str | None:
        """Return the content of a file, without white space at its ends."""
        try:
            return (self.root / name).read_text(errors="replace").strip()
        except OSError:
            return None

    def number(self, name: str) -> int | None:
        """Return the number in a file."""
        with suppress(ValueError):
            return int(self.text(name) or "")
        return None

    def sysctl(self, name: str) -> str | None:
        """Return the value of a setting of the kernel, such as ``net.core.somaxconn``, with single spaces."""
        text = self.text(f"proc/sys/{name.replace('.', '/')}")
        return None if text is None else " ".join(text.split())

    def sysctl_numbers(self, name: str) -> list[int]:
        """Return the numbers of such a setting; empty if there are none."""
        with suppress(ValueError):
            return [int(word) for word in (self.sysctl(name) or "").split()]
        return []

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, sorted."""
        try:
            return sorted(entry.name for entry in (self.root / folder).iterdir())
        except OSError:
            return []

    def link(self, name: str) -> str | None:
        """Return the last part of what a symbolic link names."""
        try:
            return (self.root / name).readlink().name
        except OSError:
            return None
