"""The files that an S2CS writes: its store and its audit trail; and the policy that it reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scistream.check.findings import Finding, fail, ok, unseen, warn
from scistream.check.plan import CheckPlan
from scistream.config import ConfigError
from scistream.s2cs.audit.sinks import audit_file
from scistream.s2cs.policy.file import load_policy
from scistream.s2cs.start import machine_problems
from scistream.s2cs.store.check import StoreUnreadableError, check_store
from scistream.shared_settings import resolve_path
from scistream.units import spoken_size

_LITTLE = 2**30
_NEARLY_NOTHING = 32 * 2**20
_FEW_FILES = 1000
_MOST_PROBLEMS = 5


@dataclass(frozen=True)
class Space:
    """The room of the file system of a folder.

    :ivar free: bytes for processes without privileges.
    :ivar files: how many files can still be created; None if the file system has no such limit.
    """

    folder: Path
    free: int
    files: int | None


def space_of(folder: Path) -> Space | None:
    """Return the room in a folder; None if it is not there or not visible."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return Space(folder, found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)


def findings(plan: CheckPlan) -> Iterator[Finding]:
    """Yield what is found about the files of an S2CS."""
    if plan.server is None or plan.file is None:
        return
    store = resolve_path(plan.file, plan.server.state)
    trail = audit_file(plan.server.audit, plan.file, store)
    for problem in machine_problems(plan.server, plan.file):
        if problem.keys[0] != "listen":  # the ports are another subject
            yield fail(f"store.{problem.keys[0]}", problem.why, "correct the setting")
    folders = {store.parent: "state"}
    if trail is not None:
        folders.setdefault(trail.parent, "audit")
    for folder, key in folders.items():
        yield from _folder(folder, key)
    yield _store(store)
    if plan.server.policy:
        yield _policy(resolve_path(plan.file, plan.server.policy))


def _folder(folder: Path, key: str) -> Iterator[Finding]:
    name = f"store.folder-of-{key}"
    try:
        is_there = folder.is_dir()
    except PermissionError:
        is_there = True
    if not is_there:
        why = f"{folder}, the folder of `{key}`, does not exist"
        yield fail(name, why, f"install -d -m 0700 -o USER {folder}, with the user of the S2CS")
        return
    space = space_of(folder)
    if space is None:
        yield unseen(name, str(folder))
        return
    yield space_finding(space, key)
    if not os.access(folder, os.W_OK | os.X_OK):
        yield unseen(f"{name}-rights", f"whether the user of the S2CS may write to {folder}")


def space_finding(space: Space, key: str) -> Finding:
    """Judge the room of the folder of a setting."""
    name = f"store.space-of-{key}"
    why = f"{space.folder}, the folder of `{key}`, has room for {spoken_size(space.free)}"
    if space.files is not None and space.files < _FEW_FILES:
        why += f" and {space.files} more files"
        return warn(name, why, f"remove files there: df -i {space.folder}")
    if space.free >= _LITTLE:
        return ok(name, why)
    remedy = f"free some: df -h {space.folder}"
    why += "; without room, new streams are refused"
    return fail(name, why, remedy) if space.free < _NEARLY_NOTHING else warn(name, why, remedy)


def _store(store: Path) -> Finding:
    name = "store.records"
    try:
        if not store.exists():
            return ok(name, f"{store} does not exist yet; the S2CS creates it")
        if not os.access(store, os.R_OK):
            return unseen(name, str(store))
    except PermissionError:
        return unseen(name, str(store))
    try:
        found = check_store(store)
    except StoreUnreadableError as problem:
        return fail(name, str(problem), f"scistream store check {store}")
    if found.problems:
        named = "; ".join(one.what for one in found.problems[:_MOST_PROBLEMS])
        return fail(name, f"{store}: {named}", f"scistream store check {store} says what to do")
    return ok(name, f"{store} is sound, with {found.records} records, {len(found.live)} of them of live streams")


def _policy(file: Path) -> Finding:
    name = "store.policy"
    try:
        with file.open("rb"):
            pass
    except PermissionError:
        return unseen(name, str(file))
    except OSError:  # `load_policy` says so
        pass
    try:
        policy = load_policy(file)
    except ConfigError as problem:
        return fail(name, "; ".join(str(problem).splitlines()), f"scistream policy check {file}")
    return ok(name, f"{file} has {len(policy.rules)} rules")
