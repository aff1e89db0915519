"""Damaged join strings: the error messages for users."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scistream.protocol.address import Address
from scistream.protocol.join_string import Join
from scistream.protocol.messages import PROD

UID = "0123abcd-4567-89ef-0123-456789abcdef"
KEY = "qP3_x8ZkT0wLmN-yRf7uVb2sHdJ5gCe9aXo1iQtKzE4"
WHOLE = str(Join(UID, KEY, Address("door.example", 5000), PROD, "ab" * 32))


def complaint(text: str) -> str:
    """Return the error for a damaged join string; check that it contains no part of the key."""
    with pytest.raises(ValueError, match="this is not a join string: ") as refused:
        Join.parse(text)
    said = str(refused.value)
    key = Join.parse(WHOLE).app_key
    assert not any(key[at : at + 6] in said for at in range(len(key) - 5))
    return said


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        (f"export SCISTREAM_JOIN='{WHOLE}'", "a shell assignment"),
        (f"SCISTREAM_JOIN={WHOLE}", "a shell assignment"),
        (f"'{WHOLE}'", "quotes"),
        (f'"{WHOLE}', "quotes"),
        (f"\u201c{WHOLE}\u201d", "quotes"),
        (f"{WHOLE[:60]}\n{WHOLE[60:]}", "spaces or line breaks"),
        (f"{WHOLE[:70]}  {WHOLE[70:]}", "spaces or line breaks"),
        (f"{WHOLE}\n{WHOLE}", "more than one"),
        (WHOLE.replace("-", "\u2013"), "characters that a join string never contains"),
        (WHOLE + "\x00", "characters that a join string never contains"),
        (WHOLE[4:], "does not begin with `scistream://`"),
        ("hello", "does not begin with `scistream://`"),
        (WHOLE[:20], "it ends before its HOST:PORT"),
        (WHOLE.replace("://", "://0"), "the uid of the stream in it is damaged"),
        (WHOLE.replace("@", "x@"), "its key has 44 characters"),
        (WHOLE[: WHOLE.index("@") + 5], "it ends within its HOST:PORT or before the side"),
        (WHOLE.replace("/prod", "/both"), "neither `prod` nor `cons`"),
        (WHOLE.replace("door.example:5000", ""), "no HOST:PORT"),
        (WHOLE[:-1], "its last part, ca=, is incomplete"),
        (WHOLE + "0", "more than 64 digits"),
        (WHOLE.partition("?")[0], "its last part, ca=, is missing"),
    ],
)
def test_a_spoilt_join_string_is_told_what_happened_to_it_and_what_to_do(spoilt: str, reason: str) -> None:
    assert reason in complaint(spoilt)


@pytest.mark.parametrize("around", ["{}", "{}\n", "\ufeff{}\r\n", "  {}  "])
def test_what_an_editor_puts_around_a_join_string_is_no_part_of_it(around: str) -> None:
    assert Join.parse(around.format(WHOLE)) == Join.parse(WHOLE)


@given(st.integers(1, len(WHOLE) - 1))
def test_a_join_string_that_is_cut_anywhere_is_refused_with_advice(at: int) -> None:
    assert "copy the whole line again" in complaint(WHOLE[:at])


@given(st.integers(1, WHOLE.index("@")), st.characters().filter(lambda one: not re.match(r"[A-Za-z0-9_.:/@?-]", one)))
def test_a_join_string_with_a_strange_character_is_refused_without_being_repeated(at: int, strange: str) -> None:
    complaint(WHOLE[:at] + strange + WHOLE[at:])
