"""Limits of processes: open files, pipes, and what systemd allows the daemon that runs."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass

from scistream.check.findings import Finding, ok, unseen, warn
from scistream.check.plan import CheckPlan
from scistream.check.running import RunningDaemon, most_tasks
from scistream.check.system import System
from scistream.s2ds.elements.pool import OWN_DESCRIPTORS
from scistream.s2ds.relay.buffers import LEAST_PIPE
from scistream.units import spoken_size

_PAGE = 4096
_USUAL_FILES = 1_048_576
_FEW_CONNECTIONS = 4096
"""A gateway that can carry fewer connections is likely to have been given the limit of interactive programs."""
_BESIDE_LINKS = 256
"""Descriptors of an S2CS beside its links: store, audit trail, gateways."""
_BESIDE_ELEMENTS = 8
_NEARLY_ALL = 0.8
_FEW_PIPES = 16


@dataclass(frozen=True)
class LimitFacts:
    """The limits of the daemon that runs, or else of this process.

    :ivar files: the hard limit of open files of a process; None if it is unlimited.
    :ivar system_files: the open files of the whole system, and their limit; None if not visible.
    :ivar pipe_pages: fs.pipe-user-pages-soft; 0: no limit; None if not visible.
    :ivar largest_pipe: fs.pipe-max-size; None if not visible.
    :ivar daemon: the daemon that runs, if there is one.
    :ivar tasks: the processes and threads that its control group may have; None without a limit.
    """

    files: int | None
    system_files: tuple[int, int] | None
    pipe_pages: int | None
    largest_pipe: int | None
    daemon: RunningDaemon | None = None
    tasks: int | None = None


def gather(system: System, daemon: RunningDaemon | None) -> LimitFacts:
    """Read the limits."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    own = None if hard == resource.RLIM_INFINITY else hard
    used = system.sysctl_numbers("fs.file-nr")
    return LimitFacts(
        daemon.files if daemon is not None else own,
        (used[0], used[2]) if len(used) == 3 else None,
        system.number("proc/sys/fs/pipe-user-pages-soft"),
        system.number("proc/sys/fs/pipe-max-size"),
        daemon,
        most_tasks(system, daemon) if daemon is not None else None,
    )


def findings(facts: LimitFacts, plan: CheckPlan) -> Iterator[Finding]:
    """Yield what is found about limits."""
    yield _files(facts, plan)
    yield _system_files(facts)
    if plan.server is None:
        yield _pipes(facts)
    yield from _daemon(facts, plan)


def _files(facts: LimitFacts, plan: CheckPlan) -> Finding:
    name = "limits.open-files"
    whose = f"the daemon ({facts.daemon.pid})" if facts.daemon is not None else "a process started here"
    if facts.files is None:
        return ok(name, f"{whose} may open any number of files, or its limit is not visible")
    if plan.server is not None:
        needed = plan.server.limits.links + _BESIDE_LINKS
        why = f"{whose} may open {facts.files} files; {plan.server.limits.links} links need {needed}"
        return ok(name, why) if facts.files >= needed else warn(name, why, _more_files(facts, needed))
    elements = max(1, plan.gateway.element_count) if plan.gateway is not None else 1
    most = elements * ((facts.files - OWN_DESCRIPTORS) // 2)
    wanted = plan.gateway.limits.connections if plan.gateway is not None else 0
    why = f"{whose} may open {facts.files} files, enough for {most} connections"
    if most >= (wanted or _FEW_CONNECTIONS):
        return ok(name, why)
    why += f", but `connections` in [limits] is {wanted}" if wanted else ", which is few"
    return warn(name, why, _more_files(facts, -(-2 * (wanted or 0) // elements) + OWN_DESCRIPTORS))


def _more_files(facts: LimitFacts, needed: int) -> str:
    unit = facts.daemon.unit if facts.daemon is not None else None
    return f"systemctl edit {unit or 'UNIT'}, with LimitNOFILE={max(needed, _USUAL_FILES)} below [Service]"


def _system_files(facts: LimitFacts) -> Finding:
    name = "limits.open-files-of-all"
    if facts.system_files is None:
        return unseen(name, "fs.file-nr")
    used, most = facts.system_files
    why = f"{used} of {most} files that all processes may open are open"
    return ok(name, why) if used < most * _NEARLY_ALL else warn(name, why, f"sysctl -w fs.file-max={2 * most}")


def _pipes(facts: LimitFacts) -> Finding:
    name = "limits.pipes"
    if facts.pipe_pages is None or facts.largest_pipe is None:
        return unseen(name, "fs.pipe-user-pages-soft and fs.pipe-max-size")
    slow = "data without TLS on both sides is copied, which costs processor time"
    if facts.largest_pipe < LEAST_PIPE:
        why = f"fs.pipe-max-size is {facts.largest_pipe}, too small for the pipes of a gateway: {slow}"
        return warn(name, why, "sysctl -w fs.pipe-max-size=1048576")
    pages = _FEW_PIPES * LEAST_PIPE // _PAGE
    if 0 < facts.pipe_pages < pages:
        why = f"fs.pipe-user-pages-soft is {facts.pipe_pages}, less than {_FEW_PIPES} pipes need: {slow}"
        return warn(name, why, "sysctl -w fs.pipe-user-pages-soft=16384")
    size = "any number of bytes" if not facts.pipe_pages else spoken_size(facts.pipe_pages * _PAGE)
    return ok(name, f"the pipes of a user may hold {size}")


def _daemon(facts: LimitFacts, plan: CheckPlan) -> Iterator[Finding]:
    if facts.daemon is None:
        if plan.file is not None:
            yield ok("limits.daemon", f"no daemon runs with {plan.file}; the limits are those of this process")
        return
    unit = f"of {facts.daemon.unit}" if facts.daemon.unit else "not of a systemd unit"
    yield ok("limits.daemon", f"process {facts.daemon.pid}, {unit}, runs with {plan.file}")
    if facts.tasks is not None and plan.gateway is not None:
        needed = plan.gateway.element_count + _BESIDE_ELEMENTS
        why = f"its control group may have {facts.tasks} processes and threads; its elements need up to {needed}"
        name = "limits.tasks"
        remedy = f"systemctl edit {facts.daemon.unit or 'UNIT'}, with TasksMax={max(needed, 512)} below [Service]"
        yield ok(name, why) if facts.tasks >= needed else warn(name, why, remedy)
