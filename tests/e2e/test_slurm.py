"""The batch jobs of examples/slurm/ under a real Slurm with one node, which keeps its files in a folder of its own."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import World, free_ports

import scistream
from support.facilities import HOST
from support.programs import INSTALLED, Program
from support.requirements import needs
from support.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("nothing_left")]

EXAMPLES = Path(scistream.__file__).parents[1] / "examples"
CONFIGURATION = """
ClusterName=test
SlurmctldHost={node}({HOST})
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={controller}
SlurmdPort={daemon}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/node.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={node} NodeAddr={HOST} CPUs=8 State=UNKNOWN
PartitionName=main Nodes={node} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """Run a Slurm with one node; return the variables with which its commands find it."""
    needs("munged", "slurmctld", "slurmd", "sbatch", "scancel", "sinfo")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # the path of a socket must be short
    for name in ("state", "spool", "logs"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(1024))
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    node = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            folder=folder, node=node, user=user, HOST=HOST, controller=free_ports(), daemon=free_ports()
        )
    )
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    daemons: list[Program] = []

    def start(*command: str) -> None:
        daemons.append(Program(command, folder / "logs" / f"{command[0]}.err", environment))

    def idle() -> bool:
        seen = subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True, env=environment, timeout=30)
        return seen.stdout.strip() == "idle"

    def ended() -> bool:
        seen = subprocess.run(["squeue", "-h"], capture_output=True, text=True, env=environment, timeout=30)
        return seen.returncode == 0 and not seen.stdout.strip()

    try:
        start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge)
        until((folder / "munge.socket").exists, lambda: str(daemons[-1]))
        start("slurmctld", "-D")
        start("slurmd", "-D", "-N", node)
        until(idle, lambda: "\n".join(map(str, daemons)))
        yield {"SLURM_CONF": environment["SLURM_CONF"]}
        subprocess.run(["scancel", "--partition=main"], env=environment, timeout=30, check=True)
        until(ended, lambda: "jobs do not end", 60.0)
    finally:
        for daemon in reversed(daemons):
            daemon.stop()
        shutil.rmtree(folder)


@pytest.fixture
def environment(world: World, slurm: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Return what a user's environment has besides, on the login node and in the jobs."""
    return {
        **slurm,
        "PATH": f"{INSTALLED}:{world.env['PATH']}",
        "STREAMS": str(tmp_path),
        "EXAMPLE": str(EXAMPLES / "http"),
        "FIRST_PORT": str(free_ports() - 1),
    }


def outputs(folder: Path) -> dict[str, str]:
    return {file.stem: file.read_text() for file in folder.glob("*.out")}


def assert_same(words: dict[str, str]) -> None:
    sent, come = (re.search(r"\d+ frames, SHA-256 \w{64}", words[name]) for name in ("producer", "consumer"))
    assert sent is not None, words
    assert come is not None, words
    assert sent[0] == come[0]


def test_two_jobs_stream_and_their_stream_is_released(
    world: World, environment: dict[str, str], tmp_path: Path
) -> None:
    submit = ["env", "-C", str(EXAMPLES / "slurm"), "./submit.sh", world.lab.s2cs, world.centre.s2cs, HOST]
    submitted = world.start(*submit, env=environment).end(120.0)
    assert " --> " in submitted.stdout
    (folder,) = tmp_path.glob("stream-*")
    until(lambda: "released " in outputs(folder).get("release", ""), lambda: outputs(folder), 120.0)
    assert_same(outputs(folder))


def test_a_consumer_may_start_before_the_request_and_its_producer_after_it(
    world: World, environment: dict[str, str], tmp_path: Path
) -> None:
    uid = str(uuid.uuid4())

    def submit(side: str, *arguments: str) -> str:
        job = str(EXAMPLES / "slurm" / f"{side}.sbatch")
        output = f"--output={tmp_path}/{side}.out"
        environment["FIRST_PORT"] = str(free_ports() - 100)
        return world.start("sbatch", "--parsable", output, job, *arguments, env=environment).end().stdout.strip()

    submit("consumer", str(tmp_path / f"{uid}.cons"))
    until(lambda: "appctrl: waiting for" in outputs(tmp_path).get("consumer", ""), lambda: outputs(tmp_path), 60.0)
    between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs, "--uid", uid, "--join-dir", str(tmp_path)]
    request = world.start_s2uc("request", *between)
    until((tmp_path / f"{uid}.prod").exists, lambda: str(request))
    producer = submit("producer", str(tmp_path / f"{uid}.prod"), HOST)
    request.end(60.0)
    until(lambda: "received" in outputs(tmp_path)["consumer"], lambda: outputs(tmp_path), 60.0)
    world.start("scancel", producer, env=environment).end()
    assert_same(outputs(tmp_path))
    world.s2uc("release", uid)
