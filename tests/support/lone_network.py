"""A shell script in a network of its own, run by a user without privileges."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.requirements import missing, needs, unprivileged

LIMIT = 400
_ALONE = ["unshare", "--user", "--map-current-user", "--keep-caps", "--net", "--mount", "--pid", "--mount-proc"]
_END = ["--fork", "--kill-child"]
_SYSTEM = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


@contextmanager
def own_folder() -> Iterator[Path]:
    """Make a folder whose path any user can follow, unlike that of pytest's folders, and remove it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="scistream-user-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def run_alone(folder: Path, script: str, programs: Path) -> None:
    """Run a script as an unprivileged user in `folder`, which becomes theirs; all its processes end with it.

    It has privileges in its own network, and runs commands without any by putting ``$PLAIN`` before them.

    :param script: for ``bash -e``.
    :param programs: the first folder of PATH.
    :raises AssertionError: if the script fails, with what it has printed and the files ``*.log`` in the folder.
    """
    needs("bash", "timeout", "setpriv", "unshare", "nsenter", "ip")
    user = unprivileged(folder, programs / "python")
    owner = folder.stat()
    for path in folder.rglob("*"):
        os.chown(path, owner.st_uid, owner.st_gid)
    alone = [*user, *_ALONE, *_END]
    if subprocess.run([*alone, "ip", "link", "set", "lo", "up"], capture_output=True, timeout=60).returncode:
        missing("this machine gives an ordinary user no network of their own")
    ended = subprocess.run(
        ["timeout", "--signal=KILL", str(LIMIT), *alone, "bash", "-ec", script],
        cwd=folder,
        env={
            "HOME": str(folder),
            "PATH": f"{programs}:{_SYSTEM}",
            "PLAIN": "setpriv --inh-caps=-all --ambient-caps=-all",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=LIMIT + 30,
    )
    logs = "".join(f"\n--- {file.name}\n{file.read_text(errors='replace')}" for file in sorted(folder.rglob("*.log")))
    assert ended.returncode == 0, f"{ended.stdout}{logs}"
