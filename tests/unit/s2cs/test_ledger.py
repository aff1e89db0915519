"""The ledger books what streams have carried once and on the right day, also after restarts; `scistream usage`."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from scistream.cli import main
from scistream.protocol.messages import CONS, PROD, ChannelFigures, Req, Role
from scistream.s2cs.record import Record
from scistream.s2cs.store.database import MOST_BOOKED, MOST_DAYS, STEPS, Booking, Counts, Store
from scistream.s2cs.store.ledger import Ledger

UID = "12345678-1234-4234-8234-123456789abc"
BOOT, NEXT_BOOT = "a" * 32, "b" * 32
NOON = 1_773_489_600.0  # 2026-03-14 12:00 UTC
MIDNIGHT = NOON + 12 * 3600
AGE = 4 * 86400.0
ADA, BOB = "ada@lab.example (sha256:11)", "bob@lab.example (sha256:11)"


class Clock:
    now = NOON

    def __call__(self) -> float:
        return self.now


def a_record(uid: str = UID, role: Role = PROD, owner: str = ADA, *gateways: str, rate: float = 10.0) -> Record:
    names = gateways or ("dtn1",)
    return Record(
        uid=uid,
        role=role,
        owner=owner,
        state="Streaming",
        request=Req(uid=uid, role=role, seq=1, num_conn=1, rate=rate, app_key_hash="0" * 64),
        listeners={0: "127.0.0.1:5100"},
        plan={name: [at] for at, name in enumerate(names)},
        boots=dict.fromkeys(names, BOOT),
    )


def figures(to_consumer: int, to_producer: int = 0, accepted: int = 1, channel: int = 0) -> list[ChannelFigures]:
    return [
        ChannelFigures(channel=channel, bytes_to_consumer=to_consumer, bytes_to_producer=to_producer, accepted=accepted)
    ]


class Books:
    """A ledger with a store in a file; `restart` opens the store as after a crash of the S2CS."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self.restart()

    def restart(self) -> None:
        self.store = Store(self.path)
        self.ledger = Ledger(self.store, self.clock)

    def hear(self, record: Record, *told: ChannelFigures, gateway: str = "dtn1", boot: str = BOOT) -> None:
        self.ledger.hear(record, gateway, boot, told, AGE)
        self.ledger.write()

    def usage(self, *options: str) -> list[dict[str, Any]]:
        ran = CliRunner().invoke(main, ["usage", str(self.path), "--json", *options])
        assert ran.exit_code == 0, ran.output
        found: list[dict[str, Any]] = json.loads(ran.output)
        return found

    def days(self) -> dict[str, int]:
        return {row["day"]: row["bytes_to_consumer"] for row in self.usage("--by", "day")}


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    books = Books(tmp_path / "s2cs.sqlite")
    yield books
    books.store.close()


# -- arithmetic


def test_what_is_heard_again_and_again_is_booked_once(books: Books) -> None:
    record = a_record()
    for told in (0, 100, 100, 250, 250):
        books.hear(record, *figures(told, 7))
    assert books.days() == {"2026-03-14": 250}
    assert books.ledger.usage_today(ADA) == 257
    assert books.ledger.usage_today(BOB) == 0


def test_a_long_stream_counts_on_the_days_on_which_its_bytes_flowed(books: Books) -> None:
    record = a_record()
    for seconds, told in ((0, 100), (12 * 3600 - 1, 1000), (12 * 3600, 1010), (60 * 3600, 5000)):
        books.clock.now = NOON + seconds
        books.hear(record, *figures(told))
    assert books.days() == {"2026-03-14": 1000, "2026-03-15": 10, "2026-03-17": 3990}
    assert books.ledger.usage_today(ADA) == 3990


def test_a_restart_of_the_s2cs_counts_nothing_twice_and_what_flowed_meanwhile_once(books: Books) -> None:
    record = a_record()
    books.hear(record, *figures(100))
    books.restart()
    books.hear(record, *figures(100))
    assert books.days() == {"2026-03-14": 100}
    books.clock.now = MIDNIGHT + 5
    books.restart()
    books.hear(record, *figures(180))
    assert books.days() == {"2026-03-14": 100, "2026-03-15": 80}
    assert books.ledger.total(record).bytes_to_consumer == 180


def test_figures_of_another_run_of_a_gateway_are_not_those_of_this_stream(books: Books) -> None:
    record = a_record()
    books.hear(record, *figures(100))
    books.hear(record, *figures(5000), boot=NEXT_BOOT)
    assert books.days() == {"2026-03-14": 100}


def test_a_stream_of_the_same_name_in_a_new_run_of_its_gateway_counts_from_nothing(books: Books) -> None:
    books.hear(a_record(), *figures(100))
    again = a_record()
    again.boots = {"dtn1": NEXT_BOOT}
    books.hear(again, *figures(30), boot=NEXT_BOOT)
    assert books.days() == {"2026-03-14": 130}
    books.restart()
    books.hear(again, *figures(40), boot=NEXT_BOOT)
    assert books.days() == {"2026-03-14": 140}


def test_an_answer_that_was_overtaken_takes_nothing_back(books: Books) -> None:
    record = a_record()
    for told in (100, 60, 100, 120):
        books.hear(record, *figures(told))
    assert books.days() == {"2026-03-14": 120}


def test_gateways_channels_roles_and_owners_add_up_each_by_itself(books: Books) -> None:
    pool = a_record(UID, PROD, ADA, "dtn1", "dtn2")
    books.hear(pool, *figures(100, 1), *figures(20, 2, channel=1))
    books.hear(pool, *figures(3, 4), gateway="dtn2")
    books.hear(a_record(UID, CONS), *figures(1000))
    books.hear(a_record("0" + UID[1:], PROD, BOB), *figures(5))
    assert books.usage() == [
        {
            "day": "2026-03-14",
            "identity": "ada@lab.example",
            "issuer": "sha256:11",
            "streams": 2,
            "bytes_to_consumer": 1123,
            "bytes_to_producer": 7,
            "connections": 4,
        },
        {
            "day": "2026-03-14",
            "identity": "bob@lab.example",
            "issuer": "sha256:11",
            "streams": 1,
            "bytes_to_consumer": 5,
            "bytes_to_producer": 0,
            "connections": 1,
        },
    ]
    assert books.ledger.total(pool).bytes_to_consumer == 123


def test_figures_that_no_gateway_could_mean_do_no_harm(books: Books) -> None:
    books.hear(a_record(), *figures(2**80, -5))
    assert books.usage() == []
    books.hear(a_record(), *figures(2**20, -5))
    assert books.usage()[0]["bytes_to_producer"] == 0
    books.restart()


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["flow", "poll", "restart", "day", "full", "room"]), st.integers(0, 10**9)),
        max_size=25,
    )
)
def test_the_days_add_up_to_what_flowed_despite_restarts(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    books = Books(tmp_path_factory.mktemp("books") / "s2cs.sqlite")
    record, flowed = a_record(), 0
    for what, number in [*steps, ("room", 0), ("poll", 0)]:
        if what == "flow":
            flowed += number
        elif what == "poll":
            books.hear(record, *figures(flowed))
        elif what == "restart":
            books.store.close()
            books.restart()
        elif what == "day":
            books.clock.now += 86400
        else:
            books.store._db.execute(f"PRAGMA query_only = {'ON' if what == 'full' else 'OFF'}")
    assert sum(books.days().values()) == flowed
    assert books.ledger.total(record).bytes_to_consumer == flowed
    books.store.close()


# -- the end of a stream


def test_the_total_is_complete_when_each_gateway_has_told_its_last_figures(books: Books) -> None:
    record = a_record(UID, PROD, ADA, "dtn1", "dtn2")
    books.ledger.hear_last(record, "dtn1", BOOT, figures(10), AGE)
    assert not books.ledger.total(record).complete
    books.ledger.hear_last(record, "dtn2", BOOT, figures(5), AGE)
    total = books.ledger.total(record)
    assert (total.bytes_to_consumer, total.connections, total.complete) == (15, 2, True)
    assert books.days() == {"2026-03-14": 15}


def test_a_gateway_that_has_restarted_leaves_a_lower_bound(books: Books) -> None:
    record = a_record()
    books.hear(record, *figures(10))
    books.ledger.hear_last(record, "dtn1", None, None, AGE)
    assert not books.ledger.total(record).complete
    books.ledger.hear_last(record, "dtn1", NEXT_BOOT, [], AGE)
    total = books.ledger.total(record)
    assert (total.bytes_to_consumer, total.complete) == (10, False)


def test_a_gateway_that_never_had_anything_of_it_has_nothing_to_tell(books: Books) -> None:
    record = a_record()
    record.boots = {}
    books.ledger.hear_last(record, "dtn1", None, None, AGE)
    assert books.ledger.total(record).complete


def test_when_a_record_is_forgotten_what_was_booked_stays(books: Books) -> None:
    record = a_record()
    books.store.save(record)
    books.hear(record, *figures(10))
    books.store.forget(record.key)
    books.ledger.close(record)
    assert books.days() == {"2026-03-14": 10}
    assert books.store.load_heard() == {}
    books.hear(record, *figures(10))
    assert books.days() == {"2026-03-14": 20}, "another stream of that name"


def test_what_cannot_be_written_is_booked_when_there_is_room(books: Books) -> None:
    record = a_record()
    books.store._db.execute("PRAGMA query_only = ON")
    books.hear(record, *figures(10))
    assert books.ledger.total(record).bytes_to_consumer == 10
    assert books.days() == {}
    books.store._db.execute("PRAGMA query_only = OFF")
    books.ledger.write()
    assert books.days() == {"2026-03-14": 10}


# -- the store


def test_a_store_of_version_1_is_brought_up_to_date_with_its_live_streams_and_counts_from_then_on(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s2cs.sqlite"
    old = Store(path, STEPS[:1])
    old.save(a_record())
    old.save(a_record(role=CONS))
    old.close()
    ran = CliRunner().invoke(main, ["usage", str(path)])
    assert ran.exit_code == 2
    assert "has schema version 1, which has no usage: start its S2CS once to upgrade it" in ran.output
    books = Books(path)
    assert books.store.load() == [a_record(role=CONS), a_record()]
    books.hear(a_record(), *figures(100))
    assert books.days() == {"2026-03-14": 100}
    assert CliRunner().invoke(main, ["store", "check", str(path)]).exit_code == 0
    books.store.close()


@contextlib.contextmanager
def tampered(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        yield db
        db.commit()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("UPDATE usage SET bytes_to_consumer = -1", "its table usage has a row with a count that is negative"),
        ("UPDATE heard SET reset = 'many'", "its table heard has a row with a count that is negative or not a number"),
        ("UPDATE usage SET day = 'today'", "its table usage has 'today' where a day should be"),
        ("DROP TABLE heard", "its table heard does not have the expected columns"),
    ],
)
def test_store_check_finds_books_that_no_s2cs_would_keep(books: Books, damage: str, words: str) -> None:
    books.hear(a_record(), *figures(100))
    books.store.close()
    assert CliRunner().invoke(main, ["store", "check", str(books.path)]).exit_code == 0
    with tampered(books.path) as db:
        db.execute(damage)
    ran = CliRunner().invoke(main, ["store", "check", str(books.path)])
    assert ran.exit_code == 1
    assert f"PROBLEM: {words}" in ran.output


def test_the_books_keep_numbers_as_large_as_they_get(books: Books) -> None:
    books.hear(a_record(rate=1e7), *figures(10**17))
    assert books.store.load_heard() == {(UID, PROD, "dtn1"): (BOOT, Counts(10**17, 0, 1, 0))}


# -- how large they get


def rows_of_usage(books: Books) -> int:
    return int(books.store._db.execute("SELECT count(*) FROM usage").fetchone()[0])


def test_streams_of_an_owner_on_a_day_have_a_row_each_up_to_a_bound_and_every_byte_is_booked(books: Books) -> None:
    for number in range(MOST_BOOKED + 50):
        record = a_record(f"{number:08x}{UID[8:]}")
        for told in (100, 150):  # those beyond the bound are heard of more than once, too
            books.hear(record, *figures(told))
        books.store.save(record)
        books.ledger.close(record)
    books.hear(a_record(owner=BOB), *figures(7))
    assert rows_of_usage(books) == MOST_BOOKED + 1 + 1
    assert books.ledger.usage_today(ADA) == (MOST_BOOKED + 50) * 150
    assert books.ledger.usage_today(BOB) == 7
    (ada, _) = books.usage("--by", "identity")
    assert (ada["streams"], ada["bytes_to_consumer"]) == (MOST_BOOKED + 1, (MOST_BOOKED + 50) * 150)
    assert CliRunner().invoke(main, ["store", "check", str(books.path)]).exit_code == 0


def test_the_books_keep_the_last_days_and_the_store_is_no_larger_after_ten_times_as_many(books: Books) -> None:
    sizes = []
    for day in range(10 * MOST_DAYS):
        books.clock.now = NOON + day * 86400
        record = a_record(f"{day:08x}{UID[8:]}")
        record.state, record.released_at = "Released", books.clock.now
        books.hear(record, *figures(10))
        books.store.save(record)
        books.ledger.close(record)
        books.store.forget_old(books.clock.now - 86400)
        if day % MOST_DAYS == MOST_DAYS - 1:
            sizes.append(books.store._db.execute("PRAGMA page_count").fetchone()[0])
    assert rows_of_usage(books) == len(books.days()) == MOST_DAYS
    assert max(books.days()) == datetime.fromtimestamp(books.clock.now, UTC).strftime("%Y-%m-%d")
    assert max(sizes) <= sizes[1] + 2, "pages that are free are used again"


def test_a_clock_that_was_wrong_once_does_not_make_the_books_forget(books: Books) -> None:
    record = a_record()
    for seconds in (0.0, 30 * 365 * 86400.0, 86400.0):
        books.clock.now = NOON + seconds
        books.hear(record, *figures(int(10 + seconds)))
    assert min(books.days()) == "2026-03-14"


# -- the command


@pytest.fixture
def month(books: Books) -> Books:
    """Return a store with usage of Ada on three days and of Bob on one, which an S2CS has open."""
    for day in range(3):
        books.clock.now = NOON + day * 86400
        books.hear(a_record(), *figures((day + 1) * 10**9, 10, day + 1))
    books.hear(a_record("0" + UID[1:], CONS, "[red]bob\x1b (sha256:22)"), *figures(500))
    return books


def test_the_table_has_a_line_for_each_day_and_identity_and_their_sum(month: Books) -> None:
    ran = CliRunner().invoke(main, ["usage", str(month.path)])
    assert ran.exit_code == 0
    assert ran.output.isascii(), "no boxes"
    assert max(map(len, ran.output.splitlines())) <= 100
    words = [line.split() for line in ran.output.splitlines()]
    assert words[0] == ["DAY", "IDENTITY", "ISSUER", "STREAMS", "TO", "CONSUMERS", "TO", "PRODUCERS", "CONNECTIONS"]
    assert ["2026-03-14", "ada@lab.example", "sha256:11", "1", "1", "GB", "10", "B", "1"] in words
    assert ["2026-03-16", "[red]bob?", "sha256:22", "1", "500", "B", "0", "B", "1"] in words
    assert ["total", "3", "GB", "10", "B", "4"] in words


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--by", "day"), [("2026-03-14", None, 1), ("2026-03-15", None, 1), ("2026-03-16", None, 2)]),
        (("--by", "identity"), [(None, "[red]bob\x1b", 1), (None, "ada@lab.example", 1)]),
        (("--since", "2026-03-16", "--by", "identity"), [(None, "[red]bob\x1b", 1), (None, "ada@lab.example", 1)]),
        (("--until", "2026-03-15", "--by", "day"), [("2026-03-14", None, 1), ("2026-03-15", None, 1)]),
        (("--since", "2026-03-15", "--until", "2026-03-15"), [("2026-03-15", "ada@lab.example", 1)]),
        (("--until", "2026-03-13"), []),
    ],
)
def test_it_can_be_narrowed_and_summed_up(month: Books, options: tuple[str, ...], found: list[Any]) -> None:
    assert [(row["day"], row["identity"], row["streams"]) for row in month.usage(*options)] == found


def test_an_empty_span_is_said_in_words(month: Books) -> None:
    ran = CliRunner().invoke(main, ["usage", str(month.path), "--until", "2026-03-13"])
    assert (ran.exit_code, ran.output) == (0, "no bytes were moved\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--since", "14 March"), "14 March"),
        (("--since", "2026-03-15", "--until", "2026-03-14"), "is before --since"),
        (("--by", "week"), "week"),
    ],
)
def test_bad_usage_ends_with_status_2_and_says_what(month: Books, arguments: tuple[str, ...], words: str) -> None:
    ran = CliRunner().invoke(main, ["usage", str(month.path), *arguments])
    assert ran.exit_code == 2
    assert words in ran.output


def test_a_file_that_is_no_store_or_not_there_ends_with_status_2(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    for words in ("cannot be read: No such file or directory", "cannot be read as a store"):
        ran = CliRunner().invoke(main, ["usage", str(notes)])
        assert (ran.exit_code, words in ran.output) == (2, True), ran.output
        notes.write_text("these are not the records of a control server\n" * 100)


def test_a_store_of_a_newer_software_is_not_guessed_at(books: Books) -> None:
    books.store.close()
    with tampered(books.path) as db:
        db.execute("PRAGMA user_version = 99")
    ran = CliRunner().invoke(main, ["usage", str(books.path)])
    assert ran.exit_code == 2
    assert "has schema version 99, but this version of SciStream knows" in ran.output


def test_an_audit_trail_in_place_of_a_store_is_called_one(tmp_path: Path) -> None:
    trail = tmp_path / "s2cs.audit.jsonl"
    trail.write_text('{"event":"server-start"}\n')
    for command in (["usage", str(trail)], ["store", "check", str(trail)]):
        ran = CliRunner().invoke(main, command)
        assert ran.exit_code == 2
        assert "is not a store: it contains lines of JSON, like an audit trail" in ran.output
        assert "backup" not in ran.output


def test_sums_stop_where_the_store_could_not_keep_them(books: Books) -> None:
    much = Counts(2**60, 2**60, 1, 0)
    for number in range(20):
        uid = f"{number:08x}-1234-4234-8234-123456789abc"
        for _ in range(9):
            books.store.book("2026-03-14", [Booking(uid, PROD, "dtn1", ADA, BOOT, much, much)])
    assert books.ledger.usage_today(ADA) == 2 * 2**62
    assert books.days() == {"2026-03-14": 2**62}


def test_figures_that_the_rate_of_a_stream_does_not_allow_are_given_back_and_not_booked(books: Books) -> None:
    record = a_record()
    possible = int(2 * 10e6 / 8 * (AGE + 60)) + 2**30
    assert books.ledger.hear(record, "dtn1", BOOT, figures(possible), AGE) is None
    refused = books.ledger.hear(record, "dtn1", BOOT, figures(possible + 1), AGE)
    assert refused == (possible + 1, 0, 1, possible)
    assert books.ledger.hear(record, "dtn1", BOOT, figures(0, 0, 10**12), AGE) is not None
    assert books.ledger.hear_last(record, "dtn1", BOOT, figures(2**63 - 1), AGE) is not None
    books.ledger.write()
    assert books.days() == {"2026-03-14": possible}
    assert not books.ledger.total(record).complete
