"""What the demonstration prints: its progress, and the summary at the end.

`Progress` draws a live table on a terminal and prints plain lines elsewhere. Both show a `Snapshot`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec
from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table
from rich.text import Text

from scistream import timing


@dataclass(frozen=True)
class ChannelSnapshot:
    """One channel: open connections, bytes delivered to the consumer, and the rate since the last snapshot."""

    channel: int
    connections: int
    bytes: int
    gbit_per_s: float


@dataclass(frozen=True)
class Snapshot:
    """The stream at one moment. `seconds` is the time since the demonstration began."""

    state: str
    seconds: float
    channels: Sequence[ChannelSnapshot] = field(default_factory=tuple)

    @property
    def bytes(self) -> int:
        """The bytes delivered over all channels."""
        return sum(channel.bytes for channel in self.channels)

    @property
    def gbit_per_s(self) -> float:
        """The rate over all channels."""
        return sum(channel.gbit_per_s for channel in self.channels)


@dataclass(frozen=True)
class Summary:
    """The result of the demonstration, as `--json` prints it.

    :ivar bytes: payload bytes that arrived intact.
    :ivar seconds: the time from the first byte to the last, at the consumer.
    :ivar setup_seconds: the time from the request until both sides stream, with the start of the applications in it.
    :ivar protocol_seconds: the part of that time that the facilities took.
    """

    bytes: int
    seconds: float
    gbit_per_s: float
    setup_seconds: float
    protocol_seconds: float
    num_conn: int
    frames: int
    frames_lost: int
    frames_repeated: int
    frames_corrupt: int
    sha256_sent: str
    sha256_received: str
    released: bool
    faults: list[str]

    def json(self) -> str:
        """Return the summary as one line of JSON."""
        return msgspec.json.encode(asdict(self)).decode()

    @property
    def problem(self) -> str | None:
        """The first problem, as a sentence; None if everything went well."""
        if self.faults:
            more = " (and more)" if len(self.faults) > 1 else ""
            return f"the consumer found a fault: {self.faults[0]}{more}"
        if self.frames_lost:
            return f"{self.frames_lost} of {self.frames + self.frames_lost} frames did not arrive"
        if self.sha256_sent != self.sha256_received:
            return f"the data changed on its way: SHA-256 {self.sha256_sent} was sent, {self.sha256_received} arrived"
        if not self.released:
            return "the stream was not released on both sides"
        return None


class Progress:
    """Shows snapshots while the demonstration runs. It is a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._printed_at = float("-inf")
        self._printed_state = ""

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, snapshot: Snapshot) -> None:
        """Show a snapshot. Plain lines are printed for a new state, and otherwise every `timing.DEMO_LINE` seconds."""
        if self._live is not None:
            self._live.update(_table(snapshot), refresh=True)
            return
        now = time.monotonic()
        if snapshot.state != self._printed_state or now - self._printed_at >= timing.DEMO_LINE:
            self._printed_at, self._printed_state = now, snapshot.state
            self._console.print(Text(_line(snapshot)), soft_wrap=True)


def _line(snapshot: Snapshot) -> str:
    if not snapshot.channels:
        return f"{snapshot.seconds:6.1f} s  {snapshot.state}"
    rates = " ".join(f"{channel.gbit_per_s:.2f}" for channel in snapshot.channels)
    delivered = f"{decimal(snapshot.bytes)}, {snapshot.gbit_per_s:.2f} Gbit/s ({rates})"
    return f"{snapshot.seconds:6.1f} s  {snapshot.state}: {delivered}"


def _table(snapshot: Snapshot) -> RenderableType:
    if not snapshot.channels:
        return Text(_line(snapshot))
    table = Table(title=f"{snapshot.state}, {snapshot.seconds:.1f} s", title_justify="left")
    for name in ("channel", "connections", "to the consumer", "Gbit/s"):
        table.add_column(name, justify="right")
    for row in snapshot.channels:
        table.add_row(str(row.channel), str(row.connections), decimal(row.bytes), f"{row.gbit_per_s:.2f}")
    table.add_section()
    connections = sum(row.connections for row in snapshot.channels)
    table.add_row("all", str(connections), decimal(snapshot.bytes), f"{snapshot.gbit_per_s:.2f}")
    return table


def print_summary(console: Console, summary: Summary) -> None:
    """Print the summary as a table for people."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    sent, received = summary.sha256_sent, summary.sha256_received
    table.add_row("delivered", f"{decimal(summary.bytes)} in {summary.seconds:.2f} s over {summary.num_conn} channels")
    table.add_row("rate", f"{summary.gbit_per_s:.2f} Gbit/s")
    took = f"{summary.setup_seconds:.3f} s, of which the facilities took {summary.protocol_seconds:.3f} s"
    table.add_row("set up in", took)
    table.add_row("frames", f"{summary.frames} arrived, {summary.frames_lost} lost")
    digests = f"equal at both ends:\n{sent}" if sent == received else f"NOT equal:\n{sent}\n{received}"
    table.add_row("SHA-256", digests)
    table.add_row("released", "yes, on both sides" if summary.released else "no")
    console.print(table)
