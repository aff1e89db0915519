"""The section [http]: what is refused before a daemon listens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock

from scistream.config import ConfigError, checked
from scistream.pki.authority import init_authority, issue
from scistream.s2cs.service import ControlServer
from scistream.s2cs.settings import S2CSConfig
from scistream.s2ds.settings import S2DSConfig

POOL = {"gateways": [{"name": "dtn1", "address": "127.0.0.1:5001"}], "insecure": True}


def problems(kind: type[Any], **values: Any) -> list[str]:
    raw = POOL if kind is S2CSConfig else {"insecure": True}
    return [str(problem) for problem in checked({**raw, **values}, kind)[1]]


@pytest.mark.parametrize("kind", [S2CSConfig, S2DSConfig])
def test_nothing_listens_unless_it_is_told_to(kind: type[Any]) -> None:
    settings, found = checked(POOL if kind is S2CSConfig else {"insecure": True}, kind)
    assert (settings.http.address, found) == (None, [])


@pytest.mark.parametrize("kind", [S2CSConfig, S2DSConfig])
@pytest.mark.parametrize(
    ("listen", "complaint"),
    [
        ("9500", "http.listen: '9500' has no port"),
        (
            "192.0.2.1:9500",
            "http.listen: 192.0.2.1:9500 is not on loopback, where HTTP needs certificates, and insecure",
        ),
        ("0.0.0.0:9500", "http.listen: 0.0.0.0:9500 is not on loopback"),
        ("127.0.0.1:5000", "http.listen: '127.0.0.1:5000' is also the address of the control listener"),
    ],
)
def test_a_listener_that_cannot_be_is_refused(kind: type[Any], listen: str, complaint: str) -> None:
    (said,) = problems(kind, listen="127.0.0.1:5000", http={"listen": listen})
    assert said.startswith(complaint)


def test_a_gateway_s_listener_is_not_among_the_ports_of_streams() -> None:
    said = problems(S2DSConfig, http={"listen": "127.0.0.1:5150"})
    assert said == [
        "ports: '5100-5200' has port 5150, on which this gateway listens for HTTP (http.listen): choose another port "
        "for one of them"
    ]


def test_an_administrator_of_a_gateway_is_named_whole() -> None:
    (said,) = problems(S2DSConfig, http={"administrators": ["scistream:user:ada", "ada@lab.example", "ada"]})
    assert said.startswith("http.administrators: 'ada' is not a whole name of a certificate")


def test_beyond_loopback_an_s2cs_without_administrators_does_not_start(tmp_path: Path) -> None:
    init_authority(tmp_path, "Example Light Source")
    issue(tmp_path, "server", "s2cs.example")
    issue(tmp_path, "controller", "s2cs")
    section = {
        **POOL,
        "insecure": False,
        "certificate": "s2cs.example.pem",
        "key": "s2cs.example.key",
        "authorities": ["ca.pem"],
        "controller": {"certificate": "s2cs.pem", "key": "s2cs.key", "authorities": ["ca.pem"]},
        "http": {"listen": "192.0.2.1:9500"},
    }
    settings, found = checked(section, S2CSConfig)
    assert found == []
    with pytest.raises(ConfigError, match=r"http.listen: 192.0.2.1:9500 .* and there are none: name them in a section"):
        ControlServer(MemoryReactorClock(), settings, tmp_path / "s2cs.toml")
