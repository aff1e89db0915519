"""Find the daemon that runs with a configuration, and what its processes may use, from /proc."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scistream.check.plan import CheckPlan
from scistream.check.system import System

_OPTIONS = ("--config", "-c")
_FILES = re.compile(r"^Max open files\s+(\d+|unlimited)\s+(\d+|unlimited)", re.MULTILINE)
_GROUPS = "sys/fs/cgroup"


@dataclass(frozen=True)
class RunningDaemon:
    """A process of `twistd s2cs` or `twistd s2ds`.

    :ivar files: its hard limit of open files; None if it is not visible or there is none.
    :ivar group: its control group (version 2), such as ``/system.slice/s2ds.service``; empty if it is not known.
    """

    pid: int
    files: int | None
    group: str

    @property
    def unit(self) -> str | None:
        """The systemd unit of its control group, if it is one of a service."""
        name = Path(self.group).name
        return name if name.endswith(".service") else None


def find_daemon(system: System, plan: CheckPlan) -> RunningDaemon | None:
    """Return the first process that was started with the configuration file of the plan; None if there is none."""
    if plan.file is None:
        return None
    kind = "s2cs" if plan.server is not None else "s2ds"
    for pid in sorted(int(name) for name in system.names("proc") if name.isdigit()):
        words = (system.text(f"proc/{pid}/cmdline") or "").split("\0")
        if kind in words and any(_is_same(system, pid, text, plan.file) for text in _configs(words)):
            return _look_at(system, pid)
    return None


def _configs(words: list[str]) -> Iterator[str]:
    """Yield the values of --config in a command line."""
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in _OPTIONS:
            yield value if equals else "".join(words[place + 1 : place + 2])


def _is_same(system: System, pid: int, text: str, file: Path) -> bool:
    """Return True if a file that a process names is `file`; a relative name counts by the folder of the process."""
    named = Path(text)
    if named.is_absolute():
        return named.resolve() == file.resolve()
    try:
        folder = (system.root / f"proc/{pid}/cwd").readlink()
    except OSError:  # the daemons hide it from other processes of their user
        return named.name == file.name
    return (folder / named).resolve() == file.resolve()


def _look_at(system: System, pid: int) -> RunningDaemon:
    limits = _FILES.search(system.text(f"proc/{pid}/limits") or "")
    files = int(limits[2]) if limits is not None and limits[2].isdigit() else None
    lines = (system.text(f"proc/{pid}/cgroup") or "").splitlines()
    group = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")
    return RunningDaemon(pid, files, group)


def most_tasks(system: System, daemon: RunningDaemon) -> int | None:
    """Return how many processes and threads the control group of a daemon may have; None without a limit."""
    group = daemon.group.strip("/")
    return system.number(f"{_GROUPS}/{group}/pids.max") if group else None
