"""docs/protocol.rst, held to the code that it describes."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from cryptography import x509
from docutils import nodes
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect
from protocol_parts import up_to_date

from scistream import timing
from scistream.links import backpressure, link
from scistream.links.admission import Bounds
from scistream.pki.authority import init_authority, issue
from scistream.protocol import codec, messages
from scistream.protocol.address import Address
from scistream.protocol.errors import BadMessageError, ErrorCode
from scistream.protocol.join_string import Join, hash_app_key, new_app_key
from scistream.s2cs.settings import ServerLimits
from scistream.s2cs.store.database import MOST_EARLY_RELEASES, MOST_RELEASED
from scistream.s2ds.probe.responder import GIVE, GREETING, PING, PING_SIZE, READY, REPORT, TAKE, VERSION
from scistream.s2ds.probe.test_data import Pattern, start_of
from scistream.s2ds.relay.handshake import MOST_RECORDS
from scistream.s2ds.relay.tls import EMPTY_A_SECOND, EMPTY_BURST
from scistream.s2uc.stream_certificates import AFTERLIFE, MAX_GATEWAYS, issue_credentials
from scistream.tls.contexts import ALPN
from scistream.tls.stream_channels import CIPHERS, StreamSecret, consumer_name, producer_name, server_name
from support.protocol_page import (
    IN_LISTS,
    NAMED,
    PAGE,
    ROOT,
    doctree,
    in_words,
    left_out,
    section_named,
    sections,
    spelled_out,
    table_of,
    tables_in,
)

FIELDS = ("Field", "Type", "If left out", "Meaning")
TAGS: dict[str, Any] = {kind.__struct_config__.tag: kind for kind in get_args(messages.Message)}


# -- the page itself


def test_the_page_is_plain_restructured_text() -> None:
    assert doctree().findall(nodes.section)


def test_sections_are_numbered_in_order_and_each_has_its_label() -> None:
    expected: list[str] = []
    first, second = 0, 0
    for number in sections():
        if "." in number:
            second += 1
        else:
            first, second = first + 1, 0
        expected.append(f"{first}.{second}" if second else f"{first}")
    assert list(sections()) == expected
    for number, section in sections().items():
        assert f"protocol-{number}" in section["names"]


def test_each_section_that_the_page_itself_refers_to_is_there() -> None:
    text = " ".join(PAGE.read_text().split())
    for match in re.finditer(r"(RFC \d+, )?[Ss]ections? ((?:\d+(?:\.\d+)?(?:, | and )?)+)", text):
        for number in re.findall(r"\d+(?:\.\d+)?", match[2]) if not match[1] else ():
            assert number in sections(), f"the page refers to section {number}"


def test_the_parts_that_come_from_the_code_are_up_to_date() -> None:
    page = PAGE.read_text()
    assert up_to_date(page) == page, "run tests/unit/protocol_parts.py"


# -- who cites it

CITATION = re.compile(r"[Pp]rotocol\s+sections?\s+((?:\d+(?:\.\d+)?(?:\s\([a-z ]+\))?(?:,\s+|\s+and\s+)?)+)")
ANY_SECTION = re.compile(r"§|\b[Ss]ections?\s+\d")
OF_OTHERS = re.compile(r"RFC\s+\d+,?\s+\(?$")


SOURCES = sorted((ROOT / "scistream").rglob("*.py"))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_each_section_that_the_source_cites_is_there(file: Path) -> None:
    text = file.read_text()
    cited = [(match.start(), match.end(), match[1]) for match in CITATION.finditer(text)]
    for _, _, numbers in cited:
        for number in re.findall(r"\d+(?:\.\d+)?", numbers):
            assert number in sections(), f"{file} cites protocol section {number}"
    for match in ANY_SECTION.finditer(text):
        is_ours = any(begin <= match.start() < end for begin, end, _ in cited)
        assert is_ours or OF_OTHERS.search(text[: match.start()]), (
            f"{file} cites {text[match.start() : match.end() + 20]!r}: write `protocol section N.N`"
        )


def test_some_source_cites_the_page() -> None:
    assert sum(len(CITATION.findall(file.read_text())) for file in SOURCES) >= 15


# -- fields


def _fields(kind: Any) -> list[list[str]]:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return [[field.encode_name, in_words(field.type), left_out(field)] for field in info.fields]


def _described(title: str, fields: list[str]) -> list[list[str]]:
    """Return the table in this section whose fields begin with the first of `fields`, without the meanings."""
    found = [rows[1:] for rows in tables_in(section_named(title)) if tuple(rows[0]) == FIELDS]
    [table] = [rows for rows in found if [row[0] for row in rows] == fields]
    for name, _, _, meaning in table:
        assert meaning.strip(), f"{title}: {name} has no meaning"
    return [row[:3] for row in table]


@pytest.mark.parametrize("tag", TAGS)
def test_each_field_of_a_message_is_described_as_the_code_has_it(tag: str) -> None:
    fields = _fields(TAGS[tag])
    assert _described(tag, [name for name, _, _ in fields]) == fields


def test_no_message_is_left_out_of_the_first_table() -> None:
    rows = table_of("All messages", "cmd", "From, to", "For what", "Answered by")
    assert {row[0] for row in rows} == set(TAGS)
    commands = {kind.__struct_config__.tag for kind in get_args(messages.Command)}
    assert {row[0] for row in rows if row[3] != "nothing"} == commands


def _objects() -> dict[str, Any]:
    """Return the structs that fields of messages contain, at any depth."""
    found: dict[str, Any] = {}

    def look(kind: inspect.Type) -> None:
        for inner in (getattr(kind, name, None) for name in ("item_type", "key_type", "value_type")):
            if inner is not None:
                look(inner)
        for one in getattr(kind, "types", ()):
            look(one)
        if isinstance(kind, inspect.StructType) and kind.cls.__name__ not in found:
            if kind.cls not in TAGS.values():
                found[kind.cls.__name__] = kind.cls
            for field in kind.fields:
                look(field.type)

    for kind in TAGS.values():
        look(inspect.type_info(kind))
    return found


def test_each_object_in_an_answer_is_described_as_the_code_has_it() -> None:
    titles = [section[0].astext().partition(" ")[2] for number, section in sections().items() if number[:2] == "6."]
    named = [name for title in titles for name in title.split(" and ")]
    assert sorted(named) == sorted(_objects())
    for title in titles:
        for name in title.split(" and "):
            fields = _fields(_objects()[name])
            assert _described(title, [field for field, _, _ in fields]) == fields


def test_named_types_are_what_the_code_has() -> None:
    rows = table_of("Types", "Name", "Type", "Meaning")
    expected = {name: spelled_out(inspect.type_info(kind)) for name, kind in (NAMED | IN_LISTS).items()}
    assert {name: kind for name, kind, _ in rows} == expected


def test_causes_of_resets_are_all_named() -> None:
    [row] = [
        row for rows in tables_in(section_named("ResetReason and BrokenChannel")) for row in rows if row[0] == "cause"
    ]
    assert all(cause in row[3] for cause in get_args(messages.Cause))


# -- codes, limits and times


def test_every_code_of_an_error_is_there_and_no_other() -> None:
    rows = table_of("Error codes", "Code", "Means", "What the receiver does")
    assert [row[0] for row in rows] == list(get_args(ErrorCode))


def _row(words: str, rows: dict[str, str]) -> str:
    """Return the first cell of the only row that equals these words or, failing that, begins with them."""
    [found] = [row for row in rows if row == words] or [row for row in rows if row.startswith(words)]
    return found


def test_limits_and_times_are_those_of_the_code() -> None:
    bounds, server = Bounds(), ServerLimits()
    burst = bounds.commands_per_second * timing.COMMAND_BURST
    hours = timing.REMEMBER_RELEASED / 3600
    expected = {
        "Bytes of a line": codec.MAX_LINE,
        "Bytes of a line of a stranger": codec.MAX_FIRST_LINE,
        "Bad lines": link.MAX_BAD_LINES,
        "TLS handshake": f"{timing.HANDSHAKE:g} s",
        "From the end of the handshake": f"{timing.FIRST_LINE:g} s",
        "Bytes of answers": backpressure.MAX_UNREAD,
        "Commands of one identity": f"{bounds.commands_per_second:g} a second, {burst:g} at once",
        "Links of one identity": bounds.links_per_identity,
        "Links of one address": bounds.links_per_address,
        "The same, of peers": bounds.unproven_per_address,
        "Failures of one address": f"{bounds.failures} in a short time",
        "Streams of one identity": server.streams_per_identity,
        "New streams of one identity": f"{server.requests_per_minute} a minute",
        "First repetition": f"{timing.FIRST_REPEAT:g} s",
        "Longest time between": f"{timing.LONGEST_REPEAT:g} s",
        "First delay": f"{timing.FIRST_RECONNECT:g} s",
        "Longest delay": f"{timing.LONGEST_RECONNECT:g} s",
        "Time between two Status": f"{timing.POLL:g} s",
        "Timeout of S2UC": f"{timing.FACILITY_ANSWER:g} s",
        "Timeout of S2CS": f"{timing.GATEWAY_ANSWER:g} s",
        "A REQ waits": f"{timing.EARLY_REQUEST:g} s",
        "The owner's client": f"{timing.OWNER_SETS_TARGETS:g} s",
        "Lifetime of a probe": f"{messages.PROBE_LIFE:g} s",
        "Released streams": f"{hours:g} h, {MOST_RELEASED} of one owner",
        "Early releases": f"{hours:g} h, {MOST_EARLY_RELEASES} of one owner",
    }
    rows = dict(table_of("Limits and times", "What", "How much"))
    by_settings = {
        "Lifetime of a stream (expires, longest_expires)",
        "From REQ until a side must be streaming (hello_timeout)",
    }
    found = {words: _row(words, rows) for words in expected}
    assert {words: rows[row] for words, row in found.items()} == {
        words: str(value) for words, value in expected.items()
    }
    assert set(rows) == {*found.values(), *by_settings}
    assert (
        f"closed at once for {timing.FIRST_REFUSAL:g} s, doubling to {bounds.longest_refusal:g} s"
        in found["Failures of one address"]
    )


def _says(title: str, *words: object) -> None:
    """Check that the section contains these words."""
    text = " ".join(section_named(title).astext().split())
    for word in words:
        assert str(word) in text, f"{title} does not say {word!r}"


def test_numbers_in_the_text_are_those_of_the_code() -> None:
    _says("Control links", ALPN.decode())
    _says("Lines", f"{codec.MAX_LINE:,}", f"{codec.MAX_FIRST_LINE:,}")
    _says("Bad lines", f"the {link.MAX_BAD_LINES}th bad line")
    _says("When a link ends", f"waits {timing.CLOSE:g} s")
    _says("Hello", f"{messages.MAX_OTHER_ADDRESSES} addresses in all")
    _says("UpdateTargets", f"{messages.MAX_OTHER_ADDRESSES} addresses in all")
    _says("Order", f"at least {timing.BETWEEN_TARGETS:g} s")
    _says("A producer that moves", f"within {timing.OWNER_SETS_TARGETS:g} s")
    _says("Certificate requests", f"at most {MAX_GATEWAYS}")
    _says("Certificates", producer_name("<uid>"), consumer_name("<uid>"))
    assert AFTERLIFE.total_seconds() == 3600
    suites = CIPHERS["aes"].decode().split(":")
    _says("Connect", server_name("<uid>", 0), *suites, f"{MOST_RECORDS} records")
    text = section_named("Connect").astext()
    assert [text.index(suite) for suite in suites] == sorted(text.index(suite) for suite in suites)
    _says("Bytes and ends", f"{EMPTY_BURST} at once and {EMPTY_A_SECOND:g} a second")


def test_the_conversation_of_a_probe_is_as_the_code_has_it() -> None:
    _says("Between gateways", f"A sends {GREETING.size} bytes: the version, {VERSION}", f"{PING_SIZE} bytes back")
    _says(
        "Between gateways", f"B answers with {READY.decode()}", f"A sends {PING.decode()} and {PING_SIZE - 1} bytes ."
    )
    _says("Between gateways", f"A sends {GIVE.decode()}:", f"A sends {TAKE.decode()},", f"in {REPORT.size} bytes")
    uid = "7f3d2b0e-9c41-4d6a-8a55-0b6f1c2d3e4f"
    pattern, period = Pattern(uid), 1_048_575
    assert pattern.at(0, 1000) == pattern.at(period, 1000) != pattern.at(1, 1000)
    _says("Between gateways", f"a period of {period:,} bytes")
    _says(
        "Between gateways", f"offset {start_of(1, to_producer=False):,} times c", f"+ {start_of(0, to_producer=True)}"
    )


# -- JSON


HEAD = '{"cmd":"Status","uid":null,"role":null,"seq":1'


@pytest.mark.parametrize(
    "rest",
    [
        ',"limit":1.0}',
        ',"limit":1e1}',
        ',"limit":true}',
        ',"limit":"5"}',
        ',"limit":null}',
        ',"later":1,"later":2}',
        ',"later":[{"a":1,"a":1}]}',
        ',"later":NaN}',
        ',"later":"\\ud800"}',
        ',"after":"\t"}',
        ',"cmd":"Status"}',
        "} x",
    ],
)
def test_what_the_page_says_is_refused_is_refused(rest: str) -> None:
    with pytest.raises(BadMessageError):
        codec.decode((HEAD + rest).encode())


@pytest.mark.parametrize(
    "text",
    [
        HEAD + ',"after":null}',
        HEAD + ',"after":"\\u0000\\ud83d\\ude00"}',
        HEAD + ',"later":{"x":[1.5,true,null]}}',
        HEAD + ',"later":' + "[" * 100 + "]" * 100 + "}",
        " " + HEAD + " }\r",
    ],
)
def test_what_the_page_says_is_taken_is_taken(text: str) -> None:
    assert isinstance(codec.decode(text.encode()), messages.Status)


@given(st.text(max_size=30))
def test_unknown_fields_are_ignored(name: str) -> None:
    fields = {"cmd": "Status", "uid": None, "role": None, "seq": 1}
    if name not in {*messages.Status.__struct_fields__, "cmd"}:
        assert codec.decode(json.dumps({**fields, name: [1]}).encode()) == messages.Status(uid=None, role=None, seq=1)


# -- keys, join strings, certificates


def test_a_join_string_and_a_key_are_as_the_page_says() -> None:
    key, uid = new_app_key(), "7f3d2b0e-9c41-4d6a-8a55-0b6f1c2d3e4f"
    assert re.fullmatch("[A-Za-z0-9_-]{43}", key)
    assert hash_app_key(key) == hashlib.sha256(key.encode("ascii")).hexdigest()
    form = "scistream://<uid>:<app_key>@<host>:<port>/<role>?ca=<sha256>"
    _says("Join strings", form)
    values = {"uid": uid, "app_key": key, "host": "lab.example", "port": "5000", "role": "cons", "sha256": "0" * 64}
    text = re.sub("<(.*?)>", lambda match: values[match[1]], form)
    assert str(Join.parse(text)) == text
    assert Join.parse(text) == Join(uid, key, Address("lab.example", 5000), "CONS", "0" * 64)


USAGES = {x509.ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth", x509.ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth"}


def _profile(certificate: x509.Certificate) -> dict[str, str]:
    """Describe the extensions of a certificate as the page does; of some only that they are there."""
    found = {}
    for extension in certificate.extensions:
        name = extension.oid._name + (" (critical)" if extension.critical else "")
        match extension.value:
            case x509.BasicConstraints(ca=ca, path_length=length):
                found[name] = ("CA:TRUE" if ca else "CA:FALSE") + (f", pathlen:{length}" if length is not None else "")
            case x509.KeyUsage() as usage:
                named = {"keyCertSign": usage.key_cert_sign, "cRLSign": usage.crl_sign}
                named["digitalSignature"] = usage.digital_signature
                found[name] = ", ".join(word for word, is_set in named.items() if is_set)
            case x509.ExtendedKeyUsage() as usages:
                found[name] = ", ".join(USAGES[one] for one in usages)
            case x509.SubjectAlternativeName() as names:
                found[name] = ", ".join(type(one).__name__ for one in names)
            case _:
                found[name] = "there"
    return found


def _told_profile(title: str, column: int) -> dict[str, str]:
    [table] = [rows for rows in tables_in(section_named(title)) if rows[0][0] == "Extension"]
    return {row[0]: row[column] for row in table[1:] if row[column] != "(absent)"}


def test_certificates_of_a_stream_have_the_profile_of_the_page() -> None:
    uid, secrets = "7f3d2b0e-9c41-4d6a-8a55-0b6f1c2d3e4f", {"PROD": StreamSecret(), "CONS": StreamSecret()}
    bundles = issue_credentials(uid, 1, 600.0, {role: secret.csr for role, secret in secrets.items()})
    told = [_told_profile("Certificates", column) for column in (1, 2)]
    for role, name in (("PROD", producer_name(uid)), ("CONS", consumer_name(uid))):
        authority, leaf = x509.load_pem_x509_certificates(bundles[role].encode())
        for certificate, profile in ((authority, told[0]), (leaf, told[1])):
            made = _profile(certificate)
            assert made.keys() == profile.keys()
            for extension in ("basicConstraints (critical)", "keyUsage (critical)"):
                assert made[extension] == profile[extension]
        assert _profile(leaf)["extendedKeyUsage"] == "serverAuth, clientAuth"
        assert told[1]["extendedKeyUsage"].startswith("serverAuth and clientAuth")
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert list(names) == [x509.DNSName(name)]
        csr = x509.load_pem_x509_csr(secrets[role].csr.encode())
        assert csr.public_key() == leaf.public_key()
        assert not list(csr.extensions)


def test_certificates_of_control_links_have_the_profile_of_the_page(tmp_path: Path) -> None:
    made = {
        3: [init_authority(tmp_path, "Lab")],
        1: [issue(tmp_path, "server", "s2cs.example", ["192.0.2.1"])],
        2: [issue(tmp_path, "user", "ada"), issue(tmp_path, "controller", "c"), issue(tmp_path, "user", "a@b.example")],
    }
    for column, files in made.items():
        told = _told_profile("Certificates of control links", column)
        for one in files:
            profile = _profile(x509.load_pem_x509_certificate(one.certificate.read_bytes()))
            profile = {name: value for name, value in profile.items() if not name.endswith("KeyIdentifier")}
            assert profile.keys() == told.keys()
            names = profile.pop("subjectAltName", None)
            assert profile == {name: told[name] for name in profile}
            assert names in (None, "DNSName, IPAddress", "UniformResourceIdentifier", "RFC822Name")


# -- the transcript


def test_every_line_of_the_transcript_is_a_message() -> None:
    page = PAGE.read_text()
    transcript = page[page.index(".. begin transcript") : page.index(".. end transcript")]
    lines = re.findall(r"^    \S+ > \S+  (\{.*\})$", transcript, re.MULTILINE)
    said = [codec.decode(one.encode()) for one in lines]
    assert {type(one) for one in said} == set(TAGS.values()) - {messages.StartLstn, messages.Drain}
    assert [codec.encode(one).decode().removesuffix("\n") for one in said] == lines
