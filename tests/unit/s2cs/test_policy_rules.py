"""The policy: the identities of a rule, its limits, and the problems of a policy file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scistream.config import ConfigError
from scistream.pki.authority import init_authority
from scistream.protocol.address import Address
from scistream.protocol.messages import CONS, PROD, Role
from scistream.s2cs.policy.file import Policy, load_policy
from scistream.s2cs.policy.identities import Index, canonical
from scistream.s2cs.policy.rules import CurrentUsage, RequestedStream, Rule, Target
from scistream.tls.verify import Identity, issuer_name, load_authority
from scistream.units import format_seconds, format_size

LAB, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
ADA = Identity(LAB, "ada@lab.example")
NOTHING_YET = CurrentUsage()


def a_rule(number: int = 1, roles: tuple[Role, ...] = (PROD, CONS), **limits: Any) -> Rule:
    return Rule(number, f"rule-{number}", roles, **limits)


def asking(role: Role = PROD, rate: float = 1000.0, num_conn: int = 1, **more: Any) -> RequestedStream:
    return RequestedStream(role, rate, num_conn, **more)


# -- whom a rule is for

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LOCALS = st.text(LETTERS + LETTERS.upper() + "0123456789.+_-", min_size=1, max_size=12)
LABELS = st.text(LETTERS + "0123456789", min_size=1, max_size=8)
DOMAINS = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
CASES = st.sampled_from([str.lower, str.upper, str.title])


def index_of(*texts: str, issuer: str = LAB) -> Index[str]:
    index: Index[str] = Index()
    for text in texts:
        index.entries(issuer, text).append(text)
    return index


@given(LOCALS, DOMAINS, CASES, CASES)
def test_an_address_is_found_in_any_case_of_its_domain(local: str, domain: str, one: Any, other: Any) -> None:
    for text in (f"{local}@{one(domain)}", f"*@{one(domain)}"):
        assert index_of(text).find(Identity(LAB, f"{local}@{other(domain)}")) == [text]
        assert index_of(text).find(Identity(OTHER, f"{local}@{other(domain)}")) == ()


@given(LOCALS)
def test_the_case_before_the_at_sign_matters(local: str) -> None:
    found = index_of(f"{local}@lab.example").find(Identity(LAB, f"{local.swapcase()}@lab.example"))
    assert bool(found) == (local == local.swapcase())


@given(LOCALS, DOMAINS, LABELS)
def test_a_domain_is_just_that_domain(local: str, domain: str, label: str) -> None:
    index = index_of(f"*@{domain}")
    tricks = [
        f"{local}@{label}.{domain}",
        f"{local}@{label}{domain}",
        f"{local}@{domain}.{label}",
        f"{local}@{domain}.",
        f"{local}@{local}@{domain}",
        f'"{local}@x"@{domain}',
        f"{local}@{domain}@{label}",
        f"mailto:{local}@{domain}",
        f"scistream:user:{local}@{domain}",
        f"{local} @{domain}",
        f"@{domain}",
        f"*@{domain}",
        domain,
        f"{local}@{domain}\n",
        f"{local}\0@{domain}",
    ]
    for name in tricks:
        assert index.find(Identity(LAB, name)) == (), name
    assert index.find(Identity(LAB, f"{local}@{domain}")), "the control"


@given(st.text())
def test_whatever_a_certificate_says_a_domain_has_only_addresses_that_end_with_it(name: str) -> None:
    if index_of("*@lab.example").find(Identity(LAB, name)):
        local, _, domain = name.partition("@")
        assert local
        assert domain.lower() == "lab.example"


def test_letters_that_only_look_alike_are_others() -> None:
    assert index_of("*@kelvin.example").find(Identity(LAB, "ada@\N{KELVIN SIGN}elvin.example")) == ()
    assert canonical("ada@\N{KELVIN SIGN}.example") == "ada@\N{KELVIN SIGN}.example"


def test_an_exact_name_comes_before_its_domain() -> None:
    index = index_of("*@lab.example", "ada@lab.example")
    assert index.find(ADA) == ["ada@lab.example"]
    assert index.find(Identity(LAB, "bob@lab.example")) == ["*@lab.example"]


def test_a_uri_is_found_as_it_is_written() -> None:
    index = index_of("scistream:user:robot")
    assert index.find(Identity(LAB, "scistream:user:robot"))
    assert not index.find(Identity(LAB, "scistream:user:Robot"))


@pytest.mark.parametrize(
    "text", ["*", "*@*", "a*@x.org", "*@x.*", "*@", "ada", "", "@x.org", "a@b@c", "x y:z", "**@x.org"]
)
def test_what_is_no_identity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\*@example\.org"):
        index_of(text)


# -- which rule decides


def test_nothing_is_allowed_without_a_rule() -> None:
    for policy in (Policy(), Policy([(a_rule(), OTHER, ["ada@lab.example"])])):
        decision = policy.decide(ADA, asking(), NOTHING_YET)
        assert not decision.allowed
        assert "no rule" in decision.reason
        assert "ada@lab.example" in decision.reason


def test_the_same_address_from_another_authority_has_no_rule() -> None:
    policy = Policy([(a_rule(), LAB, ["ada@lab.example", "*@lab.example"])])
    assert policy.decide(ADA, asking(), NOTHING_YET).allowed
    assert not policy.decide(Identity(OTHER, "ada@lab.example"), asking(), NOTHING_YET).allowed


def test_an_exact_rule_for_one_role_leaves_nothing_of_the_domain_s_rule_for_the_other() -> None:
    policy = Policy([(a_rule(1), LAB, ["*@lab.example"]), (a_rule(2, (PROD,)), LAB, ["ada@lab.example"])])
    assert policy.decide(ADA, asking(PROD), NOTHING_YET).reason == "allowed by rule 2 `rule-2`"
    refused = policy.decide(ADA, asking(CONS), NOTHING_YET)
    assert (refused.allowed, refused.reason) == (False, "rule 2 `rule-2` allows the role PROD, but CONS was requested")
    assert policy.decide(Identity(LAB, "bob@lab.example"), asking(CONS), NOTHING_YET).allowed


def test_two_rules_may_share_an_identity_in_different_roles() -> None:
    rules = [(a_rule(1, (PROD,), rate=1.0), LAB, ["ada@lab.example"])]
    policy = Policy([*rules, (a_rule(2, (CONS,), rate=2000.0), LAB, ["ada@lab.example"])])
    assert "rule 1" in policy.decide(ADA, asking(PROD), NOTHING_YET).reason
    assert policy.decide(ADA, asking(CONS), NOTHING_YET).allowed
    with pytest.raises(ValueError, match="`rule-1` already covers 'ada@LAB"):
        Policy([*rules, (a_rule(2), LAB, ["ada@LAB.example"])])


def test_a_rule_with_no_role_bars_somebody() -> None:
    policy = Policy([(a_rule(1), LAB, ["*@lab.example"]), (a_rule(2, ()), LAB, ["ada@lab.example"])])
    refused = policy.decide(ADA, asking(), NOTHING_YET)
    assert (refused.allowed, refused.reason) == (False, "rule 2 `rule-2` allows nothing, but PROD was requested")


def test_only_named_identities_of_the_named_issuer_are_administrators() -> None:
    policy = Policy([(a_rule(), LAB, ["ada@lab.example"])])
    assert not policy.is_administrator(ADA)
    policy.add_administrators(LAB, ["ada@lab.example"])
    assert policy.is_administrator(ADA)
    assert not policy.is_administrator(Identity(OTHER, "ada@lab.example"))
    assert not policy.is_administrator(Identity(LAB, "eve@lab.example"))


# -- what a rule bounds


@pytest.mark.parametrize(
    ("limits", "allowed", "refused", "words"),
    [
        ({"rate": 5000.0}, asking(rate=5000.0), asking(rate=5001.0), ["at most 5000 Mbit/s", "5001 was requested"]),
        (
            {"listen_ports": [(5075, 5075), (5100, 5101)]},
            asking(num_conn=3, listen_ports=[5101, 5075, 5100]),
            asking(num_conn=2, listen_ports=[5101, 5076]),
            ["listen ports 5075, 5100-5101", "5076 was requested"],
        ),
        ({"listen_ports": []}, asking(), asking(listen_ports=[5075]), ["listen ports none, but 5075 was requested"]),
        ({"num_conn": 4}, asking(num_conn=4), asking(num_conn=5), ["at most 4 channels", "5 were requested"]),
        ({"expires": 7200.0}, asking(life=7200.0), asking(life=7201.0), ["at most 2h", "7201s was requested"]),
        ({}, asking(), asking(wan_security="none"), ["WAN security encrypt", "none was requested"]),
        ({"total_rate": 1000.0}, asking(rate=1000.0), asking(rate=1001.0), ["at most 1000 Mbit/s over all", "1001"]),
    ],
)
def test_a_limit_allows_what_it_says_and_refuses_more(
    limits: dict[str, Any], allowed: RequestedStream, refused: RequestedStream, words: list[str]
) -> None:
    rule = a_rule(3, **limits)
    assert rule.decide(allowed, NOTHING_YET).allowed
    decision = rule.decide(refused, NOTHING_YET)
    assert (decision.allowed, decision.code) == (False, "not-authorized")
    for word in ["rule 3 `rule-3` allows", *words]:
        assert word in decision.reason


@pytest.mark.parametrize(
    ("limits", "allowed", "refused", "words"),
    [
        ({"streams": 2}, CurrentUsage(1), CurrentUsage(2), ["at most 2 streams at once", "2 exist"]),
        (
            {"total_rate": 3000.0},
            CurrentUsage(2, 2000.0),
            CurrentUsage(3, 2000.5),
            ["at most 3000 Mbit/s", "3000.5 was requested"],
        ),
        (
            {"bytes_per_day": 2**40},
            CurrentUsage(0, 0.0, 2**40 - 1),
            CurrentUsage(0, 0.0, 2**40),
            ["1T per day", "1T were carried"],
        ),
    ],
)
def test_what_there_is_already_counts(
    limits: dict[str, Any], allowed: CurrentUsage, refused: CurrentUsage, words: list[str]
) -> None:
    rule = a_rule(3, **limits)
    assert rule.decide(asking(), allowed).allowed
    decision = rule.decide(asking(), refused)
    assert not decision.allowed
    for word in ["rule 3 `rule-3` allows", *words]:
        assert word in decision.reason


def test_a_rule_without_limits_has_none() -> None:
    most = asking(rate=10_000_000.0, num_conn=1024, life=366 * 86400.0)
    assert a_rule().decide(most, CurrentUsage(1000, 1e9, 2**60)).allowed
    assert a_rule().decide_volume(2**60).allowed


def test_a_running_stream_may_use_its_day_up_and_no_more() -> None:
    rule = a_rule(bytes_per_day=1000)
    assert rule.decide_volume(1000).allowed
    assert not rule.decide_volume(1001).allowed


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("10.1.0.0/16", ["10.1.2.3:80", "[::ffff:10.1.2.3]:80"], ["10.2.0.1:80", "[::ffff:10.2.0.1]:80", "[::1]:80"]),
        ("10.1.0.7", ["10.1.0.7:1", "10.1.0.7:65535"], ["10.1.0.8:1", "localhost:1"]),
        ("10.1.0.7:5000", ["10.1.0.7:5000"], ["10.1.0.7:4999", "10.1.0.7:5001"]),
        ("10.1.0.0/16:5000-5010", ["10.1.9.9:5000", "10.1.9.9:5010"], ["10.1.9.9:5011", "10.2.9.9:5000"]),
        ("2001:db8::/32", ["[2001:db8::1]:80"], ["[2001:db9::1]:80", "10.1.0.1:80"]),
        ("[2001:db8::/32]:80-81", ["[2001:db8::1]:81"], ["[2001:db8::1]:82"]),
        ("0.0.0.0/0", ["192.0.2.1:1", "[::ffff:192.0.2.1]:1"], ["[2001:db8::1]:1", "lab.example:1"]),
    ],
)
def test_a_target_is_a_network_and_ports(text: str, inside: list[str], outside: list[str]) -> None:
    target = Target.parse(text)
    assert Target.parse(str(target)) == target
    for address in inside:
        assert target.has(Address.parse(address)), address
    for address in outside:
        assert not target.has(Address.parse(address)), address
    decision = a_rule(7, targets=(target,)).decide_targets([*inside, outside[0]])
    assert (decision.allowed, decision.code) == (False, "target-refused")
    assert decision.reason == f"rule 7 `rule-7` allows the targets {target}, but not {outside[0]}"
    assert a_rule(7, targets=(target,)).decide_targets(inside).allowed


@pytest.mark.parametrize(
    "text", ["", "lab.example", "10.0.0.0/8:0", "10.0.0.0/8:9-8", "10.0.0.0/8:65536", "[::/0", "[::/0]x"]
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a valid target|invalid ports|is not a network"):
        Target.parse(text)


def test_numbers_are_said_as_a_file_says_them() -> None:
    assert [format_seconds(s) for s in (0.5, 59, 60, 5400, 86400, 129600, 90)] == [
        "0.5s",
        "59s",
        "1m",
        "90m",
        "1d",
        "36h",
        "90s",
    ]
    assert [format_size(b) for b in (5, 2**10, 2**20, 3 * 2**39)] == ["5 bytes", "1K", "1M", "1.5T"]


# -- the file

RULE = '[[rules]]\nname = "a"\nissuer = "none"\nidentities = ["*@lab.example"]\nroles = ["PROD"]\n'


def written(folder: Path, text: str) -> Path:
    file = folder / "policy.toml"
    file.write_text(text)
    return file


def problem(folder: Path, text: str) -> str:
    file = written(folder, text)
    with pytest.raises(ConfigError) as refused:
        load_policy(file)
    message = str(refused.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    return message.removeprefix(f"{file}: ")


def test_every_limit_of_a_file_is_read(tmp_path: Path) -> None:
    limits = (
        'rate = "5Gbit"\ntotal_rate = "10Gbit"\nnum_conn = 8\nstreams = 3\nexpires = "8h"\nbytes_per_day = "2T"\n'
        'targets = ["10.0.0.0/8:5000"]\nlisten_ports = "5075, 5100-5101"\n'
    )
    [(rule, issuer, names)] = load_policy(written(tmp_path, RULE + limits)).rules
    assert (issuer, list(names)) == ("none", ["*@lab.example"])
    assert rule == Rule(
        1,
        "a",
        (PROD,),
        rate=5000.0,
        total_rate=10_000.0,
        num_conn=8,
        streams=3,
        expires=8 * 3600.0,
        bytes_per_day=2 * 2**40,
        targets=(Target.parse("10.0.0.0/8:5000"),),
        listen_ports=[(5075, 5075), (5100, 5101)],
    )


def test_an_authority_is_named_by_its_file_or_by_the_hash_of_its_key(tmp_path: Path) -> None:
    authority = init_authority(tmp_path / "pki", "The lab").certificate
    by_hash = issuer_name(load_authority(authority, "issuer"))
    for text in ("pki/ca.pem", str(authority), by_hash):
        policy = load_policy(written(tmp_path, RULE.replace("none", text)))
        assert policy.issuers == {by_hash}
        assert policy.decide(Identity(by_hash, "ada@lab.example"), asking(), NOTHING_YET).allowed


def test_an_empty_file_allows_nothing(tmp_path: Path) -> None:
    assert not load_policy(written(tmp_path, "")).decide(ADA, asking(), NOTHING_YET).allowed


@pytest.mark.parametrize(
    ("text", "start", "parts"),
    [
        ("[[rules", "is not TOML", []),
        ("rule = 1", "rule: unknown key; the keys here are administrators, rules", []),
        (
            RULE + RULE.replace('"a"', '"b"') + "prots = 1",
            "rule 2 `b`: prots: unknown key; the keys here are ",
            ["rate", "targets"],
        ),
        (RULE.replace('name = "a"\n', ""), "rule 1: name: is missing", []),
        (RULE.replace('issuer = "none"\n', ""), "rule 1 `a`: issuer: is missing", []),
        (RULE.replace('roles = ["PROD"]\n', ""), "rule 1 `a`: roles: is missing", []),
        (RULE + "rate = 5", "rule 1 `a`: rate: 5 is not valid here: write text in quotes", ["unlimited"]),
        (RULE + 'rate = "lots"', "rule 1 `a`: rate: 'lots' is not a rate", ["10Gbit", "unlimited"]),
        (RULE + 'expires = "ever"', "rule 1 `a`: expires: 'ever' is not a time", ["unlimited"]),
        (RULE + 'bytes_per_day = "-1"', "rule 1 `a`: bytes_per_day: '-1' is not a size", ["unlimited"]),
        (RULE + "num_conn = 0", "rule 1 `a`: num_conn: 0 is out of range", ["1 to 1024", "unlimited"]),
        (RULE + "num_conn = 1025", "rule 1 `a`: num_conn: 1025 is out of range", []),
        (RULE + 'streams = "4"', "rule 1 `a`: streams: '4' is out of range", ["unlimited"]),
        (RULE + 'wan_security = ["none"]', "rule 1 `a`: wan_security: 'none' is not allowed; allowed are encrypt", []),
        (RULE + 'targets = ["lab"]', "rule 1 `a`: targets: 'lab' is not a network", []),
        (RULE + 'listen_ports = "pva"', "rule 1 `a`: listen_ports: 'pva' is not a list of ports", ["unlimited"]),
        (RULE.replace("PROD", "prod"), "rule 1 `a`: roles: 'prod' is not allowed; allowed are PROD, CONS", []),
        (RULE.replace("*@lab.example", "lab*"), "rule 1 `a`: identities: 'lab*': a star can only", ["*@example.org"]),
        (RULE.replace('["*@lab.example"]', "[]"), "rule 1 `a`: identities: is empty: name at least one", []),
        (RULE.replace("none", "sha256:abc"), "rule 1 `a`: issuer: 'sha256:abc' is not a fingerprint", ["64"]),
        (RULE.replace("none", "nowhere.pem"), "rule 1 `a`: issuer: ", ["nowhere.pem does not exist"]),
        (RULE.replace("none", "policy.toml"), "rule 1 `a`: issuer: ", ["contains no certificate"]),
        (
            RULE + RULE.replace("lab.example", "hub.example"),
            "rule 2 `a`: name: already the name of rule 1: choose another one",
            [],
        ),
        (RULE + RULE.replace('"a"', '"b"'), "rule 2 `b`: identities: rule 1 `a` already covers '*@lab.example'", []),
        (RULE.replace('"a"', '" "'), "rule 1 ` `: name: ' ' is not a valid name", []),
        ('[[administrators]]\nissuer = "none"\nidentities = ["ada"]', "administrators 1: identities: 'ada'", []),
        (
            '[[administrators]]\nissuer = 3\nidentities = ["ada"]',
            "administrators 1: issuer: 3 is not valid here",
            ["text in quotes"],
        ),
    ],
)
def test_a_mistake_is_named_with_its_rule_its_key_and_what_is_allowed(
    tmp_path: Path, text: str, start: str, parts: list[str]
) -> None:
    load_policy(written(tmp_path, RULE))
    said = problem(tmp_path, text)
    assert said.startswith(start)
    for part in parts:
        assert part in said


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        RULE.replace("PROD", "both")
        + 'rate = "lots"\nexpires = 1\n'
        + RULE.replace('"a"', '"b"').replace("none", "x.pem")
        + RULE
        + '[[administrators]]\nissuer = ""\nidentities = ["x:y"]\n',
    )
    with pytest.raises(ConfigError) as refused:
        load_policy(file)
    lines = [line.removeprefix(f"{file}: ") for line in str(refused.value).splitlines()]
    assert [": ".join(line.split(": ")[:2]) for line in lines] == [
        *("rule 1 `a`: expires", "rule 1 `a`: roles", "rule 1 `a`: rate"),
        *("rule 2 `b`: issuer", "rule 3 `a`: name", "administrators 1: issuer"),
    ]


def test_a_server_s_certificate_is_no_authority(tmp_path: Path) -> None:
    from scistream.pki.authority import issue

    init_authority(tmp_path / "pki", "The lab")
    issue(tmp_path / "pki", "server", "gateway")
    said = problem(tmp_path, RULE.replace("none", "pki/gateway.pem"))
    assert said.startswith("rule 1 `a`: issuer: ")
    assert "not the certificate of one authority" in said


def test_ten_thousand_rules_each_decide_for_their_own_identities(tmp_path: Path) -> None:
    sections = [
        f'[[rules]]\nname = "r{n}"\nissuer = "{LAB if n % 2 else OTHER}"\nroles = ["PROD"]\nrate = "{n}Mbit"\n'
        f'identities = ["{"*" if n % 3 else "user"}@d{n}.example"]\n'
        for n in range(1, 10_001)
    ]
    policy = load_policy(written(tmp_path, "\n".join(sections)))
    assert len(policy.rules) == 10_000
    for n in range(1, 10_001):
        mine, others = (LAB, OTHER) if n % 2 else (OTHER, LAB)
        user = f"user@D{n}.example"
        assert policy.decide(Identity(mine, user), asking(rate=float(n)), NOTHING_YET).allowed
        refused = policy.decide(Identity(mine, user), asking(rate=n + 1.0), NOTHING_YET)
        assert f"rule {n} `r{n}` allows at most {n:g} Mbit/s" in refused.reason
        assert not policy.decide(Identity(others, user), asking(rate=1.0), NOTHING_YET).allowed


def test_what_decides_is_found_among_ten_thousand_rules_without_looking_at_the_others() -> None:
    """The number of comparisons for each lookup does not depend on the number of identities."""
    compared = 0

    class Counted(str):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    policy = Policy((a_rule(n), LAB, [f"user@d{n}.example"]) for n in range(1, 10_001))
    for n in range(1, 10_001, 100):
        assert policy.decide(Identity(Counted(LAB), f"user@d{n}.example"), asking(), NOTHING_YET).allowed
    assert 100 <= compared <= 100 * 20
