"""The programs in examples/, started by the commands in their README.rst, with a real stream between them.

The batch jobs of examples/slurm/ run under a stand-in for Slurm here, which starts each job at once, and under a real
Slurm in `test_slurm`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import World, free_ports

import scistream
from scistream.protocol.messages import CONS, PROD
from support.facilities import HOST
from support.leased_ports import can_bind
from support.programs import INSTALLED, Program
from support.requirements import needs, needs_module
from support.waiting import until

leaves_nothing = pytest.mark.usefixtures("nothing_left")

EXAMPLES = Path(scistream.__file__).parents[1] / "examples"
STAND_IN = Path(__file__).parent / "slurm_stand_in"


def start(world: World, example: str, join: str, side: str, port: int, *more: str) -> Program:
    """Start a side as the README of an example says, with `port` in place of the one there, and more arguments."""
    page = (EXAMPLES / example / "README.rst").read_text()
    [(line, old)] = [
        (line, number[1])
        for line in re.findall(rf"^    \$ (appctrl {side}\b.*)$", page, re.MULTILINE)
        if (number := re.search(r"--listen 0\.0\.0\.0:(\d+)", page))
    ]
    _, *words = [word.replace(old, str(port)) for word in shlex.split(line)]
    own = {
        "python": sys.executable,
        **{name: str(EXAMPLES / example / name) for name in ("producer.py", "consumer.py")},
    }
    command = [own.get(word, word) for word in words]
    return world.start(str(INSTALLED / "appctrl"), *command, *more, env={"SCISTREAM_JOIN": join})


@leaves_nothing
@pytest.mark.parametrize(
    ("example", "modules", "result"),
    [
        pytest.param("zeromq", ["zmq"], r"(\d+ frames, SHA-256 \w{64})"),
        pytest.param("http", [], r"(\d+ frames, SHA-256 \w{64})"),
        pytest.param("numpy", ["numpy", "matplotlib"], r"(\d+ frames, \d+ counts)"),
        pytest.param("grpc", ["grpc_tools"], r"(\d+ frames, SHA-256 \w{64})", marks=pytest.mark.long),
    ],
)
def test_both_ends_of_an_example_agree(world: World, example: str, modules: list[str], result: str) -> None:
    for module in modules:
        needs_module(module)
    port = free_ports()
    with world.request() as requested:
        consumer = start(world, example, requested.join[CONS], "cons", port)
        producer = start(world, example, requested.join[PROD], "prod", port)
        requested.streaming()
        lines = {}
        for name, program in (("consumer", consumer), ("producer", producer)):
            found = re.search(result, program.line())
            assert found is not None, name
            lines[name] = found[1]
        assert lines["consumer"] == lines["producer"]
        assert int(lines["consumer"].split()[0]) >= 50
        consumer.end()
        producer.stop()
    if example == "numpy":
        picture = consumer.log.parent / "spot.png"
        assert picture.read_bytes().startswith(b"\x89PNG"), "without a display the plot is a file"


@leaves_nothing
def test_batch_jobs_that_start_before_their_stream_is_requested_join_it(world: World, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    environment = {
        "PATH": f"{STAND_IN}:{INSTALLED}:{world.env['PATH']}",
        "STREAMS": str(tmp_path),
        "EXAMPLE": str(EXAMPLES / "http"),
        "FIRST_PORT": str(free_ports() - 1),
        "STAND_IN_JOBS": str(jobs),
    }
    submit = ["env", "-C", str(EXAMPLES / "slurm"), "./submit.sh", world.lab.s2cs, world.centre.s2cs, HOST]
    try:
        submitted = world.start(*submit, env=environment).end(120.0)
        assert " --> " in submitted.stdout
        (folder,) = tmp_path.glob("stream-*")
        assert folder.stat().st_mode & 0o077 == 0
        output = {name: folder / f"{name}.out" for name in ("producer", "consumer", "release")}
        until((jobs / "ended-3").exists, lambda: [file.read_text() for file in folder.glob("*.out")], 60.0)
    finally:
        world.start(str(STAND_IN / "scancel"), "1", "2", "3", env=environment).end()
    words = {name: file.read_text() for name, file in output.items()}
    assert "appctrl: waiting for " in words["producer"] + words["consumer"], "a job was there before the join files"
    sent, come = (re.search(r"\d+ frames, SHA-256 \w{64}", words[name]) for name in ("producer", "consumer"))
    assert sent is not None
    assert come is not None
    assert sent[0] == come[0]
    assert "released " in words["release"]


RUN_NOTEBOOK = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=120).execute()
for cell in notebook.cells:
    for output in cell.get("outputs", []):
        print(output.get("text", ""), *output.get("data", {}))
"""


@leaves_nothing
@pytest.mark.long
def test_the_notebook_runs_in_a_kernel(world: World) -> None:
    for module in ("nbclient", "ipykernel", "matplotlib"):
        needs_module(module)
    facilities = {
        "PROD": world.lab.s2cs,
        "CONS": world.centre.s2cs,
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    said = world.start(
        sys.executable, "-c", RUN_NOTEBOOK, str(EXAMPLES / "notebook" / "stream.ipynb"), env=facilities
    ).end(180.0)
    assert "50 frames have come, all right" in said.stdout
    assert "image/png" in said.stdout
    assert "released" in said.stdout


@pytest.mark.long
def test_a_client_of_pvaccess_monitors_an_image(fresh_world: Callable[..., World]) -> None:
    """Server and gateway listen on the same port number, so the two facilities have an address each."""
    needs_module("p4p")
    world = fresh_world(centre={"host": "127.0.0.2"})
    port = world.centre.gateways[0].first_port
    with world.request(1, "1Gbit", "--listen-port", f"cons={port}") as requested:
        consumer = start(world, "pvaccess", requested.join[CONS], "cons", port)
        producer = start(world, "pvaccess", requested.join[PROD], "prod", port, "--address", HOST)
        requested.streaming()
        assert consumer.end(60.0).stdout == "received 20 images of 262144 pixels, all right\n"
        producer.stop()


@pytest.mark.long
def test_the_steps_of_the_apptainer_image_install_the_commands(installed: Path, tmp_path: Path) -> None:
    """Run its steps in a folder in place of /opt, since no Apptainer can be expected."""
    needs("bash")
    recipe = (EXAMPLES / "slurm" / "scistream.def").read_text()
    steps = dict(re.findall(r"^%(\w+)\n(.*?)(?=^%|\Z)", recipe, re.MULTILINE | re.DOTALL))
    [(pattern, _)] = re.findall(r"^    (\S+) (/opt/)$", steps["files"], re.MULTILINE)
    (wheel,) = installed.parents[1].glob(pattern)
    shutil.copy(wheel, tmp_path)
    post, environment = (steps[name].replace("/opt", str(tmp_path)) for name in ("post", "environment"))
    script = f"{post}\n{environment}\nappctrl --version"
    done = subprocess.run(
        ["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"appctrl, version {scistream.__version__}\n")
    assert not list(tmp_path.glob("*.whl"))


@pytest.mark.parametrize("name", ["producer.sbatch", "consumer.sbatch", "producer.pbs", "consumer.pbs", "submit.sh"])
def test_the_shell_can_read_a_batch_job(name: str) -> None:
    subprocess.run(["bash", "-n", str(EXAMPLES / "slurm" / name)], timeout=30, check=True)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[int]:
    """Run a RabbitMQ in a folder of its own, and return its port."""
    needs("rabbitmq-server", "rabbitmqctl", "epmd")
    port, distribution, mapper = free_ports(), free_ports(), free_ports()
    (tmp_path / "conf").write_text(f"listeners.tcp.1 = {HOST}:{port}\n")
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "RABBITMQ_NODENAME": f"scistream{port}@localhost",
        "RABBITMQ_CONFIG_FILE": str(tmp_path / "conf"),
        "RABBITMQ_MNESIA_BASE": str(tmp_path / "data"),
        "RABBITMQ_LOG_BASE": str(tmp_path / "log"),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(tmp_path / "plugins"),
        "RABBITMQ_PID_FILE": str(tmp_path / "pid"),
        "ERL_EPMD_PORT": str(mapper),
        "ERL_EPMD_ADDRESS": HOST,
    }
    names = Program(["epmd", "-port", str(mapper), "-address", HOST], tmp_path / "epmd.log", environment)
    server = Program(["/usr/lib/rabbitmq/bin/rabbitmq-server"], tmp_path / "rabbitmq.log", environment)
    try:
        until(lambda: not can_bind(HOST, port), lambda: str(server), 120.0)
        yield port
    finally:
        server.stop()
        names.stop()


@leaves_nothing
@pytest.mark.long
def test_frames_wait_in_a_broker_for_a_consumer_elsewhere(world: World, broker: int) -> None:
    needs_module("pika")
    detector = world.start(sys.executable, str(EXAMPLES / "amqp" / "producer.py"), "--port", str(broker)).end(60.0)
    with world.request() as requested:
        consumer = start(world, "amqp", requested.join[CONS], "cons", broker)
        start(world, "amqp", requested.join[PROD], "prod", broker).end()
        requested.streaming()
        come = consumer.end(60.0).stdout
    assert come.removeprefix("received ") == detector.stdout.removeprefix("sent ")
