"""What the demonstration shows: the channels while they run, and what came of it.

`Progress` draws a live table on a terminal and plain lines elsewhere; both are functions of `Picture`.
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
class ChannelPicture:
    """One channel: bytes delivered to the consumer, and Gbit/s since the last look."""

    channel: int
    connections: int
    bytes: int
    gbit_per_s: float


@dataclass(frozen=True)
class Picture:
    """The stream at one moment."""

    state: str
    seconds: float
    channels: Sequence[ChannelPicture] = field(default_factory=tuple)

    @property
    def bytes(self) -> int:
        """Delivered over all channels."""
        return sum(channel.bytes for channel in self.channels)

    @property
    def gbit_per_s(self) -> float:
        """The rate over all channels."""
        return sum(channel.gbit_per_s for channel in self.channels)


@dataclass(frozen=True)
class Summary:
    """What came of the demonstration, as `--json` prints it.

    `bytes` are payload bytes that arrived intact, `seconds` the time from the first byte to the last at the consumer,
    `setup_seconds` that from the request to a stream, with the start of the applications in it, and
    `protocol_seconds` what the facilities took of that.
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
        """All of it as one JSON object on one line."""
        return msgspec.json.encode(asdict(self)).decode()

    @property
    def problem(self) -> str | None:
        """The first thing that is wrong with it, as a sentence, or None."""
        if self.faults:
            more = " (and more)" if len(self.faults) > 1 else ""
            return f"the consumer found a fault: {self.faults[0]}{more}"
        if self.frames_lost:
            return f"{self.frames_lost} of {self.frames + self.frames_lost} frames did not arrive"
        if self.sha256_sent != self.sha256_received:
            return f"what arrived is not what was sent: SHA-256 {self.sha256_received}, not {self.sha256_sent}"
        if not self.released:
            return "the stream was not released on both sides"
        return None


class Progress:
    """Shows pictures while the demonstration runs; a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._said_at = float("-inf")
        self._said_state = ""

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, picture: Picture) -> None:
        """Show this now; as plain lines, only if the state is new or some time has passed."""
        if self._live is not None:
            self._live.update(_table(picture), refresh=True)
            return
        now = time.monotonic()
        if picture.state != self._said_state or now - self._said_at >= timing.DEMO_LINE:
            self._said_at, self._said_state = now, picture.state
            self._console.print(Text(_line(picture)), soft_wrap=True)


def _line(picture: Picture) -> str:
    if not picture.channels:
        return f"{picture.seconds:6.1f} s  {picture.state}"
    each = " ".join(f"{channel.gbit_per_s:.2f}" for channel in picture.channels)
    return (
        f"{picture.seconds:6.1f} s  {picture.state}: {decimal(picture.bytes)}, {picture.gbit_per_s:.2f} Gbit/s ({each})"
    )


def _table(picture: Picture) -> RenderableType:
    if not picture.channels:
        return Text(_line(picture))
    table = Table(title=f"{picture.state}, {picture.seconds:.1f} s", title_justify="left")
    for name in ("channel", "connections", "to the consumer", "Gbit/s"):
        table.add_column(name, justify="right")
    for row in picture.channels:
        table.add_row(str(row.channel), str(row.connections), decimal(row.bytes), f"{row.gbit_per_s:.2f}")
    table.add_section()
    connections = sum(row.connections for row in picture.channels)
    table.add_row("all", str(connections), decimal(picture.bytes), f"{picture.gbit_per_s:.2f}")
    return table


def print_summary(console: Console, summary: Summary) -> None:
    """The summary for people."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    sent, received = summary.sha256_sent, summary.sha256_received
    table.add_row("delivered", f"{decimal(summary.bytes)} in {summary.seconds:.2f} s over {summary.num_conn} channels")
    table.add_row("rate", f"{summary.gbit_per_s:.2f} Gbit/s")
    took = f"{summary.setup_seconds:.3f} s, {summary.protocol_seconds:.3f} s of it by the facilities"
    table.add_row("set up in", took)
    table.add_row("frames", f"{summary.frames} arrived, {summary.frames_lost} lost")
    digests = f"equal at both ends:\n{sent}" if sent == received else f"NOT equal:\n{sent}\n{received}"
    table.add_row("SHA-256", digests)
    table.add_row("released", "yes, on both sides" if summary.released else "no")
    console.print(table)
