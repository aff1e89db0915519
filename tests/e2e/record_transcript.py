"""Record what goes over the control links of a stream, for docs/protocol.rst: `python tests/e2e/record_transcript.py`.

Two facilities and both applications run as real processes, on loopback and without TLS, and every control link goes
through a `Recorder`. So the lines are those that the programs themselves have written, byte for byte.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import free_ports

from scistream.protocol.address import Address
from support.applications import accept, address_of, connect, listen, receive
from support.facilities import HOST, Daemon
from support.programs import INSTALLED, Program
from support.protocol_page import PAGE, replaced
from support.waiting import until

UID = "7f3d2b0e-9c41-4d6a-8a55-0b6f1c2d3e4f"
RATE = 100
_PATIENCE = 60.0


@dataclass(frozen=True)
class Said:
    """One line on a control link.

    :ivar link: tells the links between two parties from each other.
    :ivar line: as it was sent, without its LF.
    """

    link: int
    sender: str
    receiver: str
    line: str

    def __str__(self) -> str:
        return f"{self.sender} > {self.receiver}  {self.line}"

    @property
    def message(self) -> dict[str, Any]:
        """The same as JSON."""
        message: dict[str, Any] = json.loads(self.line)
        return message


@dataclass
class Recorder:
    """A relay in front of a server that records what passes. Its threads end with the links.

    :ivar server: what the page calls the server.
    :ivar clients: what it calls who sends this command first on a link.
    """

    server: str
    target: Address
    clients: dict[str, str]
    said: list[Said]
    listener: socket.socket = field(default_factory=listen)
    _numbers: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.listener.settimeout(None)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> Address:
        """Where the server is dialled."""
        return Address.parse(address_of(self.listener))

    def close(self) -> None:
        """Take no more links."""
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # it was closed
            while True:
                link, _ = self.listener.accept()
                threading.Thread(target=self._pass_on, args=(link,), daemon=True).start()

    def _pass_on(self, link: socket.socket) -> None:
        with (
            closing(link),
            suppress(OSError),
            closing(socket.create_connection(self.target, timeout=_PATIENCE)) as onward,
        ):
            first = _first_line(link)
            if not first:
                return
            number, client = next(self._numbers), self.clients[json.loads(first)["cmd"]]
            back = threading.Thread(target=self._copy, args=(number, onward, link, self.server, client), daemon=True)
            back.start()
            self._say(number, onward, client, self.server, first)
            self._copy(number, link, onward, client, self.server)
            back.join(_PATIENCE)

    def _copy(self, number: int, source: socket.socket, sink: socket.socket, sender: str, receiver: str) -> None:
        with suppress(OSError), source.makefile("rb") as lines:
            for line in lines:
                self._say(number, sink, sender, receiver, line)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _say(self, number: int, sink: socket.socket, sender: str, receiver: str, line: bytes) -> None:
        self.said.append(Said(number, sender, receiver, line.decode().removesuffix("\n")))
        sink.sendall(line)


def _first_line(link: socket.socket) -> bytes:
    """Return the first line and not a byte more, or everything before the end of the link."""
    line = b""
    while not line.endswith(b"\n") and (byte := link.recv(1)):
        line += byte
    return line


@dataclass
class Step:
    """A part of the transcript: what happens, in a sentence, and the lines that belong to it."""

    words: str
    said: list[Said] = field(default_factory=list)


class _Run:
    """One stream between two facilities whose links are recorded."""

    def __init__(self, folder: Path, at_end: ExitStack) -> None:
        self.folder = folder
        self.said: list[Said] = []
        self._at_end = at_end
        self._marks: list[tuple[int, str]] = []
        settings = {"XDG_CONFIG_HOME": str(folder), "XDG_STATE_HOME": str(folder)}
        self._env = {name: value for name, value in os.environ.items() if name != "SCISTREAM_JOIN"} | settings

    def step(self, words: str) -> None:
        """Begin a step: it contains all lines from now on."""
        self._marks.append((len(self.said), words))

    def steps(self) -> Iterator[Step]:
        """All of them, without what is there because time has passed: repetitions, and looks at what is going on."""
        kept = _once(self.said)
        ends = [mark for mark, _ in self._marks[1:]] + [len(self.said)]
        for (begin, words), end in zip(self._marks, ends, strict=True):
            yield Step(words, [one for one in self.said[begin:end] if one in kept])

    def heard(self, receiver: str, cmd: str, state: str | None = None) -> Said | None:
        """Return the first matching message if it has arrived."""
        for one in list(self.said):
            message = one.message
            if (one.receiver, message["cmd"]) == (receiver, cmd) and state in (None, message.get("state")):
                return one
        return None

    def wait_for(self, receiver: str, cmd: str, state: str | None = None) -> Said:
        """Wait for the first matching message and return it."""
        what = f"{receiver} has not heard {cmd}"
        found: Said = until(lambda: self.heard(receiver, cmd, state), lambda: f"{what}: {self.said}", _PATIENCE)
        return found

    def program(self, *command: str, join: str = "") -> Program:
        """Start one; it ends with the run."""
        log = self.folder / f"{len(list(self.folder.iterdir()))}.err"
        program = Program(command, log, self._env | ({"SCISTREAM_JOIN": join} if join else {}))
        self._at_end.callback(program.stop)
        return program

    def facility(self, side: str) -> str:
        """Start one and wait until its S2CS knows its gateway; where its S2CS is dialled."""
        first = free_ports(4)
        streams = {"ports": f"{first}-{first + 3}", "capacity": "1Gbit", "elements": 1}
        gateway = self._daemon("s2ds", side, streams, {"Status": f"S2CS-{side}"})
        pool = {"state": str(self.folder / f"{side}.sqlite"), "gateways": [{"name": "gateway", "address": gateway}]}
        application = "ProdApp" if side == "P" else "ConsApp"
        clients = {"REQ": "S2UC", "REL": "S2UC", "Status": "S2UC", "Hello": application}
        server = self._daemon("s2cs", side, pool, clients)
        self.wait_for(f"S2CS-{side}", "RESP")
        return server

    def _daemon(self, kind: str, side: str, settings: dict[str, Any], clients: dict[str, str]) -> str:
        """Start one behind a recorder, which is what others dial."""
        address = Address(HOST, free_ports())
        mine = {"listen": str(address), "insecure": True}
        daemon = Daemon(kind, f"{kind}-{side}", self.folder, address, {**mine, **settings})
        daemon.start()
        self._at_end.callback(daemon.stop)
        daemon.wait_until_ready()
        if kind == "s2ds":
            until(lambda: "is ready (process" in daemon.words(), daemon.words, _PATIENCE)
        recorder = Recorder(f"{kind.upper()}-{side}", address, clients, self.said)
        self._at_end.callback(recorder.close)
        return str(recorder.address)


def _once(said: Sequence[Said]) -> list[Said]:
    """Return the lines without repeated commands and their answers, and only the first Status of each link."""
    commands: dict[tuple[int, str, str], set[str]] = {}
    left_out: dict[tuple[int, str, str], set[int]] = {}
    kept = []
    for one in said:
        message = one.message
        there, back = (one.link, one.sender, one.receiver), (one.link, one.receiver, one.sender)
        if message["cmd"] in ("RESP", "ERROR"):
            if message.get("seq") not in left_out.get(back, set()):
                kept.append(one)
            continue
        seq = message.pop("seq", None)
        what = "Status" if message["cmd"] == "Status" else json.dumps(message)
        if what in commands.setdefault(there, set()) and seq is not None:
            left_out.setdefault(there, set()).add(seq)
        else:
            commands[there].add(what)
            kept.append(one)
    return kept


def record(folder: Path) -> list[Step]:
    """Run a stream of one channel from its beginning to its end."""
    with ExitStack() as at_end:
        run = _Run(folder, at_end)
        run.step("Each S2CS connects to its gateway and asks for its streams and resources.")
        prod, cons = run.facility("P"), run.facility("C")
        s2uc = [str(INSTALLED / "s2uc")]
        run.step("S2UC requests a stream with one channel and 100 Mbit/s, for ten minutes, from both facilities.")
        wishes = ["--uid", UID, "--num-conn", "1", "--rate", str(RATE), "--expires", "10m"]
        between = ["--insecure", "--json", "--prod", prod, "--cons", cons]
        request = run.program(*s2uc, "request", *between, *wishes)
        join = json.loads(request.line(_PATIENCE))["join"]
        run.step(
            "ProdApp sends Hello. S2UC learns where it listens, makes the connection maps and the credentials, and "
            "sets the targets of the producer's side, then of the consumer's side."
        )
        program = at_end.enter_context(closing(listen()))
        appctrl = str(INSTALLED / "appctrl")
        wait = ["--", "sleep", "600"]
        run.program(appctrl, "prod", "--listen", address_of(program), *wait, join=join["PROD"])
        request.end(_PATIENCE)
        run.step("ConsApp sends Hello, and is told to connect.")
        run.program(appctrl, "cons", *wait, join=join["CONS"])
        told = run.wait_for("ConsApp", "StartConn")
        run.wait_for("S2CS-C", "RESP", "Connected")
        _carry_some_bytes(program, told.message["listeners"][0])
        run.step(
            "ConsApp's program has connected to that listener, sent 3000 bytes and received 5000. S2UC, possibly in "
            "another process, lets the stream end five minutes later than before."
        )
        run.program(*s2uc, "extend", "--insecure", "--json", "--by", "5m", UID).end(_PATIENCE)
        run.step("S2UC, possibly in another process, releases the stream. The applications are notified.")
        run.program(*s2uc, "release", "--insecure", "--json", UID).end(_PATIENCE)
        for application in ("ProdApp", "ConsApp"):
            run.wait_for(application, "ERROR")
        return list(run.steps())


def _carry_some_bytes(program: socket.socket, listener: str) -> None:
    with closing(connect(listener)) as consumer, closing(accept(program)) as producer:
        consumer.sendall(b"c" * 3000)
        consumer.shutdown(socket.SHUT_WR)
        assert receive(producer) == b"c" * 3000
        producer.sendall(b"p" * 5000)
        producer.shutdown(socket.SHUT_WR)
        assert receive(consumer) == b"p" * 5000


# -- the page


def as_page(steps: Sequence[Step]) -> str:
    """Return the steps as the page shows them."""
    parts = []
    for number, step in enumerate(steps, 1):
        lines = "\n".join(f"    {one}" for one in step.said)
        words = "\n".join(textwrap.wrap(f"**Step {number}.** {step.words}", 120, break_on_hyphens=False))
        parts.append(f"{words}\n\n::\n\n{lines}\n")
    return "\n".join(parts)


_LINE = re.compile(r"    (\S+) > (\S+)  (\{.*\})")


def from_page(page: str) -> list[Said]:
    """Return the lines of the page, in order."""
    begin, end = page.index(".. begin transcript\n"), page.index(".. end transcript\n")
    found = (_LINE.fullmatch(line) for line in page[begin:end].splitlines())
    return [Said(0, *match.groups()) for match in found if match is not None]


_VARIES = (
    (re.compile(r"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----"), r"<\1>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<SHA-256>"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "<token>"),
    (re.compile(r'("app_key":")[A-Za-z0-9_-]{43}"'), r'\1<key>"'),
    (re.compile(r'("(?:rtt_ms|delivery_mbit|retransmits|waiting)":)[0-9.e+-]+'), r"\1<number>"),
    (re.compile(r'("(?:expires|seconds_left)":)\d+\.\d{2,}'), r"\1<seconds>"),
    (re.compile(r"(the stream ends in )\d+ s"), r"\1<seconds> s"),
    (re.compile(r'("chosen_ports":)\[\[\d+,\d+\]\]'), r"\1<range of ports>"),
)


def normalised(said: Sequence[Said]) -> dict[str, list[str]]:
    """By sender and receiver, the lines without what is another in each run. Ports are numbered as they appear.

    So are the commands to gateways, of which there are more in a run that takes longer: an S2CS asks every 15 s.
    """
    ports: dict[str, str] = {}

    def port(match: re.Match[str]) -> str:
        return match[1] + ports.setdefault(match[2], f"<port {len(ports) + 1}>")

    links: dict[str, list[str]] = {}
    for one in said:
        links.setdefault(f"{one.sender} > {one.receiver}", []).append(one.line)
    for side in ("P", "C"):
        commands, answers = f"S2CS-{side} > S2DS-{side}", f"S2DS-{side} > S2CS-{side}"
        seqs = [json.loads(line)["seq"] for line in links.get(commands, ())]
        ranks = {seq: number for number, seq in enumerate(dict.fromkeys(seqs), 1)}
        for link in (commands, answers):
            links[link] = [_renumbered(line, ranks) for line in links[link]]
    for link, lines in sorted(links.items()):
        for number, line in enumerate(lines):
            for pattern, name in _VARIES:
                line = pattern.sub(name, line)
            line = re.sub(rf"({re.escape(HOST)}:)(\d+)", port, line)
            line = re.sub(r'("first_port":)(\d+)', port, line)
            links[link][number] = line
    return links


def _renumbered(line: str, numbers: Mapping[int, int]) -> str:
    return re.sub(r'(?<="seq":)\d+', lambda seq: str(numbers.get(int(seq[0]))), line)


def main() -> None:
    """Put a new record into the page."""
    with tempfile.TemporaryDirectory() as folder:
        steps = record(Path(folder))
    PAGE.write_text(replaced(PAGE.read_text(), "transcript", as_page(steps)))


if __name__ == "__main__":
    main()
