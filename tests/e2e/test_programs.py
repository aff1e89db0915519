"""A program that appctrl starts, and the caller of appctrl: neither notices appctrl."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from harness import Requested, World, free_ports

from scistream.protocol.messages import CONS, PROD
from support.facilities import HOST
from support.requirements import needs
from support.waiting import PATIENCE, until

pytestmark = pytest.mark.usefixtures("linux")

COUNTING = """
import os, signal, sys, time
counts = {}
def count(number, frame):
    counts[number] = counts.get(number, 0) + 1
    os.write(1, signal.Signals(number).name.encode() + b"\\n")  # a signal may come in the middle of print()
for number in map(int, sys.argv[1:]):
    signal.signal(number, count)
print("ready", flush=True)
while signal.SIGRTMIN not in counts:
    time.sleep(0.01)
sys.exit(7 if set(counts.values()) == {1} else 1)
"""
"""Tells of each signal until SIGRTMIN comes."""

INTERACTIVE = """
import os, select, signal, sys
interrupts = []
signal.signal(signal.SIGINT, lambda *_: (interrupts.append(1), os.write(1, b"interrupted\\n")))
print("in front:", os.tcgetpgrp(0) == os.getpgrp(), flush=True)
while True:
    if select.select([0], [], [], 0.05)[0]:
        if (line := sys.stdin.readline()) == "end\\n":
            sys.exit(5)
        print("heard", line.strip(), "after", len(interrupts), "interrupts", flush=True)
"""
"""Reads lines from its terminal. It looks for signals again and again: none can fall between a look and a read."""

STOPPABLE = """
import os, time
print("ready", flush=True)
while not os.path.exists("go"):
    time.sleep(0.2)
print("went on", flush=True)
raise SystemExit(3)
"""
"""Runs until a file is there. It has no children: a shell that is stopped while its child by vfork has yet to call exec
waits for that child, which is stopped too, and never stops itself."""

SNAPSHOT = r"""
import json, os, resource, sys
def read(name):
    return open(f"/proc/{name}").read()
seen = {}
lines = dict(line.split(":", 1) for line in read("self/status").splitlines())
for name in ("SigIgn", "SigBlk", "ShdPnd", "Uid", "Gid", "Groups", "Umask", "NoNewPrivs", "CapEff", "Cpus_allowed"):
    seen[name] = lines[name]
for number in map(int, os.listdir("/proc/self/fd")):
    try:
        seen[f"descriptor {number}"] = os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        pass  # that of the folder itself
seen["environment"] = sorted(read("self/environ").split("\0"))
seen["folder"] = os.getcwd()
seen["limits"] = read("self/limits")
seen["below"] = read(f"{os.getppid()}/comm")
seen["leads its group"] = os.getpgrp() == os.getpid()
seen["leads its session"] = os.getsid(0) == os.getpid()
seen["nice"] = os.nice(0)
json.dump(seen, open(sys.argv[1], "w"), indent=1)
sys.exit(7)
"""
"""What a program can see of itself, into a file."""

WAYS = {
    "plain": "exec {}",
    "descriptors": "exec 5</dev/zero 7>>/dev/null; exec {}",
    "limits": "ulimit -n 123; ulimit -c 0; umask 027; cd /; exec {}",
    "nice": "exec nice -n 3 {}",
    "ignored signals": "trap '' HUP INT QUIT TERM USR1 USR2 ALRM CHLD TSTP CONT WINCH; exec {}",
    "nohup": "exec nohup {} >/dev/null",
    "setsid": "exec setsid -w {}",
    "timeout": "exec timeout 60 {}",
    "env -i": "exec env -i ONE=1 {}",
    "background": "{} & wait $!",
}


@pytest.fixture(scope="module")
def greeting(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Greeting]:
    """Set up a stream whose producer can send Hello repeatedly."""
    folder = tmp_path_factory.mktemp("programs")
    with world.request() as requested:
        yield Greeting(world, requested, folder)


class Greeting:
    """Starts programs with appctrl, at the producer's side of a stream."""

    def __init__(self, world: World, requested: Requested, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.requested = requested
        self.join_file = folder / "join"
        self.join_file.touch(mode=0o600)
        self.join_file.write_text(requested.join[PROD])
        self.port = free_ports()

    def command(self, *program: str) -> list[str]:
        """Return the command that starts the program."""
        appctrl = str(self.world.programs / "appctrl")
        return [appctrl, "prod", "--join-file", str(self.join_file), "--listen", f"{HOST}:{self.port}", "--", *program]

    @contextmanager
    def running(self, *program: str) -> Iterator[subprocess.Popen[str]]:
        """Start the program with appctrl in a session of its own; wait until it is ready."""
        with subprocess.Popen(
            self.command(*program),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                yield process
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def keepers(self) -> list[int]:
        """Return the processes that keep the link of one of these programs, or wait to do so."""
        found = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if f"\0--listen\0{HOST}:{self.port}\0".encode() in file.read_bytes():
                    found.append(int(file.parent.name))
        return found

    def is_quiet(self) -> None:
        """Wait until no process of appctrl is left."""
        until(lambda: not self.keepers(), lambda: f"these are left: {self.keepers()}")


FORWARDED = [
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGCONT,
    signal.SIGTSTP,
    signal.SIGWINCH,
    signal.SIGTTIN,
    signal.SIGTTOU,
]


@pytest.mark.parametrize("to", ["process", "group"])
def test_every_signal_reaches_the_program_once_and_the_link_outlives_them(greeting: Greeting, to: str) -> None:
    greeting.is_quiet()
    numbers = [str(int(number)) for number in [*FORWARDED, signal.SIGRTMIN]]
    with greeting.running(sys.executable, "-c", COUNTING, *numbers) as process:
        keeping = greeting.keepers()
        assert process.stdout is not None
        for number in FORWARDED:  # one after the other: a signal to stop takes one to continue back that still waits
            (os.kill if to == "process" else os.killpg)(process.pid, number)
            assert process.stdout.readline() == f"{number.name}\n"
        assert greeting.keepers() == keeping
        assert len(keeping) == 1
        os.kill(process.pid, signal.SIGRTMIN)
        assert process.wait(PATIENCE) == 7
    greeting.is_quiet()


def test_a_program_that_takes_its_time_to_end_is_waited_for(greeting: Greeting) -> None:
    slow = "import os, signal, sys, time\n"
    slow += "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), os.write(1, b'over\\n'), sys.exit(7)))\n"
    slow += "print('ready', flush=True)\ntime.sleep(60)\n"
    with greeting.running(sys.executable, "-c", slow) as process:
        process.terminate()
        out, _ = process.communicate(timeout=PATIENCE)
        assert (out, process.returncode) == ("over\n", 7)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_program_that_ends_by_a_signal_is_seen_to_end_by_it(greeting: Greeting, number: signal.Signals) -> None:
    with greeting.running("sh", "-c", "echo ready; read line </dev/tty; sleep 60 & wait") as process:
        os.kill(process.pid, number)
        assert process.wait(PATIENCE) == -number
    greeting.is_quiet()


@pytest.mark.parametrize("way", WAYS)
def test_a_program_finds_itself_as_if_it_had_been_started_without_appctrl(
    greeting: Greeting, tmp_path: Path, way: str
) -> None:
    needs("nohup", "setsid", "timeout", "nice")
    file = tmp_path / "seen"
    program = [sys.executable, "-I", "-S", "-c", SNAPSHOT, str(file)]

    def seen(command: Sequence[str]) -> dict[str, object]:
        ended = subprocess.run(
            ["sh", "-c", WAYS[way].format(shlex.join(command))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=tmp_path,
            timeout=2 * PATIENCE,
            check=False,
        )
        assert ended.returncode == 7
        found: dict[str, object] = json.loads(file.read_text())
        return found

    assert seen(greeting.command(*program)) == seen(program)


def test_closed_descriptors_are_nothing_and_not_sockets_of_appctrl(greeting: Greeting, tmp_path: Path) -> None:
    look = f"ls -l /proc/$$/fd >{tmp_path}/seen"
    command = shlex.join(greeting.command("sh", "-c", look))
    ended = subprocess.run(["sh", "-c", f"exec {command} <&- >&- 2>&-"], timeout=2 * PATIENCE, check=False)
    assert ended.returncode == 0
    seen = (tmp_path / "seen").read_text()
    for number in (0, 2):
        assert re.search(rf" {number} -> /dev/null$", seen, re.MULTILINE), seen
    assert "socket" not in seen
    assert "eventpoll" not in seen


@pytest.mark.parametrize(
    ("program", "status", "reason"),
    [
        ("no-such-program-anywhere", 127, "there is no such program in any folder of PATH"),
        ("./no-such-file", 127, "there is no such file"),
        ("/etc/passwd", 126, "it is not executable"),
        ("/etc", 126, "it is a folder"),
    ],
)
def test_a_program_that_cannot_be_started_is_named_before_anybody_waits(
    greeting: Greeting, program: str, status: int, reason: str
) -> None:
    ended = greeting.world.start(*greeting.command(program)).end(status=status)
    assert ended.stderr.startswith(f"error: {program} cannot be started: {reason}")
    assert len(ended.stderr.splitlines()) == 1


def test_a_program_that_the_kernel_does_not_take_ends_with_status_126(greeting: Greeting, tmp_path: Path) -> None:
    (tmp_path / "program").write_bytes(b"\x7fELF no more")
    (tmp_path / "program").chmod(0o755)
    ended = greeting.world.start(*greeting.command(str(tmp_path / "program"))).end(status=126)
    assert ended.stderr == f"error: {tmp_path / 'program'} cannot be started: Exec format error\n"
    greeting.is_quiet()


def test_the_rest_of_standard_input_is_the_program_s(greeting: Greeting) -> None:
    command = greeting.command("cat")
    command[command.index("--join-file") + 1] = "-"
    given = greeting.requested.join[PROD] + "\nthe first\nthe second\n"
    ended = subprocess.run(command, input=given, capture_output=True, text=True, timeout=2 * PATIENCE, check=False)
    assert (ended.returncode, ended.stdout) == (0, "the first\nthe second\n")


def test_a_reader_of_the_program_s_output_sees_its_end_when_the_program_closes_it(greeting: Greeting) -> None:
    with greeting.running("sh", "-c", "echo ready; exec >&-; sleep 60") as process:
        assert process.stdout is not None
        assert process.stdout.read() == ""
        assert process.poll() is None, "the control: it runs on"


def test_a_program_has_no_child_that_it_has_not_started(greeting: Greeting) -> None:
    alone = "import os\ntry:\n    os.waitpid(-1, os.WNOHANG)\nexcept ChildProcessError:\n    print('none')\n"
    assert greeting.world.run(*greeting.command(sys.executable, "-c", alone)).stdout == "none\n"


def test_while_it_waits_for_the_stream_a_signal_ends_it_silently(greeting: Greeting) -> None:
    with greeting.world.request() as waiting:
        appctrl = greeting.world.cons(waiting.join[CONS], ["true"])
        until(lambda: "waiting until its stream is ready" in appctrl.log.read_text(), lambda: str(appctrl))
        os.kill(appctrl.pid, signal.SIGINT)
        ended = appctrl.end(status=-signal.SIGINT)
        assert len(ended.stderr.splitlines()) == 1


def test_the_end_of_the_stream_is_told_where_the_program_writes_and_the_program_goes_on(world: World) -> None:
    with world.request() as requested:
        program = world.prod(
            requested.join[PROD], [f"{HOST}:{free_ports()}"], ["sh", "-c", "echo ready; read x; sleep 60"]
        )
        assert program.line() == "ready"
        requested.release()
        until(lambda: "the program continues" in program.log.read_text(), lambda: str(program))
        assert program.process.poll() is None


# -- at a terminal


class Terminal:
    """A shell with job control at a terminal of its own, so wide that no line that is typed is wrapped."""

    def __init__(self, folder: Path) -> None:
        needs("bash", "python3")
        self._master: int | None
        pid, self._master = pty.fork()
        if not pid:
            os.chdir(folder)
            signal.signal(
                signal.SIGHUP, signal.SIG_DFL
            )  # a shell keeps on ignoring what whoever runs the tests ignores
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], {**os.environ, "PS1": "$ ", "TERM": "dumb"})
        termios.tcsetwinsize(self._master, (24, 1000))
        self.pid = pid
        self.said = ""

    def type(self, text: str) -> None:
        """Type `text` at the terminal."""
        assert self._master is not None
        os.write(self._master, text.encode())

    def expect(self, pattern: str) -> str:
        """Wait until that is on the screen, after what was expected before; what it was."""

        def look() -> re.Match[str] | None:
            assert self._master is not None
            screen = select.poll()
            screen.register(self._master, select.POLLIN)
            if screen.poll(0):
                with suppress(OSError):
                    self.said += os.read(self._master, 65536).decode(errors="replace")
            return re.search(pattern, self.said)

        found: re.Match[str] = until(look, lambda: f"no {pattern!r} in {self.said!r}")
        self.said = self.said[found.end() :]
        return found.group()

    def hang_up(self) -> None:
        """Close the terminal, and wait until the shell has gone."""
        if self._master is None:
            return
        os.close(self._master)
        self._master = None
        until(lambda: os.waitpid(self.pid, os.WNOHANG)[0], lambda: "the shell outlives its terminal")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    one = Terminal(tmp_path)
    yield one
    one.hang_up()


def test_ctrl_c_at_a_terminal_reaches_an_interactive_program_once_and_it_goes_on(
    greeting: Greeting, terminal: Terminal
) -> None:
    terminal.type(shlex.join(greeting.command(sys.executable, "-c", INTERACTIVE)) + "\n")
    terminal.expect("in front: True\r")
    terminal.type("\x03")
    terminal.expect("interrupted\r")
    terminal.type("hello\n")
    terminal.expect("heard hello after 1 interrupts\r")
    terminal.type("end\n")
    terminal.expect(r"\$ ")
    terminal.type("echo status $?\n")
    terminal.expect("status 5\r")
    greeting.is_quiet()


def test_a_program_at_a_terminal_is_stopped_and_brought_back_like_any_other(
    greeting: Greeting, terminal: Terminal
) -> None:
    terminal.type(shlex.join(greeting.command(sys.executable, "-c", STOPPABLE)) + "\n")
    terminal.expect("ready\r")
    terminal.type("\x1a")
    terminal.expect("Stopped")
    terminal.type("touch go; jobs; sleep 1; echo quiet\n")
    assert "went on\r" not in terminal.expect("(?s).*quiet\r")
    terminal.type("fg\n")
    terminal.expect("went on\r")
    terminal.type("echo status $?\n")
    terminal.expect("status 3\r")
    greeting.is_quiet()


@pytest.mark.parametrize("prefix", [(), ("nohup",)], ids=["plain", "nohup"])
def test_a_terminal_that_hangs_up_ends_the_program_unless_it_ignores_that(
    greeting: Greeting, terminal: Terminal, tmp_path: Path, prefix: Sequence[str]
) -> None:
    noted = tmp_path / "pid"
    program = f"echo $$ >{noted}.new; mv {noted}.new {noted}; exec sleep 60"
    terminal.type(shlex.join([*prefix, *greeting.command("sh", "-c", program)]) + "\n")
    until(noted.exists, lambda: f"it does not start: {terminal.said}")
    pid = int(noted.read_text())
    (keeper,) = [each for each in greeting.keepers() if each != pid]
    terminal.hang_up()
    try:
        if prefix:
            assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
            assert greeting.keepers() == [keeper], "the link is kept"
        else:
            until(lambda: not Path(f"/proc/{pid}").exists(), lambda: "the program outlives its terminal")
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    greeting.is_quiet()
