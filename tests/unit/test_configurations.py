"""No configuration that is accepted at the start fails later: a server refuses it, saying why, or takes a stream."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomli_w
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.logger import globalLogPublisher

from scistream.config import ConfigError, load, raise_if_any
from scistream.links.tls_links import PLAIN_IDENTITY, dialer
from scistream.pki.authority import init_authority, issue
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError
from scistream.protocol.join_string import hash_app_key
from scistream.protocol.messages import UNSENT, Command, Hello, Rel, Req, Resp, Role
from scistream.s2cs import start as s2cs_start
from scistream.s2cs.service import ControlServer
from scistream.s2cs.settings import S2CSConfig, ServerLimits
from scistream.s2ds import start as s2ds_start
from scistream.s2ds.service import DataServer
from scistream.s2ds.settings import S2DSConfig
from scistream.s2uc.client import Client
from scistream.s2uc.settings import S2UCConfig
from scistream.setup_problems import SETUP_PROBLEMS
from scistream.shared_settings import parse_ports, resolve_path
from scistream.tls.files import CertificateError
from scistream.units import parse_rate
from support.hostile_parties import FAR, KEY, PROD, SCRIPTS, SETTLE, UID, DataServerParty, _listener, a_gateway
from support.memory_facilities import CONS_S2CS, PROD_S2CS, World
from support.memory_network import HOST, MemoryNetwork, MemoryPorts

BINDS = ["127.0.0.1", "127.0.0.2", "::1", "0.0.0.0", "::", "192.0.2.1"]
NETWORKS = [["127.0.0.0/8", "::1/128"], ["127.0.0.0/8"], ["::1/128"], ["192.0.2.0/24"], []]
LEGS = st.fixed_dictionaries(
    {}, optional={"bind": st.sampled_from(BINDS), "advertise": st.sampled_from(["", "127.0.0.1", "::1", "gw.example"])}
)
CONFIGURATIONS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"insecure": st.just(True), "elements": st.just(0)},
    optional={
        "listen": st.sampled_from(["127.0.0.1:5001", "127.0.0.2:50150", "[::1]:5001", "0.0.0.0:5001"]),
        "ports": st.sampled_from(["50100-50200", "50150-50150", "50150-50151", "1-1"]),
        "capacity": st.sampled_from(["1Gbit", "0.001", "1kbit"]),
        "wan_timeout": st.sampled_from(["1s", "60s", "0.001s"]),
        "lan": LEGS,
        "wan": LEGS,
        "app_networks": st.sampled_from(NETWORKS),
        "wan_networks": st.sampled_from(NETWORKS),
        "limits": st.dictionaries(
            st.sampled_from(["links", "links_per_address", "unproven", "unproven_per_address", "half_open"]),
            st.sampled_from([1, 2, 5000]),
        ),
    },
)


def assert_names_settings(
    refused: Exception, file: Path, kind: type[msgspec.Struct], policy: Path | None = None
) -> None:
    """Hold a refusal to it that each of its lines begins with a setting, or with the rule of the policy and its key."""
    lines = [line.removeprefix(f"{file}: ") for line in str(refused).splitlines()]
    assert lines
    for line in lines:
        named = re.match(r"(\w+)[\w.\[\]]*: ", line)
        if named is None or named[1] not in kind.__struct_fields__:
            assert policy is not None, line
            assert re.match(rf"{re.escape(str(policy))}: rule \d+.*: ", line), line


class Configured(DataServerParty):
    """An S2DS with a configuration of its own."""

    config: S2DSConfig
    file: Path

    def start(self, folder: Path) -> None:
        self.server = DataServer(self.network, self.config, self.file)
        self.server.ports = MemoryPorts(*parse_ports(self.config.ports))
        self.server.startService()
        self.network.listeners[FAR] = _listener(self.server, self.network, PLAIN_IDENTITY)
        self.network.connectTCP("127.0.0.1", FAR, self._far[0])

    def stop(self) -> None:
        self.server.stopService()
        self.network.run(SETTLE)

    def check_state(self) -> None:
        """Nothing more than of every party."""

    def reserve(self, role: Role) -> None:
        """Request a stream of one channel, as small as the gateway."""
        request = json.loads(SCRIPTS[DataServerParty][0][0])
        rate = parse_rate(self.config.capacity) / 2
        self.say(json.dumps({**request, "role": role, "channels": [0], "rate": rate}).encode())
        (answer,) = self.ends()[0].messages[-1:]
        assert isinstance(answer, Resp), answer
        assert answer.state == "Reserved"
        assert len(answer.listeners or []) == 1
        self.check()


@settings(max_examples=150)
@given(CONFIGURATIONS)
def test_a_gateway_refuses_a_configuration_at_its_start_or_takes_a_stream_with_it(
    configuration: dict[str, Any],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "s2ds.toml")
        file.write_text(tomli_w.dumps(configuration))
        Configured.file = file
        try:
            Configured.config = load(file, S2DSConfig)
            raise_if_any(file, list(s2ds_start.machine_problems(Configured.config)))
            party = Configured(Path(folder))
        except SETUP_PROBLEMS as refused:
            assert_names_settings(refused, file, S2DSConfig)
            return
        try:
            party.reserve(PROD)
        finally:
            party.close()


# -- S2CS


GATEWAY, NOBODY = f"{HOST}:5001", f"{HOST}:5009"
TEXTS = ["", " ", "dtn1", "dtn2", "a\nb", "\0"]
GATEWAYS = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(TEXTS), "address": st.sampled_from([GATEWAY, NOBODY, f"{HOST}:5000", "10.0.0.1:5001"])}
    ),
    max_size=3,
)
FILES = ["s2cs.sqlite", "new/deep/one", "", ".", "/", "s2cs.toml", "s2cs.toml/below", "text", "folder", "policy.toml",
         "s2cs.sqlite.lock", "s2cs.sqlite-wal", "/proc/none", "\0", "~nobody-has-this-name/x", "fifo"]  # fmt: skip
TIMES = ["0", "0.001s", "1s", "2h", "8d", "soon"]
RULES = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["beamline", "other", ""]),
            "issuer": st.sampled_from(["none", "none", "none", "sha256:" + "a" * 64, "missing.pem", ""]),
            "identities": st.sampled_from(
                [["insecure:loopback"], ["insecure:loopback", "insecure:loopback"], ["*@lab.example"], ["nobody"], []]
            ),
            "roles": st.sampled_from([["PROD", "CONS"], ["PROD", "CONS"], ["PROD"], ["CONS"], [], ["prod"]]),
        },
        optional={
            "rate": st.sampled_from(["0", "0.001", "10", "1Gbit", "unlimited"]),
            "total_rate": st.sampled_from(["0", "0.001", "10", "unlimited"]),
            "num_conn": st.sampled_from([0, 1, "0", "unlimited"]),
            "streams": st.sampled_from([0, 1, -1, "unlimited"]),
            "expires": st.sampled_from(TIMES),
            "bytes_per_day": st.sampled_from(["0", "1", "1T", "unlimited"]),
            "wan_security": st.sampled_from([["encrypt"], [], ["none"]]),
            "targets": st.sampled_from([["127.0.0.0/8"], ["127.0.0.1:7000"], ["192.0.2.0/24"], [], ["127.0.0.1:0"]]),
            "listen_ports": st.sampled_from(["none", "50010-50011", "80", ""]),
        },
    ),
    max_size=3,
)
LIMITS = st.dictionaries(
    st.sampled_from([field.name for field in msgspec.structs.fields(ServerLimits)]),
    st.sampled_from([0, 1, 2, 5000, "0.001s", "30s"]),
)


def usually(good: Any, others: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Generate `good` in two of three examples: for a stream, several such settings must all work."""
    return st.one_of(st.just(good), st.just(good), others)


CONTROL_CONFIGURATIONS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "insecure": st.just(True),
        "gateways": usually([{"name": "dtn1", "address": GATEWAY}], GATEWAYS),
    },
    optional={
        "listen": usually(f"{HOST}:5000", st.sampled_from([GATEWAY, "[::1]:5000", "0.0.0.0:5000", "192.0.2.1:1", "x"])),
        "state": usually("s2cs.sqlite", st.sampled_from(FILES)),
        "audit": usually("auto", st.sampled_from(["none", "journal", *FILES])),
        "certificate": usually("", st.just("text")),
        "crl": usually([], st.just(["text"])),
        "expires": usually("24h", st.sampled_from(TIMES)),
        "longest_expires": usually("7d", st.sampled_from(TIMES)),
        "hello_timeout": usually("1h", st.sampled_from(TIMES)),
        "release_broken_after": usually("", st.sampled_from(TIMES)),
        "policy": st.just("policy.toml"),
        "limits": usually({}, LIMITS),
    },
)


class Office:
    """An S2CS with a configuration of its own beside a gateway, and a user at its listener."""

    def __init__(self, network: MemoryNetwork, file: Path, config: S2CSConfig) -> None:
        self.network = network
        self.server = ControlServer(network, config, file, wall=network.seconds)
        self.gateway = a_gateway(network, file.parent)
        self._address = Address.parse(config.listen)
        self._crashes: list[str] = []
        globalLogPublisher.addObserver(self._note)

    def _note(self, event: dict[str, Any]) -> None:
        if "log_failure" in event:
            self._crashes.append(event["log_failure"].getTraceback())

    def start(self) -> None:
        self.server.startService()
        self._link = dialer(self.network, self._address, "the S2CS", None)
        self._link.startService()
        self.network.run(5.0)

    def say(self, command: Command) -> Resp | StreamError:
        """Return the outcome of a command; fail if there is none."""
        outcome: list[Any] = []
        self._link.ask(command, 60.0).addBoth(outcome.append)
        self.network.until(lambda: bool(outcome), within=70.0)
        return getattr(outcome[0], "value", outcome[0])

    def close(self) -> None:
        self._link.stopService()
        self.server.stopService()
        self.gateway.stopService()
        self.network.run(SETTLE)
        globalLogPublisher.removeObserver(self._note)
        assert not self._crashes, self._crashes[0]

    def serve(self) -> None:
        """Take a stream from its request to its release, or check that the refusal names its cause."""
        config = self.server.config
        about: dict[str, Any] = {"uid": UID, "role": PROD, "seq": UNSENT}
        answer = self.say(Req(**about, num_conn=1, rate=10.0, app_key_hash=hash_app_key(KEY)))
        if isinstance(answer, StreamError):
            if all(one.address != GATEWAY for one in config.gateways):
                assert "no gateway of this facility can be reached" in answer.msg or names_the_policy(answer.msg), (
                    answer
                )
            else:
                assert names_the_policy(answer.msg), answer
            return
        assert (answer.state, len(answer.listeners or [])) == ("Listening", 1)
        hello = self.say(Hello(**about, app_key=KEY, listeners=[f"{HOST}:7000"]))
        assert hello.state == "Ready" if isinstance(hello, Resp) else names_the_policy(hello.msg), hello
        released = self.say(Rel(**about))
        assert isinstance(released, Resp), released
        assert released.state == "Released"
        assert self.gateway.ports.free == 8


def names_the_policy(sentence: str) -> bool:
    return bool(re.match(r"rule \d+ `|no rule of this facility's policy is for ", sentence))


@settings(max_examples=150)
@given(CONTROL_CONFIGURATIONS, RULES)
@example({"insecure": True, "gateways": [{"name": "dtn1", "address": GATEWAY}], "audit": "policy.toml"}, [])
@example({"insecure": True, "gateways": [{"name": "dtn1", "address": GATEWAY}], "audit": "text"}, [])
def test_a_control_server_refuses_a_configuration_at_its_start_or_serves_a_stream_with_it(
    configuration: dict[str, Any], rules: list[dict[str, Any]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "s2cs.toml"
        file.write_text(tomli_w.dumps(configuration))
        (folder / "policy.toml").write_text(tomli_w.dumps({"rules": rules}))
        (folder / "text").write_text("some words\n")
        (folder / "folder").mkdir()
        os.mkfifo(folder / "fifo")
        before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        office = None
        try:
            config = load(file, S2CSConfig)
            raise_if_any(file, list(s2cs_start.machine_problems(config, file)))
            office = Office(MemoryNetwork(), file, config)
            office.start()
        except SETUP_PROBLEMS as refused:
            assert office is None, "it has begun already"
            assert_names_settings(refused, file, S2CSConfig, folder / "policy.toml")
            left = {path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}
            assert left == before.keys(), "a start that is refused makes nothing that lasts"
            return
        try:
            office.serve()
        finally:
            office.close()
        assert resolve_path(file, config.state).is_file()
        for path, text in before.items():
            assert path.read_bytes() == text, f"{path} is another one"


# -- S2UC


NAMES = st.sampled_from(["", "ca.pem", "text", "missing.pem", "folder", "\0", "~nobody-has-this-name/x"])
FACILITIES = st.lists(
    st.fixed_dictionaries(
        {
            "address": st.sampled_from([PROD_S2CS, CONS_S2CS, "[::ffff:127.0.0.1]:5000", "Lab.example.:5000",
                                        "lab.example:5000", "nowhere", ""]),
            "authorities": st.lists(NAMES, max_size=2),
        },
        optional={"crl": st.lists(NAMES, max_size=1)},
    ),
    max_size=2,
)  # fmt: skip
USERS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"insecure": st.booleans()},
    optional={
        "certificate": usually("ada.pem", NAMES),
        "key": usually("ada.key", NAMES),
        "authorities": usually(["ca.pem"], st.lists(NAMES, max_size=2)),
        "crl": st.lists(NAMES, max_size=1),
        "facilities": FACILITIES,
    },
)


@pytest.fixture(scope="module")
def users_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    init_authority(folder / "pki", "Demo Light Source")
    issue(folder / "pki", "user", "ada@lab.example")
    for source, name in (("ca.pem", "ca.pem"), ("ada@lab.example.pem", "ada.pem"), ("ada@lab.example.key", "ada.key")):
        shutil.copy2(folder / "pki" / source, folder / name)
    (folder / "text").write_text("some words\n")
    (folder / "folder").mkdir()
    return folder


@settings(max_examples=60)
@given(USERS)
def test_a_user_s_configuration_is_refused_by_its_key_or_serves_or_its_request_ends_in_a_sentence(
    users_files: Path, configuration: dict[str, Any]
) -> None:
    """Her certificates are looked at when a facility is dialled; servers of plain TCP refuse whoever has them."""
    file = users_files / "s2uc.toml"
    file.write_text(tomli_w.dumps(configuration))
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        client = None
        try:
            world.client = client = Client.from_config(file, reactor=world.network)
        except ConfigError as refused:
            assert_names_settings(refused, file, S2UCConfig)
        try:
            if client is not None and configuration["insecure"]:
                world.result(world.request().release().deferred)
            elif client is not None:
                with pytest.raises((StreamError, CertificateError), match=r"authorit|certificate|key|crl|TLS"):
                    world.result(world.ask(), within=60.0)
        finally:
            world.close()
        assert world.both_are_empty()


@pytest.mark.parametrize("asked", ["lab.example:5000", "LAB.example:5000", "lab.example.:5000", "other.example:5000"])
def test_a_facility_is_vouched_for_by_its_own_authorities_however_its_address_is_written(
    users_files: Path, asked: str
) -> None:
    own = {"address": "Lab.example.:5000", "authorities": ["own.pem"]}
    for_all = {"certificate": "ada.pem", "key": "ada.key", "authorities": ["ca.pem"], "facilities": [own]}
    file = users_files / "s2uc.toml"
    file.write_text(tomli_w.dumps(for_all))
    trust = Client.from_config(file, reactor=MemoryNetwork())._certificates_for(Address.parse(asked))
    assert trust is not None
    (authority,) = trust.authorities
    assert authority.name == ("ca.pem" if asked.startswith("other") else "own.pem")
    file.write_text(tomli_w.dumps({**for_all, "facilities": [own, {**own, "address": "lab.example:5000"}]}))
    with pytest.raises(ConfigError, match="facilities: two have the same address"):
        Client.from_config(file)
