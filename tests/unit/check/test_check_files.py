"""What `scistream check` finds in the files of a configuration: certificates, CRLs, store, audit trail, policy."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
import tomli_w
from click.testing import CliRunner, Result
from cryptography import x509

import scistream.cli
from scistream.check import certificates, store
from scistream.check.certificates import CertificateFacts
from scistream.check.findings import Finding
from scistream.check.plan import CheckPlan, settings_of
from scistream.check.store import Space, space_finding
from scistream.pki.authority import init_authority, issue
from scistream.pki.revocation import make_crl
from scistream.s2cs.settings import S2CSConfig
from scistream.s2cs.store.database import Store
from scistream.tls.files import utc_now
from support.aged_certificates import age
from support.memory_tls import Authority, a_crl, written
from support.memory_tls import store as write_certificate
from support.programs import INSTALLED
from support.requirements import unprivileged

DAY = timedelta(days=1)
OTHER_USER = 54321


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an authority with the certificates of a control server and a user."""
    pki = tmp_path_factory.mktemp("authority") / "pki"
    init_authority(pki, "My Lab")
    issue(pki, "server", "localhost", ["127.0.0.1"])
    issue(pki, "controller", "s2cs")
    issue(pki, "user", "ada@lab.example")
    make_crl(pki)
    return pki


@pytest.fixture
def pki(authority: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(authority, tmp_path / "pki"))


def plan_of(pki: Path, **changes: object) -> CheckPlan:
    """Return the plan of a control server with certificates of the authority, and other settings."""
    settings = {
        "certificate": "pki/localhost.pem",
        "key": "pki/localhost.key",
        "authorities": ["pki/ca.pem"],
        "controller": {"certificate": "pki/s2cs.pem", "key": "pki/s2cs.key", "authorities": ["pki/ca.pem"]},
        "gateways": [{"name": "dtn1", "address": "127.0.0.1:5001"}],
        **changes,
    }
    file = pki.parent / "s2cs.toml"
    file.write_text(tomli_w.dumps(settings))
    config = settings_of(file)
    assert isinstance(config, S2CSConfig)
    return CheckPlan(file, server=config)


def found_in(facts: list[CertificateFacts]) -> dict[str, Finding]:
    """Return each WARN and FAIL by its name."""
    return bad([one for each in facts for one in certificates.findings(each, utc_now())])


def bad(found: list[Finding]) -> dict[str, Finding]:
    return {one.name: one for one in found if one.verdict in ("WARN", "FAIL")}


def test_good_certificates_give_no_finding(pki: Path) -> None:
    facts = certificates.gather(plan_of(pki, crl=["pki/crl.pem"]))
    assert [one.whose for one in facts] == ["server", "controller"]
    assert found_in(facts) == {}
    lines = [one.line() for each in facts for one in certificates.findings(each, utc_now())]
    assert any(
        "is for DNS:localhost, IP:127.0.0.1; peers get 2 certificates, and the key fits" in line for line in lines
    )


def test_each_missing_or_wrong_file_is_found(pki: Path) -> None:
    plan = plan_of(pki)
    (pki / "localhost.pem").unlink()
    shutil.copy(pki / "ada@lab.example.key", pki / "s2cs.key")
    found = found_in(certificates.gather(plan))
    assert {name: one.verdict for name, one in found.items()} == {
        "certificates.server": "FAIL",
        "certificates.controller": "FAIL",
    }
    assert "localhost.pem does not exist" in found["certificates.server"].why
    assert "s2cs.key" in found["certificates.controller"].why


def test_a_key_that_others_may_read_is_found_with_the_command_that_corrects_it(pki: Path) -> None:
    (pki / "localhost.key").chmod(0o644)
    found = found_in(certificates.gather(plan_of(pki)))
    assert set(found) == {"certificates.server"}
    assert f"chmod 600 {pki / 'localhost.key'}" in found["certificates.server"].why


def test_a_certificate_for_another_purpose_is_found(pki: Path) -> None:
    plan = plan_of(pki, certificate="pki/ada@lab.example.pem", key="pki/ada@lab.example.key")
    found = found_in(certificates.gather(plan))
    assert "is not for servers" in found["certificates.server"].why


@pytest.mark.parametrize(
    ("left", "verdict", "part"), [(20 * DAY, "WARN", "expires in"), (-1 * DAY, "FAIL", "has expired")]
)
def test_a_certificate_near_or_after_its_end_is_found(pki: Path, left: timedelta, verdict: str, part: str) -> None:
    age(pki / "localhost.pem", life=397 * DAY, left=left)
    found = found_in(certificates.gather(plan_of(pki)))
    assert {name: one.verdict for name, one in found.items()} == {"certificates.server-expiry": verdict}
    assert part in found["certificates.server-expiry"].why
    assert "scistream pki renew" in found["certificates.server-expiry"].remedy


def test_a_certificate_that_is_not_valid_yet_is_found_with_both_times(pki: Path) -> None:
    age(pki / "localhost.pem", life=300 * DAY, left=400 * DAY)
    (one,) = found_in(certificates.gather(plan_of(pki))).values()
    assert one.verdict == "FAIL"
    assert f"it is {utc_now():%Y-%m-%d}" in one.why


def test_an_expired_crl_and_a_missing_one_are_found(pki: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    init_authority(other, "Another")
    written(pki / "crl.pem", a_crl(Authority.load(pki), left=timedelta(hours=-1)))
    plan = plan_of(pki, authorities=["pki/ca.pem", "other/ca.pem"], crl=["pki/crl.pem"])
    facts = certificates.gather(plan)
    whys = [
        one
        for each in facts
        for one in certificates.findings(each, utc_now())
        if one.name.endswith("server-revocation")
    ]
    failures = [one.why for one in whys if one.verdict == "FAIL"]
    assert len(failures) == 2
    assert "expired on" in failures[0]
    assert "Another" in failures[1]


def test_an_address_that_is_not_in_the_certificate_is_found(pki: Path) -> None:
    certificate, key = Authority.load(pki).leaf(x509.IPAddress(ip_address("192.0.2.9")))
    write_certificate(pki, [certificate], key, "other")
    plan = plan_of(pki, certificate="pki/other.pem", key="pki/other.key", listen="192.0.2.1:5000")
    found = found_in(certificates.gather(plan))
    assert found["certificates.server-address"].verdict == "WARN"
    assert "--san 192.0.2.1" in found["certificates.server-address"].remedy


# -- store, audit trail, policy


def of_store(plan: CheckPlan) -> dict[str, Finding]:
    return bad(list(store.findings(plan)))


def test_a_store_that_is_not_there_yet_is_no_fault_and_neither_is_a_sound_one(pki: Path) -> None:
    plan = plan_of(pki)
    assert of_store(plan) == {}
    Store(pki.parent / "s2cs.sqlite").close()
    assert of_store(plan) == {}


def test_a_damaged_store_is_found_with_the_command_that_says_more(pki: Path) -> None:
    file = pki.parent / "s2cs.sqlite"
    with sqlite3.connect(file) as other:
        other.execute("CREATE TABLE something (a)")
    other.close()
    found = of_store(plan_of(pki))
    assert set(found) == {"store.records"}
    assert f"scistream store check {file}" in found["store.records"].remedy


def test_a_folder_that_is_not_there_is_found_with_the_command_that_makes_it(pki: Path) -> None:
    found = of_store(plan_of(pki, state="var/s2cs.sqlite"))
    assert set(found) == {"store.folder-of-state"}
    assert f"install -d -m 0700 -o USER {pki.parent / 'var'}" in found["store.folder-of-state"].remedy


def test_an_audit_trail_that_is_another_file_and_a_wrong_policy_are_found(pki: Path) -> None:
    (pki.parent / "notes").write_text("mine\n")
    (pki.parent / "policy.toml").write_text("rules = 7\n")
    found = of_store(plan_of(pki, audit="notes", policy="policy.toml"))
    assert {name: one.verdict for name, one in found.items()} == {"store.audit": "FAIL", "store.policy": "FAIL"}
    assert "scistream policy check" in found["store.policy"].remedy


@pytest.mark.parametrize(
    ("free", "files", "verdict"),
    [(2**34, None, "OK"), (2**34, 10**6, "OK"), (2**28, None, "WARN"), (2**20, None, "FAIL"), (2**34, 3, "WARN")],
)
def test_a_full_disk_is_found(free: int, files: int | None, verdict: str) -> None:
    assert space_finding(Space(Path("/var/lib/scistream"), free, files), "state").verdict == verdict


# -- the command


def check(*arguments: str) -> Result:
    return CliRunner().invoke(scistream.cli.main, ["check", *arguments])


def test_a_wrong_configuration_and_wrong_usage_end_with_status_2(tmp_path: Path) -> None:
    (tmp_path / "s2ds.toml").write_text("ports = 7\ncapacity = 'much'\n")
    wrong = check("--config", str(tmp_path / "s2ds.toml"))
    assert wrong.exit_code == 2
    assert "ports: 7" in wrong.output
    assert "capacity: 'much'" in wrong.output
    assert check("--config", str(tmp_path / "nowhere.toml")).exit_code == 2
    alone = check("--rate", "10Gbit")
    assert alone.exit_code == 2
    assert "--rtt" in alone.output


def test_each_finding_is_one_line_and_a_failure_gives_status_1(pki: Path) -> None:
    (pki / "localhost.key").chmod(0o644)
    plan = plan_of(pki, gateways=[{"name": "dtn1", "address": "127.0.0.1:1"}])
    done = check("--config", str(plan.file))
    assert done.exit_code == 1
    *lines, summary = done.output.splitlines()
    assert all(line.split()[0] in ("OK", "WARN", "FAIL", "UNSEEN") for line in lines)
    assert any(line.startswith("FAIL    certificates.server: ") for line in lines)
    assert any(line.startswith("FAIL    reach.gateway-dtn1: 127.0.0.1:1 cannot be reached") for line in lines)
    assert f"{sum(line.startswith('FAIL') for line in lines)} FAIL" in summary


def test_what_a_user_may_not_read_is_said_and_is_no_failure(pki: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("it takes root to make files of another user")
    file = plan_of(pki, gateways=[{"name": "dtn1", "address": "127.0.0.1:1"}]).file
    store_file, keys = pki.parent / "s2cs.sqlite", [pki / "localhost.key", pki / "s2cs.key"]
    store_file.touch(0o600)
    for hidden in (store_file, *keys):
        os.chown(hidden, OTHER_USER, OTHER_USER)
    for folder in (pki, *pki.parents[:3]):
        folder.chmod(0o755)
    home = pki.parent / "home"
    home.mkdir()
    command = [*unprivileged(home), str(INSTALLED / "scistream"), "check", "--config", str(file), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    found = json.loads(done.stdout)["findings"]
    unseen = {one["name"]: one["why"] for one in found if one["verdict"] == "UNSEEN"}
    assert {"certificates.server", "certificates.controller", "store.records"} <= set(unseen)
    assert all(why.startswith("not visible to this user: ") for why in unseen.values())
    assert str(keys[0]) in unseen["certificates.server"]
    assert {one["name"] for one in found if one["verdict"] == "FAIL"} <= {"reach.gateway-dtn1"}
    assert any(one["name"] == "certificates.server" and "DNS:localhost" in one["why"] for one in found)
