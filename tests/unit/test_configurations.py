"""No configuration that is accepted at the start fails later: a gateway refuses it, saying why, or takes a stream."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hostile_parties import FAR, PROD, SCRIPTS, SETTLE, DataServerParty, _door
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_network import MemoryPorts

from scistream.config import S2DSConfig, load, parse_ports, parse_rate
from scistream.s2ds.service import DataServer
from scistream.s2ds.start import machine_problems
from scistream.security.control import PLAIN_IDENTITY
from scistream.setup import SETUP_PROBLEMS
from scistream.toml_file import raise_if_any
from scistream.wire.messages import Resp, Role

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


def in_toml(configuration: dict[str, Any]) -> str:
    sections = {key: value for key, value in configuration.items() if isinstance(value, dict)}
    text = "".join(f"{key} = {json.dumps(configuration[key])}\n" for key in configuration if key not in sections)
    for name, values in sections.items():
        text += f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
    return text


class Configured(DataServerParty):
    """An S2DS with a configuration of its own."""

    config: S2DSConfig
    file: Path

    def start(self, folder: Path) -> None:
        self.server = DataServer(self.network, self.config, self.file)
        self.server.ports = MemoryPorts(*parse_ports(self.config.ports))
        self.server.startService()
        self.network.doors[FAR] = _door(self.server, self.network, PLAIN_IDENTITY)
        self.network.connectTCP("127.0.0.1", FAR, self._far[0])

    def stop(self) -> None:
        self.server.stopService()
        self.network.run(SETTLE)

    def check_state(self) -> None:
        """Nothing more than of every party."""

    def reserve(self, role: Role) -> None:
        """A stream of one channel, as small as the gateway is."""
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
        file.write_text(in_toml(configuration))
        Configured.file = file
        try:
            Configured.config = load(file, S2DSConfig)
            raise_if_any(file, list(machine_problems(Configured.config)))
            party = Configured(Path(folder))
        except SETUP_PROBLEMS as refused:
            lines = str(refused).splitlines()
            assert lines
            assert all(any(key in line for key in configuration) for line in lines), lines
            return
        try:
            party.reserve(PROD)
        finally:
            party.close()
