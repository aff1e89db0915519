"""The audit trail alone: its lines, its file, the journal, floods of events, and a full disk."""

from __future__ import annotations

import json
import mmap
import os
import resource
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogLevel, globalLogPublisher

from scistream import timing
from scistream.config import ConfigError
from scistream.links.link import Link
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import PROD, PathFigures, Req, ResetReason, Resp
from scistream.s2cs.audit import trail as audit_module
from scistream.s2cs.audit.events import KINDS, read_line
from scistream.s2cs.audit.sinks import FileSink, JournalSink, audit_file, open_sink
from scistream.s2cs.audit.trail import (
    MOST_ADDRESSES,
    MOST_IN_WINDOW,
    MOST_OF_IDENTITY,
    MOST_OF_STRANGERS,
    MOST_PATHS,
    MOST_PATHS_IN_WINDOW,
    MOST_RESETS_IN_WINDOW,
    AuditTrail,
    StreamTrail,
    split_owner,
)
from scistream.s2cs.record import Record
from scistream.s2cs.store.ledger import Total
from scistream.tls.verify import Identity

UID = "12345678-1234-4234-8234-123456789abc"
ADA = Identity(issuer="sha256:" + "5d" * 32, name="ada@lab.example")
OWNER = f"{ADA.name} ({ADA.issuer})"
START = 1_773_480_413.589
SERVER = "192.0.2.10:5000"


def a_link(address: str = "203.0.113.5:51234", peer: Identity | None = ADA) -> Link:
    return cast(Link, SimpleNamespace(address=address, peer=peer))


def a_request(label: str | None = None) -> Req:
    return Req(uid=UID, role=PROD, seq=1, num_conn=2, rate=100.0, app_key_hash="0" * 64, label=label)


class Clock:
    now = START

    def __call__(self) -> float:
        return self.now


class Rig:
    """An audit trail that writes to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self._sink = FileSink(path)
        self.trail = AuditTrail(self._sink, SERVER, self.clock)

    def close(self) -> None:
        self._sink.close()

    def text(self) -> str:
        return self.path.read_text()

    def events(self) -> list[Any]:
        return [read_line(line) for line in self.text().splitlines()]

    def knock(self, host: str = "198.51.100.7", times: int = 1) -> None:
        for number in range(times):
            self.trail.link_refused(a_link(f"{host}:{40000 + number}", None), "no certificate")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with closing(Rig(tmp_path / "audit.jsonl")) as rig:
        yield rig


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Collect what is logged when the trail cannot be written, and when it can be written again."""
    lines: list[str] = []

    def note(event: Any) -> None:
        if "AUDIT" in str(event.get("log_format")):
            lines.append(("error: " if event["log_level"] is LogLevel.error else "") + event["log_format"])

    globalLogPublisher.addObserver(note)
    yield lines
    globalLogPublisher.removeObserver(note)


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """Limit the size of the files of this process, so that the kernel cuts a write short or refuses it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# -- lines


def test_a_line_has_its_time_schema_and_server(rig: Rig) -> None:
    rig.trail.request(a_link(), a_request("beamline 7"), OWNER)
    (line,) = rig.text().splitlines()
    assert json.loads(line) == {
        "event": "request",
        "time": "2026-03-14T09:26:53.589Z",
        "schema": 1,
        "server": SERVER,
        "uid": UID,
        "role": "PROD",
        "identity": ADA.name,
        "issuer": ADA.issuer,
        "address": "203.0.113.5:51234",
        "num_conn": 2,
        "rate": 100.0,
        "expires": None,
        "protocol": "tcp",
        "app_from": None,
        "listen_ports": None,
        "label": "beamline 7",
    }


@given(text=st.text(max_size=60))
def test_hostile_text_breaks_no_line_and_comes_back_as_it_was(text: str) -> None:
    lines: list[str] = []
    sink = SimpleNamespace(name="memory", write=lines.append, close=lambda: None)
    trail = AuditTrail(cast(Any, sink), SERVER, Clock())
    trail.request(a_link(), a_request(text), OWNER)
    trail.refused(a_link(peer=Identity("sha256:0", text)), "REQ", UID, PROD, "bad-message", text)
    trail.link_refused(a_link(), text)
    assert all(len(line.splitlines()) == 1 and line.isascii() and line.isprintable() for line in lines)
    request, refused, link = map(read_line, lines)
    assert (request.label, refused.reason, refused.identity, link.reason) == (text,) * 4  # type: ignore[union-attr]


def test_no_kind_of_line_has_a_place_for_a_secret() -> None:
    fields = {field.name for kind in KINDS for field in msgspec.structs.fields(kind)}
    assert {"uid", "bytes_to_consumer", "targets"} <= fields
    assert not fields & {"app_key", "app_key_hash", "join", "csr", "data_conn_key", "key", "certificate"}


@pytest.mark.parametrize(
    "change",
    [{"schema": 2}, {"role": "BOTH"}, {"more": 1}, {"rate": "fast"}, {"time": ...}, {"event": "party"}],
    ids=lambda change: next(iter(change)),
)
def test_a_line_that_is_not_as_the_schema_says_is_not_read(rig: Rig, change: dict[str, Any]) -> None:
    rig.trail.request(a_link(), a_request(), OWNER)
    right = json.loads(rig.text())
    assert read_line(json.dumps(right))
    wrong = {key: value for key, value in {**right, **change}.items() if value is not ...}
    with pytest.raises(msgspec.ValidationError):
        read_line(json.dumps(wrong))


@pytest.mark.parametrize(
    ("owner", "parts"),
    [
        (OWNER, (ADA.name, ADA.issuer)),
        ("insecure:loopback", ("insecure:loopback", None)),
        ("eve (sha256:00) (sha256:11)", ("eve (sha256:00)", "sha256:11")),
    ],
)
def test_an_owner_is_an_identity_and_its_issuer(owner: str, parts: tuple[str, str | None]) -> None:
    assert split_owner(owner) == parts


def test_without_a_trail_nothing_is_written_and_streams_are_taken(tmp_path: Path) -> None:
    trail = AuditTrail(open_sink("none", None), SERVER, Clock())
    trail.request(a_link(), a_request(), OWNER)
    trail.link_refused(a_link(), "no")
    trail.flush()
    trail.reopen()
    trail.stopped(0)
    assert list(tmp_path.iterdir()) == []


# -- the file


def test_the_file_lies_beside_the_store_is_named_as_it_is_and_its_owner_s_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        sink = open_sink("auto", audit_file("auto", tmp_path / "s2cs.toml", tmp_path / "lab.sqlite"))
    finally:
        os.umask(before)
    assert sink is not None
    sink.close()
    (file,) = tmp_path.iterdir()
    assert (file.name, oct(stat.S_IMODE(file.stat().st_mode))) == ("lab.audit.jsonl", "0o600")


def test_a_file_that_cannot_be_opened_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"audit: .*nowhere/audit\.jsonl cannot be opened: No such file"):
        open_sink("nowhere/audit.jsonl", tmp_path / "nowhere" / "audit.jsonl")


def test_lines_are_added_to_what_an_earlier_run_has_written(rig: Rig) -> None:
    rig.trail.started(["dtn1"], 0, False)
    rig.trail.stopped(0)
    with closing(Rig(rig.path)) as again:
        again.trail.started(["dtn1"], 2, False)
    kinds = [type(event).__name__ for event in rig.events()]
    assert kinds == ["ServerStartEvent", "ServerStopEvent", "ServerStartEvent"]


@pytest.mark.parametrize("how", ["moved away", "removed", "moved and made anew"])
def test_after_a_rotation_lines_go_to_the_new_file_and_none_is_lost(rig: Rig, how: str) -> None:
    old = rig.path.with_suffix(".1")
    rig.knock()
    if how == "removed":
        os.link(rig.path, old)
        rig.path.unlink()
    else:
        rig.path.rename(old)
    if how == "moved and made anew":
        rig.path.touch(0o600)
    rig.knock("192.0.2.1")
    assert [event.address for event in rig.events()] == ["192.0.2.1:40000"]
    assert len(old.read_text().splitlines()) == 1
    assert stat.S_IMODE(rig.path.stat().st_mode) == 0o600


def test_reopen_takes_the_file_that_has_the_name_now(rig: Rig) -> None:
    rig.path.rename(rig.path.with_suffix(".1"))
    rig.trail.reopen()
    assert rig.path.exists()
    rig.knock()
    assert len(rig.events()) == 1


def test_a_line_that_was_cut_short_by_a_loss_of_power_does_not_spoil_the_next(rig: Rig) -> None:
    rig.path.write_text('{"event":"end","time":"2026-0')
    rig.knock(times=2)
    half, *whole = rig.text().splitlines()
    assert half == '{"event":"end","time":"2026-0'
    assert len([read_line(line) for line in whole]) == 2


def test_no_descriptor_is_left_after_rotations_and_the_end(rig: Rig) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(5):
        rig.path.rename(rig.path.with_suffix(f".{number}"))
        rig.knock()
    assert len(os.listdir("/proc/self/fd")) == before
    rig.trail.stopped(0)
    assert len(os.listdir("/proc/self/fd")) == before - 1


# -- a full disk


def test_while_no_line_can_be_written_no_stream_is_taken_and_all_comes_in_order_when_there_is_room(
    rig: Rig, said: list[str]
) -> None:
    rig.knock("192.0.2.1")
    with no_file_over(rig.path.stat().st_size + 40):
        rig.knock("192.0.2.2")
        for _ in range(3):
            with pytest.raises(StreamError, match="this S2CS cannot write its audit trail") as refused:
                rig.trail.request(a_link(), a_request(), OWNER)
            assert refused.value.code == "no-capacity"
        assert len(rig.events()) == 1, "and not half a line besides"
        assert len(said) == 1, "it is said once"
        assert said[0].startswith("error: AUDIT: {sink} cannot be written")
    rig.trail.flush()
    assert [getattr(event, "address", "") for event in rig.events()] == [
        "192.0.2.1:40000",
        "192.0.2.2:40000",
        *["203.0.113.5:51234"] * 3,
    ]
    assert said[1:] == ["AUDIT: {sink} can be written again; lines lost: {lost}"]
    rig.trail.request(a_link(), a_request(), OWNER)


def test_a_request_recovers_by_itself_when_there_is_room(rig: Rig) -> None:
    with no_file_over(rig.path.stat().st_size), pytest.raises(StreamError):
        rig.trail.request(a_link(), a_request(), OWNER)
    rig.trail.request(a_link(), a_request(), OWNER)
    assert len(rig.events()) == 2


def test_what_does_not_fit_into_memory_meanwhile_is_counted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "MAX_WAITING_BYTES", 1000)
    with no_file_over(0):
        for number in range(20):
            rig.trail.refused(a_link(), "Status", UID, PROD, f"code{number}", "x")
    rig.trail.flush()
    *kept, lost = rig.events()
    assert 1 <= len(kept) < 5
    assert [event.code for event in kept] == [f"code{number}" for number in range(len(kept))]
    assert (type(lost).__name__, lost.count) == ("LinesLostEvent", 20 - len(kept))
    rig.trail.flush()
    assert len(rig.events()) == len(kept) + 1


def test_lines_that_could_not_be_written_until_the_end_are_counted_in_the_log(rig: Rig, said: list[str]) -> None:
    with no_file_over(0):
        rig.knock(times=3)
        rig.trail.stopped(0)
    assert said[1:] == ["error: AUDIT: {sink} cannot be written; lines lost: {lost}"]


def test_a_folder_that_is_gone_is_a_trail_that_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    with closing(Rig(folder / "audit.jsonl")) as rig:
        folder.rename(tmp_path / "elsewhere")
        with pytest.raises(StreamError):
            rig.trail.request(a_link(), a_request(), OWNER)
        folder.mkdir()
        rig.trail.flush()
        assert len(rig.events()) == 1


# -- floods


def test_repeated_refusals_get_a_bounded_number_of_lines_and_one_with_the_rest(rig: Rig) -> None:
    rig.knock(times=1000)
    rig.knock("192.0.2.1")
    assert len(rig.events()) == MOST_IN_WINDOW + 1
    rig.clock.now += timing.AUDIT_WINDOW
    rig.trail.flush()
    rest = rig.events()[-1]
    assert (rest.address, rest.repeated) == ("198.51.100.7:40999", 1000 - MOST_IN_WINDOW - 1)
    rig.knock()
    assert (len(rig.events()), rig.events()[-1].repeated) == (MOST_IN_WINDOW + 3, 0)


def test_the_rest_of_a_flood_is_told_at_the_end_of_the_server_too(rig: Rig) -> None:
    rig.knock(times=MOST_IN_WINDOW + 3)
    rig.trail.stopped(0)
    assert [getattr(event, "repeated", None) for event in rig.events()[-2:]] == [2, None]


def test_a_flood_from_everywhere_takes_up_bounded_memory_and_lines(rig: Rig) -> None:
    for number in range(MOST_ADDRESSES + 1000):
        rig.knock(f"10.{number // 65536}.{number // 256 % 256}.{number % 256}")
    assert len(rig.events()) == MOST_OF_STRANGERS
    assert len(rig.trail._refusals) <= MOST_ADDRESSES + 1
    rig.clock.now += timing.AUDIT_WINDOW
    rig.trail.flush()
    assert rig.trail._refusals == {}
    assert rig.events()[-1].repeated == MOST_ADDRESSES + 1000 - MOST_OF_STRANGERS - 1


def test_refusals_of_peers_beyond_the_remembered_number_are_twenty_lines_together(rig: Rig) -> None:
    known = MOST_ADDRESSES // 2  # each has its own lines counted, and those of one kind
    for number in range(known + 100):
        user = Identity("sha256:00", f"user-{number}@lab.example")
        rig.trail.refused(a_link(peer=user), "REL", UID, PROD, "not-authorized", "not yours")
    assert len(rig.events()) == known + MOST_IN_WINDOW
    rig.clock.now += timing.AUDIT_WINDOW
    rig.trail.flush()
    assert rig.events()[-1].repeated == 100 - MOST_IN_WINDOW - 1


PEERS = [None, ADA, Identity("sha256:00", "eve@lab.example")]
refusals = st.lists(
    st.tuples(
        st.sampled_from(PEERS),
        st.integers(0, 4),  # the address
        st.sampled_from(["REQ", "REL", "Status", "UpdateTargets"]),
        st.sampled_from(["not-authorized", "unknown-uid", "no-capacity", "bad-line"]),
        st.integers(1, 120),  # times
        st.sampled_from([0.0, 0.0, 0.5, 20.0, 61.0]),  # seconds after it
    ),
    max_size=40,
)


@given(refusals)
def test_refusals_are_few_lines_for_each_identity_and_for_all_strangers_and_none_is_uncounted(
    refusals: list[tuple[Identity | None, int, str, str, int, float]],
) -> None:
    lines: list[str] = []
    clock = Clock()
    sink = SimpleNamespace(name="memory", write=lines.append, close=lambda: None)
    trail = AuditTrail(cast(Any, sink), SERVER, clock)
    for peer, host, cmd, code, times, pause in refusals:
        for _ in range(times):
            link = a_link(f"10.0.0.{host}:50000", peer)
            if code == "bad-line":
                trail.bad_line(link, None, "no message", False)
            else:
                trail.refused(link, cmd, UID, PROD, code, "no")
        clock.now += pause
        trail.flush()
    minutes = int((clock.now - START) / timing.AUDIT_WINDOW) + 1
    trail.stopped(0)
    *events, _ = map(read_line, lines)
    for peer, most in zip(PEERS, (MOST_OF_STRANGERS, MOST_OF_IDENTITY, MOST_OF_IDENTITY), strict=True):
        mine: list[Any] = [one for one in events if one.identity == (peer.name if peer else None)]  # type: ignore[union-attr]
        assert len(mine) <= (most + most // MOST_IN_WINDOW + 1) * minutes
        assert sum(1 + one.repeated for one in mine) == sum(times for who, *_, times, _ in refusals if who == peer)


def test_an_identity_has_the_lines_of_one_wherever_it_comes_from(rig: Rig) -> None:
    for number in range(200):
        rig.trail.refused(a_link(f"10.0.{number}.1:5"), "REL", UID, PROD, "not-authorized", "not yours")
    assert len(rig.events()) == MOST_IN_WINDOW


def test_refusals_of_one_user_do_not_silence_another_at_the_same_address(rig: Rig) -> None:
    eve = Identity("sha256:00", "eve@lab.example")
    for _ in range(MOST_IN_WINDOW + 5):
        rig.trail.refused(a_link(peer=eve), "REL", UID, PROD, "not-authorized", "not yours")
    rig.trail.refused(a_link(), "REL", UID, PROD, "not-authorized", "not yours")
    assert rig.events()[-1].identity == ADA.name


# -- the journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Callable[[], socket.socket]]:
    """Return a function that creates the socket of a journal, always at the same path."""
    made: list[socket.socket] = []

    def make() -> socket.socket:
        (tmp_path / "journal").unlink(missing_ok=True)
        made.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        made[-1].bind(str(tmp_path / "journal"))
        made[-1].settimeout(5)
        return made[-1]

    yield make
    for one in made:
        one.close()


def entry(sock: socket.socket) -> dict[str, str]:
    data, files, _, _ = socket.recv_fds(sock, 65536, 1)
    if files:
        with os.fdopen(files[0]) as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            data = mapped[:]
    return dict(line.split("=", 1) for line in data.decode().splitlines())


def test_lines_go_to_the_journal_as_entries_of_its_native_protocol(
    journal: Callable[[], socket.socket], tmp_path: Path
) -> None:
    sock = journal()
    with closing(JournalSink(tmp_path / "journal")) as sink:
        AuditTrail(sink, SERVER, Clock()).request(a_link(), a_request("two\nlines"), OWNER)
    found = entry(sock)
    assert set(found) == {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER"}
    assert found["SYSLOG_IDENTIFIER"] == "scistream-audit"
    assert read_line(found["MESSAGE"]).label == "two\nlines"  # type: ignore[union-attr]


def test_a_line_larger_than_a_datagram_reaches_the_journal_as_a_file(
    journal: Callable[[], socket.socket], tmp_path: Path
) -> None:
    sock = journal()
    with closing(JournalSink(tmp_path / "journal")) as sink:
        sink.write("x" * 1_000_000)
    assert entry(sock)["MESSAGE"] == "x" * 1_000_000


def test_a_journal_that_is_restarted_gets_the_next_line(journal: Callable[[], socket.socket], tmp_path: Path) -> None:
    first = journal()
    sink = JournalSink(tmp_path / "journal")
    sink.write("one")
    assert entry(first)["MESSAGE"] == "one"
    first.close()
    trail = AuditTrail(sink, SERVER, Clock())
    with pytest.raises(StreamError):
        trail.request(a_link(), a_request(), OWNER)
    second = journal()
    trail.flush()
    sink.close()
    assert '"event":"request"' in entry(second)["MESSAGE"]


def test_without_a_journal_the_setting_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no journal at .* name a file in place of 'journal'"):
        JournalSink(tmp_path / "journal")


# -- Hellos


def test_an_application_that_comes_on_ever_new_links_gets_twenty_lines_a_minute(rig: Rig) -> None:
    record = Record(uid=UID, role=PROD, owner=OWNER, state="Streaming", app_listeners=["10.0.0.5:7000"])
    stream = StreamTrail(rig.trail, record, lambda: Total(0, 0, 0, 0, complete=True), restored=False)
    for minute in range(1, 4):
        for number in range(200):
            link = a_link(f"10.0.0.5:{40000 + number}", None)
            rig.trail.answered(link, "Hello", PROD, Resp(uid=UID, seq=1, state="Streaming", msg="welcome"), stream)
        assert len(rig.events()) == (MOST_IN_WINDOW + 1) * minute - 1
        rig.clock.now += timing.AUDIT_WINDOW
        rig.trail.flush()
        last = rig.events()[-1]
        assert (last.address, last.repeated) == ("10.0.0.5:40199", 200 - MOST_IN_WINDOW - 1)
    stream.ended()
    assert rig.trail._late == set()


def test_new_targets_of_a_stream_are_twenty_lines_a_minute_and_the_last_ones_are_told(rig: Rig) -> None:
    record = Record(uid=UID, role=PROD, owner=OWNER, state="Streaming")
    stream = StreamTrail(rig.trail, record, lambda: Total(0, 0, 0, 0, complete=True), restored=False)
    for generation in range(1, 202):
        record.generation = generation
        record.connection_map = {"10.0.0.1:5100": f"10.0.0.5:{7000 + generation}"}
        stream.saved()
    assert len(rig.events()) == 1 + MOST_IN_WINDOW
    stream.ended()
    *_, last, end = rig.events()
    assert (last.generation, last.targets) == (201, {"10.0.0.1:5100": "10.0.0.5:7201"})
    assert last.repeated == 200 - MOST_IN_WINDOW - 1
    assert end.__struct_config__.tag == "end"


def test_strangers_of_one_ipv6_network_have_the_lines_of_one_address(rig: Rig) -> None:
    for number in range(200):
        rig.knock(f"[2001:db8::{number:x}]")
    assert len(rig.events()) == MOST_IN_WINDOW


# -- resets


def a_reset(count: int, number: int = 0) -> ResetReason:
    return ResetReason(channel=number, cause="application", reason="ConsApp reset the connection", count=count)


def test_resets_of_a_stream_are_ten_lines_a_minute_however_many_there_are(rig: Rig) -> None:
    record = Record(uid=UID, role=PROD, owner=OWNER, state="Streaming")
    stream = StreamTrail(rig.trail, record, lambda: Total(0, 0, 0, 0, complete=True), restored=False)
    for minute in range(3):
        for heard in range(30):
            stream.resets_heard("dtn1", [a_reset(100 * minute + heard, number) for number in range(16)])
        lines = [(event.channel, event.count) for event in rig.events()]
        assert len(lines) == MOST_RESETS_IN_WINDOW * (minute + 1)
        rig.clock.now += timing.AUDIT_WINDOW
    assert {channel for channel, _ in lines} == set(range(16)), "each has its turn"
    stream.ended()
    *_, end = rig.events()
    assert end.__struct_config__.tag == "end"
    assert len(rig.events()) <= 4 * MOST_RESETS_IN_WINDOW + 1
    stream.resets_heard("dtn1", [a_reset(10_000)])
    assert rig.events()[-1] == end, "nothing is said of a stream after its end"


def test_a_reason_of_resets_is_told_at_once_and_again_only_when_there_are_more(rig: Rig) -> None:
    record = Record(uid=UID, role=PROD, owner=OWNER, state="Streaming")
    stream = StreamTrail(rig.trail, record, lambda: Total(0, 0, 0, 0, complete=True), restored=False)
    for count in (3, 3, 3, 5):
        stream.resets_heard("dtn1", [a_reset(count)])
    assert [(event.gateway, event.channel, event.cause, event.count) for event in rig.events()] == [
        ("dtn1", 0, "application", 3),
        ("dtn1", 0, "application", 5),
    ]


# -- paths over the WAN


def a_path(last: int, *, up: bool = True, failures: int = 0) -> PathFigures:
    return PathFigures(local="192.0.2.20", remote=f"203.0.113.{last}", up=up, failures=failures)


def test_a_path_that_comes_or_goes_has_a_line_and_one_that_stays_has_none(rig: Rig) -> None:
    record = Record(uid=UID, role=PROD, owner=OWNER, state="Streaming")
    stream = StreamTrail(rig.trail, record, lambda: Total(0, 0, 0, 0, complete=True), restored=False)
    one, other, never_up = a_path(1), a_path(2), a_path(3, up=False)
    others = PathFigures(local="", remote="", up=True)
    for _ in range(3):
        stream.paths_heard("dtn1", [one, other, never_up, others])
    stream.paths_heard("dtn2", [one])
    stream.paths_heard("dtn1", [one, a_path(2, up=False, failures=1)])
    stream.paths_heard("dtn1", [a_path(1, failures=2)])  # it went and came between two reports
    assert [(event.gateway, event.local, event.remote, event.up, event.failures) for event in rig.events()] == [
        ("dtn1", "192.0.2.20", "203.0.113.1", True, 0),
        ("dtn1", "192.0.2.20", "203.0.113.2", True, 0),
        ("dtn2", "192.0.2.20", "203.0.113.1", True, 0),
        ("dtn1", "192.0.2.20", "203.0.113.2", False, 1),
        ("dtn1", "192.0.2.20", "203.0.113.1", True, 2),
    ]


def test_paths_of_a_stream_are_ten_lines_a_minute_and_the_others_wait_for_the_next(rig: Rig) -> None:
    record = Record(uid=UID, role=PROD, owner=OWNER, state="Streaming")
    stream = StreamTrail(rig.trail, record, lambda: Total(0, 0, 0, 0, complete=True), restored=False)
    for minute in range(2):
        for _ in range(5):
            stream.paths_heard("dtn1", [a_path(number) for number in range(16)])
        assert len(rig.events()) == min(16, MOST_PATHS_IN_WINDOW * (minute + 1))
        rig.clock.now += timing.AUDIT_WINDOW
    for last in range(1000):
        rig.clock.now += timing.AUDIT_WINDOW
        stream.paths_heard("dtn1", [PathFigures(local="192.0.2.20", remote=f"2001:db8::{last:x}", up=True)])
    assert len(rig.events()) == MOST_PATHS
    stream.ended()
    stream.paths_heard("dtn1", [a_path(1, up=False, failures=1)])
    assert rig.events()[-1].__struct_config__.tag == "end"
