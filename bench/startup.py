"""Measure how long the commands take to start: ``python -m bench.startup``.

Each command runs several times; the median of the wall time and of the processor time are printed, and compared with
the limits that the commands are to keep on a machine that is otherwise idle.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import click

from scistream.pki.authority import init_authority, issue
from scistream.s2uc.history import RememberedStream, StreamHistory

INSTALLED = Path(sys.executable).parent
HELP, LIST = 0.25, 0.4
"""Seconds: the limits for the help of a command and for `s2uc list`."""
COMMANDS = {
    "s2uc --help": HELP,
    "s2uc request --help": HELP,
    "s2uc list": LIST,
    "appctrl --help": HELP,
    "scistream --help": HELP,
}


class Start(NamedTuple):
    """How long a command takes.

    :ivar wall: the median of the wall time, in seconds; `cpu` likewise of the processor time.
    """

    command: str
    wall: float
    cpu: float
    limit: float


def measure(command: str, limit: float, runs: int, env: dict[str, str]) -> Start:
    """Run a command several times.

    :raises CalledProcessError: if it fails.
    """
    name, *arguments = command.split()
    walls, cpus = [], []
    for _ in range(runs + 1):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([INSTALLED / name, *arguments], env=env, stdout=subprocess.DEVNULL, check=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        walls.append(time.perf_counter() - started)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return Start(command, statistics.median(walls[1:]), statistics.median(cpus[1:]), limit)  # the first fills caches


def _prepare(folder: Path) -> None:
    """Give a user a configuration with certificates, which `s2uc list` reads, and some streams."""
    authority = init_authority(folder / "pki", "Lab").certificate
    files = issue(folder / "pki", "user", "ada@lab.example")
    (folder / "scistream").mkdir()
    (folder / "scistream" / "s2uc.toml").write_text(
        f'certificate = "{files.certificate}"\nkey = "{files.key}"\nauthorities = ["{authority}"]\n'
    )
    history = StreamHistory(folder / "scistream" / "streams")
    for number in range(10):
        history.add(
            RememberedStream(
                uid=f"{number:08x}-1234-4234-8234-123456789abc",
                prod="lab.example:5000",
                cons="centre.example:5000",
                num_conn=4,
                rate=10_000.0,
                asked_at=time.time(),
                expires_at=None,
            )
        )


@click.command()
@click.option("--runs", type=click.IntRange(1), default=11, show_default=True, help="Runs of each command.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def main(runs: int, as_json: bool) -> None:
    """Measure how long the commands take to start."""
    with tempfile.TemporaryDirectory() as folder:
        _prepare(Path(folder))
        env = {**os.environ, "XDG_STATE_HOME": folder, "XDG_CONFIG_HOME": folder}
        found = [measure(command, limit, runs, env) for command, limit in COMMANDS.items()]
    if as_json:
        click.echo(json.dumps([start._asdict() for start in found]))
    else:
        click.echo(f"{'command':<22}{'median':>10}{'processor':>12}{'limit':>10}")
        for start in found:
            click.echo(f"{start.command:<22}{start.wall:>8.3f} s{start.cpu:>10.3f} s{start.limit:>8.2f} s")
    sys.exit(1 if any(start.wall > start.limit for start in found) else 0)


if __name__ == "__main__":
    main()
