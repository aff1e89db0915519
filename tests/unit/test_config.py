"""Configuration files, and the values that people write in them."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scistream.config import (
    ConfigProblem,
    S2CSConfig,
    S2DSConfig,
    S2UCConfig,
    beside,
    load,
    networks,
    parse_ports,
    parse_rate,
    parse_seconds,
    parse_size,
)

# -- rates, times, sizes, ports


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10Gbit", 10_000.0),
        ("10 Gbit/s", 10_000.0),
        ("500Mbit", 500.0),
        ("500", 500.0),
        ("2.5gbps", 2500.0),
        ("800k", 0.8),
        ("1Tbit", 1e6),
        ("10Tbit", 1e7),
        ("  1Gbit ", 1000.0),
    ],
)
def test_a_rate_is_read_in_mbit_per_second(text: str, rate: float) -> None:
    assert parse_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("15m", 900),
        ("15min", 900),
        ("8h", 28800),
        ("2d", 172800),
        ("0.5 h", 1800),
        ("1H", 3600),
    ],
)
def test_a_time_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("64K", 65536), ("512M", 2**29), ("2G", 2**31), ("1T", 2**40), ("1.5k", 1536), ("8MiB", 2**23)],
)
def test_a_size_is_read_in_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "ports"),
    [("5100-5200", (5100, 5200)), ("1-65535", (1, 65535)), ("7-7", (7, 7)), (" 5100 - 5200 ", (5100, 5200))],
)
def test_a_range_of_ports_has_both_ends(text: str, ports: tuple[int, int]) -> None:
    assert parse_ports(text) == ports


WRONG: dict[tuple[Any, str], tuple[str, ...]] = {
    (parse_rate, "is no rate: write it like 10Gbit"): ("", "fast", "-1", "1e3", "1Xbit", "1 2", "1Gbyte"),
    (parse_rate, "is out of range"): ("0", "0Gbit", "10.1Tbit", "9" * 400),
    (parse_seconds, "is no time: write it like 30s"): ("", "soon", "-5s", "5 weeks", "1h30m", "infd"),
    (parse_seconds, "is out of range"): ("0", "0s", "367d", "9" * 400),
    (parse_size, "is no size: write it like 4096"): ("", "big", "0", "-1", "0.1", "5X", "9" * 400),
    (parse_ports, "is no range of ports: write it like 5100-5200"): (
        *("", "5100", "5100-", "-5200", "a-b", "1-2-3", "5100:5200", "²-³", "1-" + "9" * 5000),
    ),
    (parse_ports, "is no range of ports: it runs upwards between 1 and 65535"): ("5200-5100", "0-10", "1-65536"),
}


@pytest.mark.parametrize(
    ("parse", "text", "complaint"),
    [
        pytest.param(parse, text, complaint, id=f"{parse.__name__}-{text[:20]}")
        for (parse, complaint), texts in WRONG.items()
        for text in texts
    ],
)
def test_what_cannot_be_read_is_refused_with_the_text_and_what_is_allowed(
    parse: Any, text: str, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint) as refused:
        parse(text)
    assert repr(text) in str(refused.value)


@given(text=st.text() | st.text("0123456789.kKmMgGtTbitsBdhin/- ", max_size=12))
def test_any_text_is_a_value_or_a_value_error_that_names_it(text: str) -> None:
    for parse in (parse_rate, parse_seconds, parse_size, parse_ports):
        complaint = None
        try:
            parse(text)
        except ValueError as refused:
            complaint = str(refused)
        assert complaint is None or repr(text) in complaint


# -- files


S2CS = """
insecure = true
[[gateways]]
name = "dtn1"
address = "127.0.0.1:5001"
"""
CONTROLLER = """
[controller]
certificate = "c.pem"
key = "c.key"
authorities = ["ca.pem"]
"""


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "settings.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problem(folder: Path, text: str | bytes, kind: Any = S2DSConfig) -> str:
    path = written(folder, text)
    with pytest.raises(ConfigProblem) as refused:
        load(path, kind)
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_a_file_says_only_what_differs_from_the_defaults(tmp_path: Path) -> None:
    config = load(written(tmp_path, 'insecure = true\nports = "6000-6001"\n[lan]\nbind = "10.0.0.1"'), S2DSConfig)
    assert config == S2DSConfig(insecure=True, ports="6000-6001", lan=type(S2DSConfig().lan)(bind="10.0.0.1"))
    assert config.app_networks == ["127.0.0.0/8", "::1/128"], "nothing but loopback may be reached unless it is said"
    assert config.wan_networks == config.app_networks


def test_a_whole_s2cs_is_read(tmp_path: Path) -> None:
    text = (
        'certificate = "s.pem"\nkey = "s.key"\nauthorities = ["ca.pem"]\n' + S2CS.replace("true", "false") + CONTROLLER
    )
    config = load(written(tmp_path, text), S2CSConfig)
    assert [gateway.name for gateway in config.gateways] == ["dtn1"]
    assert config.controller is not None
    assert config.controller.key == "c.key"
    assert not config.insecure


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.toml"
    with pytest.raises(ConfigProblem, match="cannot be read: No such file"):
        load(path, S2UCConfig)
    with pytest.raises(ConfigProblem, match="cannot be read: Is a directory"):
        load(tmp_path, S2UCConfig)


@pytest.mark.parametrize("text", ["listen", "[", 'a = "', b"\xff\xfe", 'listen = "a:1"\nlisten = "a:1"', "\x00"])
def test_what_is_not_toml_is_named(tmp_path: Path, text: str | bytes) -> None:
    assert problem(tmp_path, text).startswith("is not TOML: ")


@pytest.mark.parametrize(
    ("kind", "text", "start", "allowed"),
    [
        (S2DSConfig, "prots = 1", "prots: no such key; allowed are ", ["app_networks", "listen", "ports", "wan"]),
        (S2DSConfig, "[lan]\nbnid = 1", "lan.bnid: no such key; allowed are ", ["advertise", "bind"]),
        (S2CSConfig, S2CS + "port = 1", "gateways[0].port: no such key; allowed are ", ["address", "name"]),
        (S2CSConfig, S2CS + CONTROLLER + "ca = 1", "controller.ca: no such key; allowed are ", ["authorities", "key"]),
        (S2UCConfig, "cert = 1", "cert: no such key; allowed are ", ["authorities", "certificate", "insecure", "key"]),
    ],
)
def test_an_unknown_key_is_named_with_those_that_are_allowed_there(
    tmp_path: Path, kind: Any, text: str, start: str, allowed: list[str]
) -> None:
    said = problem(tmp_path, text, kind)
    assert said.startswith(start)
    names = said.removeprefix(start).split(", ")
    assert names == sorted(names)
    assert set(allowed) <= set(names)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("insecure = true", "gateways"),
        (S2CS.replace('name = "dtn1"', ""), "gateways[0].name"),
        (S2CS.replace('address = "127.0.0.1:5001"', ""), "gateways[0].address"),
        (S2CS + CONTROLLER.replace('key = "c.key"', ""), "controller.key"),
    ],
)
def test_a_missing_key_is_named(tmp_path: Path, text: str, key: str) -> None:
    assert problem(tmp_path, text, S2CSConfig) == f"{key}: is missing and has no default"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("listen = 5001", "listen"),
        ("insecure = 1", "insecure"),
        ('insecure = "yes"', "insecure"),
        ('app_networks = "10.0.0.0/8"', "app_networks"),
        ("app_networks = [10]", "app_networks[0]"),
        ('lan = "eth0"', "lan"),
        ("[lan]\nbind = 1", "lan.bind"),
        ("capacity = 10", "capacity"),
        ("[limits]\nfailures = 0", "limits.failures"),
        ('[limits]\nunproven = "many"', "limits.unproven"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_the_one_that_is_expected(tmp_path: Path, text: str, key: str) -> None:
    said = problem(tmp_path, text)
    assert said.startswith(f"{key}: Expected `")


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ('listen = "5001"', "listen", "'5001' has no port"),
        ('listen = "localhost:0"', "listen", "'localhost:0' has the port '0'"),
        ('listen = "::1:5001"', "listen", "without brackets"),
        ('ports = "5100"', "ports", "'5100' is no range of ports"),
        ('capacity = "lots"', "capacity", "'lots' is no rate"),
        ('wan_timeout = "soon"', "wan_timeout", "'soon' is no time"),
        ('app_networks = ["lab"]', "app_networks", "'lab' is no network"),
        ('wan_networks = ["::1/128", "10.0.0.0/40"]', "wan_networks", "'10.0.0.0/40' is no network"),
        ('[lan]\nbind = "eth0"', "lan.bind", "'eth0' is no numeric address"),
        ('[wan]\nbind = "0.0.0.0"', "wan.advertise", "which address do others reach?"),
        ('[wan]\nbind = "::"', "wan.advertise", "which address do others reach?"),
        ('[wan]\nadvertise = "a host"', "wan.advertise", "'a host'"),
        ('[limits]\ncontroller_networks = ["here"]', "limits.controller_networks", "'here' is no network"),
        ('[limits]\nlongest_refusal = "never"', "limits.longest_refusal", "'never' is no time"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_key(tmp_path: Path, text: str, key: str, value: str) -> None:
    said = problem(tmp_path, "insecure = true\n" + text)
    assert said.startswith(f"{key}: ")
    assert value in said


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (S2CS.replace(":5001", ""), "gateways: dtn1: address: '127.0.0.1' has no port"),
        (S2CS + S2CS.replace("insecure = true", ""), "gateways: two of them have one name, among dtn1, dtn1"),
        ("insecure = true\ngateways = []", "gateways: name at least one"),
        ('expires = "never"' + S2CS, "expires: 'never' is no time"),
        ('longest_expires = "10y"' + S2CS, "longest_expires: '10y' is no time"),
        ('hello_timeout = "0s"' + S2CS, "hello_timeout: '0s' is out of range"),
        ('listen = "[::1]"' + S2CS, "listen: '[::1]' has"),
    ],
)
def test_what_an_s2cs_cannot_use_is_named_with_its_key(tmp_path: Path, text: str, complaint: str) -> None:
    assert problem(tmp_path, text, S2CSConfig).startswith(complaint)


CERTIFIED = {
    S2DSConfig: {
        "certificate": 'certificate = "d.pem"',
        "key": 'key = "d.key"',
        "authorities": 'authorities = ["ca.pem"]',
        "controller": 'controller = "scistream:controller:lab"',
    },
    S2CSConfig: {
        "gateways": 'gateways = [{ name = "dtn1", address = "127.0.0.1:5001" }]',
        "certificate": 'certificate = "s.pem"',
        "key": 'key = "s.key"',
        "authorities": 'authorities = ["ca.pem"]',
        "controller": CONTROLLER,
    },
}


@pytest.mark.parametrize(
    ("kind", "key"), [(kind, key) for kind, keys in CERTIFIED.items() for key in keys if key != "gateways"]
)
def test_a_server_needs_certificates_unless_it_is_told_to_be_insecure(tmp_path: Path, kind: Any, key: str) -> None:
    everything = CERTIFIED[kind]
    load(written(tmp_path, "\n".join(everything.values())), kind)
    without = "\n".join(text for name, text in everything.items() if name != key)
    said = problem(tmp_path, without, kind)
    assert said.startswith(f"{key}: is needed")
    assert "scistream pki" in said
    load(written(tmp_path, "insecure = true\n" + without), kind)


def test_a_user_s_file_may_be_empty(tmp_path: Path) -> None:
    assert load(written(tmp_path, ""), S2UCConfig) == S2UCConfig()


@pytest.mark.parametrize(
    ("bind", "advertise", "told"), [("10.0.0.1", "", "10.0.0.1"), ("0.0.0.0", "dtn1.lab.example", "dtn1.lab.example")]
)
def test_others_are_told_the_advertised_address_or_the_bound_one(
    tmp_path: Path, bind: str, advertise: str, told: str
) -> None:
    text = f'insecure = true\n[wan]\nbind = "{bind}"\nadvertise = "{advertise}"'
    assert load(written(tmp_path, text), S2DSConfig).wan.told == told


def test_relative_paths_start_at_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert beside(tmp_path / "s2cs.toml", "keys/s.pem") == tmp_path / "keys/s.pem"
    assert beside(tmp_path / "s2cs.toml", "/etc/s.pem") == Path("/etc/s.pem")
    assert beside(tmp_path / "s2cs.toml", "~/s.pem") == tmp_path / "home" / "s.pem"
    monkeypatch.chdir(tmp_path)
    assert beside(Path("s2cs.toml"), "s.pem") == tmp_path / "s.pem"


def test_networks_of_a_setting_are_read() -> None:
    assert networks(["10.0.0.0/8", "::1/128"]) == (ip_network("10.0.0.0/8"), ip_network("::1/128"))
