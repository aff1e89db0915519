"""The package as users get it: a wheel, installed into an environment that has only it and its dependencies.

The environment is made once for all processes of a test run, and readable by every user.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO

from support.requirements import NOBODY, nobody_can_run
from support.waiting import until

REPOSITORY = Path(__file__).resolve().parents[2]
PARTS = ("scistream", "twisted", "setup.cfg", "pyproject.toml", "README.rst", "LICENSE")
PIP = ("--disable-pip-version-check", "--no-input", "--quiet")


def run(*command: str | Path, cwd: Path) -> str:
    """Return a program's standard output; the program does not see the modules of the tests."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=alone, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command} ended with status {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def installed_wheel(folder: Path) -> Path:
    """Return the folder of the commands in the environment, which is made in `folder` unless it is there."""
    folder.mkdir(exist_ok=True)
    programs = folder / "venv" / "bin"
    with open(folder / "lock", "w") as lock:
        until(lambda: _is_locked(lock), lambda: "another process makes the environment, and does not end", 300.0)
        if not (folder / "made").exists():
            _make(folder, programs)
            (folder / "made").touch()
    return programs


def _is_locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make(folder: Path, programs: Path) -> None:
    source = folder / "source"  # a build leaves files beside what it reads
    source.mkdir()
    for part in PARTS:
        if (REPOSITORY / part).is_dir():
            shutil.copytree(REPOSITORY / part, source / part, ignore=shutil.ignore_patterns("__pycache__", "*.cache"))
        else:
            shutil.copy(REPOSITORY / part, source)
    run(sys.executable, "-m", "pip", "wheel", *PIP, "--no-deps", "--wheel-dir", folder, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    run(_python(folder), "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    pip = (sys.executable, "-m", "pip", "--python", programs / "python")
    run(*pip, "install", *PIP, "--no-compile", wheel, cwd=folder)  # compiling all would take longer than the tests
    shutil.rmtree(source)
    if os.geteuid() == 0:  # whoever runs the commands also keeps what Python compiles
        for path in (folder / "venv", *(folder / "venv").rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def _python(folder: Path) -> str:
    """Return a Python that an unprivileged user can run: not one in root's home folder."""
    if os.geteuid() != 0 or nobody_can_run(sys.executable, "", folder):
        return sys.executable
    system = "/usr/bin/python3"
    return system if nobody_can_run(system, "import venv", folder) else sys.executable
