"""Configuration files and the values in them."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scistream.config import ConfigError, expanded, load, user_folder
from scistream.s2cs.settings import S2CSConfig
from scistream.s2ds.settings import WAN_CIPHERS, S2DSConfig
from scistream.s2uc.settings import S2UCConfig
from scistream.shared_settings import networks, parse_chosen_ports, parse_ports, resolve_path
from scistream.tls.stream_channels import CIPHERS
from scistream.units import parse_rate, parse_seconds, parse_size

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


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("5075", [(5075, 5075)]),
        (" 5075 ,5100 - 5200", [(5075, 5075), (5100, 5200)]),
        ("1024-65535", [(1024, 65535)]),
        ("none", []),
    ],
)
def test_ports_that_may_be_chosen_are_a_list_of_ports_and_ranges(text: str, ranges: list[tuple[int, int]]) -> None:
    assert parse_chosen_ports(text) == ranges


def test_without_chosen_ports_those_of_the_range_may_be_chosen() -> None:
    assert S2DSConfig(ports="80-90").chosen_ranges == [(80, 90)]
    assert S2DSConfig(ports="80-90", chosen_ports="5075").chosen_ranges == [(5075, 5075)]
    assert S2DSConfig(chosen_ports="none").chosen_ranges == []


WRONG: dict[tuple[Any, str], tuple[str, ...]] = {
    (parse_rate, "is not a rate: write it like 10Gbit"): ("", "fast", "-1", "1e3", "1Xbit", "1 2", "1Gbyte"),
    (parse_rate, "is out of range"): ("0", "0Gbit", "10.1Tbit", "9" * 400),
    (parse_seconds, "is not a time: write it like 30s"): ("", "soon", "-5s", "5 weeks", "1h30m", "infd"),
    (parse_seconds, "is out of range"): ("0", "0s", "367d", "9" * 400),
    (parse_size, "is not a size: write it like 4096"): ("", "big", "0", "-1", "0.1", "5X", "9" * 400),
    (parse_ports, "is not a range of ports: write it like 5100-5200"): (
        *("", "5100", "5100-", "-5200", "a-b", "1-2-3", "5100:5200", "²-³", "1-" + "9" * 5000),
    ),
    (parse_chosen_ports, "is not a list of ports: write ports from 1 to 65535 and ranges with the lower port first"): (
        *("", "any", "5075,", "5075;5076", "5076-5075", "65536", "1-2-3", "None", "²"),
    ),
    (parse_chosen_ports, "are reserved for system services"): ("80", "5075, 1000-2000", "1023"),
    (parse_chosen_ports, "65 ranges of ports: at most 64 are allowed"): (", ".join(map(str, range(5000, 5065))),),
    (parse_ports, "is not a range of ports: use two ports from 1 to 65535, the lower one first"): (
        "5200-5100",
        "0-10",
        "1-65536",
    ),
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
    for parse in (parse_rate, parse_seconds, parse_size, parse_ports, parse_chosen_ports):
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


def problems(folder: Path, text: str | bytes, kind: Any = S2DSConfig) -> list[str]:
    path = written(folder, text)
    with pytest.raises(ConfigError) as refused:
        load(path, kind)
    lines = str(refused.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines), lines
    return [line.removeprefix(f"{path}: ") for line in lines]


def problem(folder: Path, text: str | bytes, kind: Any = S2DSConfig) -> str:
    (line,) = problems(folder, text, kind)
    return line


def test_a_file_says_only_what_differs_from_the_defaults(tmp_path: Path) -> None:
    config = load(written(tmp_path, 'insecure = true\nports = "6000-6001"\n[lan]\nbind = "127.0.0.2"'), S2DSConfig)
    assert config == S2DSConfig(insecure=True, ports="6000-6001", lan=type(S2DSConfig().lan)(bind="127.0.0.2"))
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
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(path, S2UCConfig)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path, S2UCConfig)


@pytest.mark.parametrize("text", ["listen", "[", 'a = "', b"\xff\xfe", 'listen = "a:1"\nlisten = "a:1"', "\x00"])
def test_what_is_not_toml_is_named(tmp_path: Path, text: str | bytes) -> None:
    assert problem(tmp_path, text).startswith("is not TOML: ")


@pytest.mark.parametrize(
    ("kind", "text", "start", "allowed"),
    [
        (
            S2DSConfig,
            "insecure = true\nprots = 1",
            "prots: unknown key; the keys here are ",
            ["app_networks", "listen", "ports", "wan"],
        ),
        (
            S2DSConfig,
            "insecure = true\n[lan]\nbnid = 1",
            "lan.bnid: unknown key; the keys here are ",
            ["advertise", "bind"],
        ),
        (S2CSConfig, S2CS + "port = 1", "gateways[0].port: unknown key; the keys here are ", ["address", "name"]),
        (
            S2CSConfig,
            S2CS + CONTROLLER + "ca = 1",
            "controller.ca: unknown key; the keys here are ",
            ["authorities", "key"],
        ),
        (
            S2UCConfig,
            "cert = 1",
            "cert: unknown key; the keys here are ",
            ["authorities", "certificate", "insecure", "key"],
        ),
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
    assert problem(tmp_path, text, S2CSConfig) == f"{key}: is missing, but required"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("listen = 5001", 'listen: 5001 is not valid here: write text in quotes, such as "127.0.0.1:5001"'),
        ("insecure = 1", "insecure: 1 is not valid here: write true or false, such as false"),
        ('insecure = "yes"', 'insecure: "yes" is not valid here: write true or false, such as false'),
        (
            'app_networks = "10.0.0.0/8"',
            'app_networks: "10.0.0.0/8" is not valid here: write a list in brackets, of text in quotes, such as '
            '["127.0.0.0/8","::1/128"]',
        ),
        ("app_networks = [10]", "app_networks[0]: 10 is not valid here: write text in quotes"),
        (
            'lan = "eth0"',
            'lan: "eth0" is not valid here: write a section with advertise, bind, congestion',
        ),
        ("[lan]\nbind = 1", 'lan.bind: 1 is not valid here: write text in quotes, such as "127.0.0.1"'),
        ("capacity = 10", 'capacity: 10 is not valid here: write text in quotes, such as "10Gbit"'),
        ("capacity = 1e4", 'capacity: 10000.0 is not valid here: write text in quotes, such as "10Gbit"'),
        ("capacity = 1979-05-27", 'capacity: "1979-05-27" is not valid here: write text in quotes'),
        (
            "elements = true",
            'elements: true is not valid here: write a whole number or text in quotes, such as "auto"',
        ),
        (
            "[limits]\nfailures = 0",
            "limits.failures: 0 is not valid here: write a whole number from 1, such as 20",
        ),
        (
            '[limits]\nunproven = "many"',
            'limits.unproven: "many" is not valid here: write a whole number from 1, such as 512',
        ),
        ("[limits]\nlinks = true", "limits.links: true is not valid here: write a whole number from 1"),
        (f"listen = [{'1, ' * 100}]", "listen: [1,1,1,"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_the_one_that_is_expected(tmp_path: Path, text: str, said: str) -> None:
    line = problem(tmp_path, text if text.startswith("insecure") else f"insecure = true\n{text}")
    assert line.startswith(said)
    assert len(line) < 200


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ('listen = "5001"', "listen", "'5001' has no port"),
        ('listen = "localhost:0"', "listen", "'localhost:0' has the invalid port '0'"),
        ('listen = "::1:5001"', "listen", "without brackets"),
        ('ports = "5100"', "ports", "'5100' is not a range of ports"),
        ('chosen_ports = "5075 5076"', "chosen_ports", "'5075 5076' is not a list of ports"),
        ('capacity = "lots"', "capacity", "'lots' is not a rate"),
        ('wan_timeout = "soon"', "wan_timeout", "'soon' is not a time"),
        ('app_networks = ["lab"]', "app_networks", "'lab' is not a network"),
        ('wan_networks = ["::1/128", "10.0.0.0/40"]', "wan_networks", "'10.0.0.0/40' is not a network"),
        ('[lan]\nbind = "eth0"', "lan.bind", "'eth0' is not a numeric address"),
        ('[wan]\nbind = "0.0.0.0"', "wan.advertise", "write the address at which others reach this gateway"),
        ('[wan]\nbind = "::"', "wan.advertise", "write the address at which others reach this gateway"),
        ('[wan]\nadvertise = "a host"', "wan.advertise", "'a host'"),
        ('[limits]\ncontroller_networks = ["here"]', "limits.controller_networks", "'here' is not a network"),
        ('wan_cipher = "des"', "wan_cipher", "'des' is not a cipher that a gateway can prefer: write aes or chacha20"),
        ('[limits]\nunread = "much"', "limits.unread", "'much' is not a size"),
        ('[limits]\nlongest_refusal = "never"', "limits.longest_refusal", "'never' is not a time"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_key(tmp_path: Path, text: str, key: str, value: str) -> None:
    said = problem(tmp_path, "insecure = true\n" + text)
    assert said.startswith(f"{key}: ")
    assert value in said


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (S2CS.replace(":5001", ""), "gateways[0].address: '127.0.0.1' has no port"),
        (
            S2CS + S2CS.replace("insecure = true", "").replace("5001", "5002"),
            "gateways: 2 gateways have the name 'dtn1'",
        ),
        ("insecure = true\ngateways = []", "gateways: add at least one section"),
        ('expires = "never"' + S2CS, "expires: 'never' is not a time"),
        ('longest_expires = "10y"' + S2CS, "longest_expires: '10y' is not a time"),
        ('hello_timeout = "0s"' + S2CS, "hello_timeout: '0s' is out of range"),
        ('release_broken_after = "soon"' + S2CS, "release_broken_after: 'soon' is not a time"),
        ('listen = "[::1]"' + S2CS, "listen: '[::1]' has"),
    ],
)
def test_what_an_s2cs_cannot_use_is_named_with_its_key(tmp_path: Path, text: str, complaint: str) -> None:
    assert problem(tmp_path, text, S2CSConfig).startswith(complaint)


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    text = """
    colour = "blue"
    listen = "5001"
    capacity = 10
    ports = "5200-5100"
    certificate = "~nosuchuser/d.pem"
    key = "d.key"
    authorities = "ca.pem"
    app_networks = ["lab", "10.0.0.0/8", "10.0.0.0/40"]
    [wan]
    bind = "0.0.0.0"
    [limits]
    failures = 0
    longest_refusal = "never"
    """
    lines = problems(tmp_path, text)
    assert [line.partition(":")[0] for line in lines[:4]] == ["colour", "authorities", "capacity", "limits.failures"]
    assert [line.partition(":")[0] for line in lines[4:]] == [
        *("listen", "limits.longest_refusal", "ports", "wan.advertise"),
        *("app_networks", "app_networks", "certificate", "controller"),
    ], "a key that has a problem already has no second one"


def test_a_very_long_list_of_problems_is_cut(tmp_path: Path) -> None:
    lines = problems(tmp_path, "".join(f"key{number} = 1\n" for number in range(1000)) + "insecure = true")
    assert len(lines) == 51
    assert lines[-1] == "and 950 more"


FAULTS: dict[str, list[str]] = {
    "listen": ["5001", '"nowhere"', "[]", "1.5"],
    "ports": ['"9-1"', "true", "{}"],
    "capacity": ['"fast"', "0"],
    "wan_timeout": ['"soon"', "60"],
    "elements": ['"many"', "-1", "1.0"],
    "app_networks": ['"::/0"', '["lab"]', "[1]"],
    "lan": ['{ bind = "eth0" }', "{ bind = 1 }", "1"],
    "wan": ['{ bind = "::" }', '{ advertise = "a b" }'],
    "limits": ["{ links = 0 }", '{ longest_refusal = "ever" }', '"none"'],
    "key": ['"~nosuchuser/key"', "1"],
    "no_such_key": ["1", '"x"'],
}


@given(
    faults=st.dictionaries(st.sampled_from(sorted(FAULTS)), st.integers(0, 10)).map(
        lambda chosen: {key: FAULTS[key][number % len(FAULTS[key])] for key, number in chosen.items()}
    )
)
def test_each_of_several_faults_has_one_line_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, faults: dict[str, str]
) -> None:
    folder = tmp_path_factory.mktemp("faults")
    sound = {"certificate": '"d.pem"', "key": '"d.key"', "authorities": '["ca.pem"]', "controller": '"a:b"'}
    text = "".join(f"{key} = {value}\n" for key, value in (sound | faults).items())
    lines = problems(folder, text) if faults else []
    assert sorted(re.match(r"\w+", line)[0] for line in lines) == sorted(faults)  # type: ignore[index]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path, bom: bytes) -> None:
    config = load(
        written(tmp_path, bom + b'# an editor wrote this\r\ninsecure = true\r\nports = "1-2"\r\n'), S2DSConfig
    )
    assert config == S2DSConfig(insecure=True, ports="1-2")
    assert problem(tmp_path, bom + b"insecure = true\nport = 1").startswith("port: unknown key")


def test_a_file_in_utf_16_is_told_apart(tmp_path: Path) -> None:
    assert "not UTF-8" in problem(tmp_path, "insecure = true".encode("utf-16"))


@pytest.mark.parametrize("text", [f"listen = {'[' * 100_000}", f"listen = {'9' * 5000}"])
def test_what_a_parser_cannot_bear_is_no_traceback(tmp_path: Path, text: str) -> None:
    assert problem(tmp_path, f"insecure = true\n{text}").startswith(("is not TOML: ", "listen: "))


@pytest.mark.parametrize(
    ("kind", "key", "sound"),
    [
        *((S2CSConfig, key, S2CS) for key in ("state", "audit", "policy")),
        *((S2UCConfig, key, "") for key in ("certificate", "key")),
    ],
)
@pytest.mark.parametrize("text", ["~nosuchuser/x", "~/x", "a\\u0000b"])
def test_a_path_that_cannot_be_expanded_is_named_with_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, key: str, sound: str, text: str
) -> None:
    monkeypatch.setenv("HOME", "nowhere")
    said = problem(tmp_path, f'{key} = "{text}"\n{sound}', kind)
    assert said.startswith(f"{key}: ")
    assert "is not a file name" in said or "cannot be expanded" in said


@pytest.mark.parametrize("key", ["authorities", "crl"])
def test_a_path_in_a_list_that_cannot_be_expanded_is_named_with_its_setting(tmp_path: Path, key: str) -> None:
    assert problem(tmp_path, f'{key} = ["a.pem", "~nosuchuser/x"]', S2UCConfig).startswith(
        f"{key}: '~nosuchuser/x' cannot be expanded: there is no user 'nosuchuser' on this machine"
    )


@pytest.mark.parametrize("home", [None, "", "relative", "/home/ada"])
def test_a_home_folder_stands_for_the_tilde_if_it_is_known(monkeypatch: pytest.MonkeyPatch, home: str | None) -> None:
    if home is None:
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr("os.getuid", lambda: 3_999_999_999)  # of which no system has a name
    else:
        monkeypatch.setenv("HOME", home)
    if home == "/home/ada":
        assert expanded("~/x") == Path("/home/ada/x")
        assert expanded("~") == Path("/home/ada")
        return
    with pytest.raises(ValueError, match="HOME is"):
        expanded("~/x")


@pytest.mark.parametrize("variable", ["XDG_STATE_HOME", "XDG_CONFIG_HOME"])
def test_the_folder_of_a_user_s_files_is_named_by_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(variable, raising=False)
    assert user_folder(variable, "~/.local") == tmp_path / ".local"
    monkeypatch.setenv(variable, "")
    assert user_folder(variable, "~/.local") == tmp_path / ".local"
    monkeypatch.setenv(variable, "/srv/ada")
    assert user_folder(variable, "~/.local") == Path("/srv/ada")
    monkeypatch.setenv(variable, "~/state")
    with pytest.raises(ConfigError, match=rf"{variable}: '~/state' is not an absolute path"):
        user_folder(variable, "~/.local")
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv(variable)
    with pytest.raises(ConfigError, match=f"{variable}: is not set, and its default '~/.local' cannot be expanded"):
        user_folder(variable, "~/.local")


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
    assert said.startswith(f"{key}: is required")
    assert "scistream pki" in said
    (superfluous,) = problems(tmp_path, "insecure = true\n" + without, kind)
    assert superfluous.startswith("insecure: true turns all certificates off")
    named = superfluous.partition("these settings need them: ")[2].partition(";")[0].split(", ")
    assert set(named) == set(everything) - {key, "gateways"}
    load(written(tmp_path, "insecure = true\n" + everything.get("gateways", "")), kind)


CONTRADICTIONS: list[tuple[Any, str, str, str]] = [
    (S2DSConfig, 'lan.bind = "::"\nlan.advertise = "127.0.0.1"', "lan.advertise", "is an IPv4 address"),
    (S2DSConfig, 'wan.bind = "0.0.0.0"\nwan.advertise = "2001:db8::1"', "wan.advertise", "is an IPv6 address"),
    (S2DSConfig, 'wan.bind = "0.0.0.0"\nwan.advertise = "0.0.0.0"', "wan.advertise", "not the address of a machine"),
    (S2DSConfig, 'wan.bind = "224.0.0.1"', "wan.bind", "multicast address"),
    (S2DSConfig, 'lan.bind = "192.0.2.1"\nlan.advertise = "127.0.0.1"', "lan.advertise", "is a loopback address"),
    (S2DSConfig, 'lan.bind = "192.0.2.1"', "app_networks", "only loopback networks"),
    (S2DSConfig, 'wan.bind = "0.0.0.0"\nwan.advertise = "192.0.2.1"', "wan_networks", "only loopback networks"),
    (S2DSConfig, 'app_networks = ["127.0.0.0/8"]\nlan.bind = "::1"', "app_networks", "no IPv6 network"),
    (S2DSConfig, 'wan_networks = ["::/0"]', "wan_networks", "no IPv4 network"),
    (S2DSConfig, "wan_networks = []", "wan_networks", "is empty"),
    (S2DSConfig, 'listen = "127.0.0.1:5150"', "ports", "has port 5150"),
    (S2DSConfig, 'listen = "0.0.0.0:5200"', "ports", "has port 5200"),
    (S2DSConfig, 'chosen_ports = "4000, 5000-5001"', "chosen_ports", "has port 5001"),
    (S2DSConfig, 'controller = "s2cs"', "controller", "like scistream:controller:s2cs"),
    (S2DSConfig, 'controller = "scistream:user:ada"', "controller", "is a user"),
    (S2DSConfig, "limits.unproven = 5000", "limits.unproven", "more than links, 4096"),
    (S2CSConfig, "limits.links_per_address = 5000", "limits.links_per_address", "more than links, 4096"),
    (S2CSConfig, "limits.links_per_identity = 5000", "limits.links_per_identity", "more than links, 4096"),
    (S2CSConfig, "limits.unproven_per_address = 513", "limits.unproven_per_address", "links_per_address, 512"),
    (S2CSConfig, 'expires = "8d"', "expires", "longer than longest_expires, '7d'"),
    (S2CSConfig, 'expires = "2h"\nlongest_expires = "1h"', "expires", "longer than longest_expires, '1h'"),
    (S2CSConfig, 'listen = "127.0.0.1:5001"', "gateways[0].address", "is also the address of listen"),
]


@pytest.mark.parametrize(("kind", "text", "key", "why"), CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, kind: Any, text: str, key: str, why: str
) -> None:
    sound = {**CERTIFIED[kind], "insecure": "insecure = false"}
    if kind is S2CSConfig:
        sound["controller"] = 'controller = { certificate = "c.pem", key = "c.key", authorities = ["ca.pem"] }'
    others = "\n".join(line for name, line in sound.items() if not text.startswith(f"{name} "))
    load(written(tmp_path, "\n".join(sound.values())), kind)
    lines = problems(tmp_path, f"{others}\n{text}", kind)
    assert any(line.startswith(f"{key}: ") and why in line for line in lines), lines


@pytest.mark.parametrize(
    "other",
    ["127.0.0.1:5001", "localhost:5001", "LOCALHOST.:5001", "[::ffff:127.0.0.1]:5001", "[::ffff:7f00:1]:5001"],
)
def test_one_gateway_under_two_names_is_refused_however_its_address_is_written(tmp_path: Path, other: str) -> None:
    text = f'{S2CS}[[gateways]]\nname = "dtn2"\naddress = "{other}"\n'
    assert problem(tmp_path, text, S2CSConfig).startswith(
        f"gateways[1].address: {other!r} is also the address of gateways[0].address"
    )
    load(written(tmp_path, text.replace(':5001"\n[[', ':5002"\n[[')), S2CSConfig)


def test_a_lower_limit_is_taken_whatever_the_defaults_of_its_parts_are(tmp_path: Path) -> None:
    assert load(written(tmp_path, "insecure = true\n[limits]\nlinks = 10"), S2DSConfig).limits.links == 10
    assert load(written(tmp_path, 'longest_expires = "1h"\n' + S2CS), S2CSConfig).longest_expires == "1h"


def test_a_user_s_file_may_be_empty(tmp_path: Path) -> None:
    assert load(written(tmp_path, ""), S2UCConfig) == S2UCConfig()


@pytest.mark.parametrize(
    ("bind", "advertise", "told"), [("10.0.0.1", "", "10.0.0.1"), ("0.0.0.0", "dtn1.lab.example", "dtn1.lab.example")]
)
def test_others_are_told_the_advertised_address_or_the_bound_one(
    tmp_path: Path, bind: str, advertise: str, told: str
) -> None:
    text = f'insecure = true\nwan_networks = ["10.0.0.0/8"]\n[wan]\nbind = "{bind}"\nadvertise = "{advertise}"'
    assert load(written(tmp_path, text), S2DSConfig).wan.advertised == told


def test_relative_paths_start_at_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert resolve_path(tmp_path / "s2cs.toml", "keys/s.pem") == tmp_path / "keys/s.pem"
    assert resolve_path(tmp_path / "s2cs.toml", "/etc/s.pem") == Path("/etc/s.pem")
    assert resolve_path(tmp_path / "s2cs.toml", "~/s.pem") == tmp_path / "home" / "s.pem"
    monkeypatch.chdir(tmp_path)
    assert resolve_path(Path("s2cs.toml"), "s.pem") == tmp_path / "s.pem"


def test_networks_of_a_setting_are_read() -> None:
    assert networks(["10.0.0.0/8", "::1/128"]) == (ip_network("10.0.0.0/8"), ip_network("::1/128"))


def test_each_cipher_that_a_gateway_can_prefer_is_known_and_prefers_itself() -> None:
    assert set(CIPHERS) == set(WAN_CIPHERS)
    assert {name: ciphers.split(b":")[0].split(b"_")[1] for name, ciphers in CIPHERS.items()} == {
        "aes": b"AES",
        "chacha20": b"CHACHA20",
    }
    assert len({frozenset(ciphers.split(b":")) for ciphers in CIPHERS.values()}) == 1
