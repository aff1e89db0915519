"""Servers that do not start: one line says why, and the exit status is 2. Each has a control that does start."""

import contextlib
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from scistream.pki.authority import init_authority, issue, pem_of
from support.leased_ports import leased
from support.programs import INSTALLED, Program
from support.waiting import PATIENCE, until

TWISTD = str(INSTALLED / "twistd")
ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text().split()


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("facility") / "pki"
    init_authority(folder, "Demo Light Source")
    issue(folder, "server", "gateway", ["127.0.0.1"])
    issue(folder, "controller", "s2cs")
    issue(folder, "user", "ada@lab.example")
    (folder / "leaf.pem").write_bytes(pem_of(x509.load_pem_x509_certificate((folder / "gateway.pem").read_bytes())))
    init_authority(folder.parent / "other", "Another laboratory")
    return folder


def s2ds(pki: Path) -> dict[str, str]:
    """Return the settings of an S2DS that starts, as TOML."""
    first = leased.take(4)
    return {
        "listen": f'"127.0.0.1:{leased.take()}"',
        "ports": f'"{first}-{first + 3}"',
        "controller": '"scistream:controller:s2cs"',
        "certificate": f'"{pki / "gateway.pem"}"',
        "key": f'"{pki / "gateway.key"}"',
        "authorities": f'["{pki / "ca.pem"}"]',
    }


def s2cs(pki: Path) -> dict[str, str]:
    """Return the settings of an S2CS that starts, as TOML."""
    files = f'certificate = "{pki / "s2cs.pem"}", key = "{pki / "s2cs.key"}", authorities = ["{pki / "ca.pem"}"]'
    return {
        "listen": f'"127.0.0.1:{leased.take()}"',
        "certificate": f'"{pki / "gateway.pem"}"',
        "key": f'"{pki / "gateway.key"}"',
        "authorities": f'["{pki / "ca.pem"}"]',
        "controller": f"{{ {files} }}",
        "gateways": f'[{{ name = "dtn1", address = "127.0.0.1:{leased.take()}" }}]',
    }


KINDS = {"s2ds": s2ds, "s2cs": s2cs}


def insecure(settings: dict[str, str]) -> dict[str, str]:
    """Return the settings without certificates."""
    without = {key: settings[key] for key in settings.keys() - {"certificate", "key", "authorities", "controller"}}
    return {**without, "insecure": "true"}


def write(folder: Path, kind: str, settings: dict[str, str]) -> Path:
    file = folder / f"{kind}.toml"
    file.write_text("".join(f"{key} = {value}\n" for key, value in settings.items()))
    return file


@contextlib.contextmanager
def started(folder: Path, kind: str, *arguments: str, before: tuple[str, ...] = ()) -> Iterator[Program]:
    """Run a server in the foreground; stop it at the end in any case.

    :param before: the command that starts it, if not this process.
    """
    handle, errors = tempfile.mkstemp(".err", dir=folder)
    os.close(handle)
    program = Program([*before, TWISTD, "-n", "--pidfile=", kind, *arguments], Path(errors), os.environ)
    try:
        yield program
    finally:
        program.process.kill()
        program.end(status=None)


def refusals(folder: Path, kind: str, *arguments: str, before: tuple[str, ...] = ()) -> list[str]:
    """Return the lines on standard error of a server that does not start."""
    with started(folder, kind, *arguments, before=before) as server:
        said = server.end(status=2).stderr
    assert "Traceback" not in said
    return [line for line in said.splitlines() if not re.match(r"\d{4}-\d\d-\d\dT", line)]


def refusal(folder: Path, kind: str, *arguments: str, before: tuple[str, ...] = ()) -> str:
    """Return the only line on standard error of a server that does not start."""
    lines = refusals(folder, kind, *arguments, before=before)
    assert len(lines) == 1, lines
    return lines[0]


def refusals_of(folder: Path, kind: str, settings: dict[str, str]) -> list[str]:
    file = write(folder, kind, settings)
    lines = refusals(folder, kind, "--config", str(file))
    assert all(line.startswith(f"{file}: ") for line in lines), lines
    assert not list(folder.glob("*.sqlite*")), "it has left nothing behind"
    return [line.removeprefix(f"{file}: ") for line in lines]


def refusal_of(folder: Path, kind: str, settings: dict[str, str]) -> str:
    lines = refusals_of(folder, kind, settings)
    assert len(lines) == 1, lines
    return lines[0]


def starts(folder: Path, kind: str, settings: dict[str, str]) -> None:
    """Check that a server starts with these settings, as the control of a refusal."""
    with started(folder, kind, "--config", str(write(folder, kind, settings))) as server:
        wait_until_it_serves(server, settings)


def accepts(port: int) -> bool:
    """Return True if somebody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def serves(port: int) -> bool:
    """Return True if the listener answers, even if the answer is a refusal."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
            sock.sendall(b"no TLS\n")
            sock.recv(1)
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True


def wait_until_it_serves(server: Program, settings: dict[str, str]) -> None:
    port = int(settings["listen"].strip('"').rpartition(":")[2])

    def does() -> bool:
        assert server.process.poll() is None, f"it has ended: {server}"
        return serves(port)

    until(does, lambda: f"nothing serves at port {port}: {server}")


@pytest.mark.parametrize("kind", KINDS)
def test_the_control_starts_listens_and_ends_with_status_0_at_sigterm(tmp_path: Path, pki: Path, kind: str) -> None:
    settings = KINDS[kind](pki)
    with started(tmp_path, kind, "--config", str(write(tmp_path, kind, settings))) as server:
        wait_until_it_serves(server, settings)
        server.process.send_signal(signal.SIGTERM)
        server.end()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ["certificate", "key", "authorities", "controller"])
def test_a_server_without_certificates_names_the_key_that_is_missing(
    tmp_path: Path, pki: Path, kind: str, key: str
) -> None:
    settings = KINDS[kind](pki)
    del settings[key]
    line = refusal_of(tmp_path, kind, settings)
    assert line.startswith(f"{key}: is required")
    assert "scistream pki" in line


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ["certificate", "key"])
def test_a_file_that_is_not_there_is_named_with_its_setting(tmp_path: Path, pki: Path, kind: str, key: str) -> None:
    line = refusal_of(tmp_path, kind, {**KINDS[kind](pki), key: f'"{tmp_path / "nowhere.pem"}"'})
    assert f"{tmp_path / 'nowhere.pem'} does not exist" in line
    assert f"`{key}`" in line


@pytest.mark.parametrize("kind", KINDS)
def test_a_private_key_that_others_may_read_is_refused(tmp_path: Path, pki: Path, kind: str) -> None:
    key = tmp_path / "open.key"
    key.write_bytes((pki / "gateway.key").read_bytes())
    key.chmod(0o644)
    line = refusal_of(tmp_path, kind, {**KINDS[kind](pki), "key": f'"{key}"'})
    assert f"chmod 600 {key}" in line


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "[::]"])
def test_plain_tcp_beyond_loopback_is_refused(tmp_path: Path, pki: Path, kind: str, host: str) -> None:
    port = leased.take()
    listen = f"{host}:{port}"
    settings = {**insecure(KINDS[kind](pki)), "listen": f'"{listen}"'}
    assert any(f"{listen} is not on loopback" in line for line in refusals_of(tmp_path, kind, settings))
    assert not accepts(port)


def test_plain_tcp_to_a_gateway_beyond_loopback_is_refused(tmp_path: Path, pki: Path) -> None:
    gateways = '[{ name = "dtn1", address = "192.0.2.1:5001" }]'
    line = refusal_of(tmp_path, "s2cs", {**insecure(s2cs(pki)), "gateways": gateways})
    assert "192.0.2.1:5001 is not on loopback" in line


@pytest.mark.parametrize(
    ("kind", "key", "value", "named"),
    [
        (
            "s2ds",
            "capcity",
            '"1Gbit"',
            ["capcity: unknown key", "the keys here are app_networks", "capacity", "wan_timeout"],
        ),
        ("s2cs", "hello", '"1h"', ["hello: unknown key", "the keys here are audit, authorities", "hello_timeout"]),
        (
            "s2ds",
            "lan",
            '{ bnd = "127.0.0.1" }',
            ["lan.bnd: unknown key", "the keys here are advertise, bind, congestion"],
        ),
        ("s2ds", "capacity", '"fast"', ["capacity:", "'fast'", "10Gbit"]),
        ("s2ds", "capacity", "10", ["capacity:", "10", '"10Gbit"']),
        ("s2ds", "ports", '"5200-5100"', ["ports:", "'5200-5100'"]),
        ("s2ds", "app_networks", '["192.0.2.0/33"]', ["app_networks:", "'192.0.2.0/33'"]),
        ("s2ds", "wan", '{ bind = "0.0.0.0" }', ["wan.advertise: needed"]),
        ("s2ds", "lan", '{ bind = "dtn1.example" }', ["lan.bind:", "'dtn1.example'"]),
        ("s2ds", "wan", '{ congestion = "fastest" }', ["wan.congestion:", "'fastest'", *ALLOWED, '"" for the default']),
        ("s2ds", "elements", '"many"', ["elements:", "'many'", '"auto"', "0", "256"]),
        ("s2ds", "elements", "257", ["elements:", "257", '"auto"']),
        ("s2cs", "listen", '"127.0.0.1"', ["listen:", "'127.0.0.1'", "HOST:PORT"]),
        ("s2cs", "gateways", "[]", ["gateways:", "at least one"]),
        ("s2cs", "gateways", '[{ name = "dtn1" }]', ["gateways", "address: is missing"]),
        ("s2cs", "expires", '"soon"', ["expires:", "'soon'"]),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(
    tmp_path: Path, pki: Path, kind: str, key: str, value: str, named: list[str]
) -> None:
    line = refusal_of(tmp_path, kind, {**KINDS[kind](pki), key: value})
    for part in named:
        assert part in line


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path, pki: Path, kind: str) -> None:
    wrong = {"listen": '"5000"', "colour": "1", "insecure": '"no"', "key": '"~nosuchuser/x"'}
    lines = refusals_of(tmp_path, kind, {**KINDS[kind](pki), **wrong})
    assert sorted(line.partition(":")[0] for line in lines) == sorted(wrong)


NOT_HERE = "it is not an address of this machine"
MACHINE: list[tuple[str, dict[str, str], str]] = [
    ("s2ds", {"listen": '"192.0.2.1:5001"'}, f"listen: '192.0.2.1:5001' cannot be listened on: {NOT_HERE}"),
    ("s2cs", {"listen": '"192.0.2.1:5000"'}, f"listen: '192.0.2.1:5000' cannot be listened on: {NOT_HERE}"),
    ("s2cs", {"listen": '"[2001:db8::1]:5000"'}, "listen: '[2001:db8::1]:5000' cannot be listened on: "),
    (
        "s2ds",
        {"lan": '{ bind = "192.0.2.1" }', "app_networks": '["192.0.2.0/24"]'},
        f"lan.bind: '192.0.2.1' cannot be listened on: {NOT_HERE}",
    ),
    (
        "s2ds",
        {"wan": '{ bind = "2001:db8::1" }', "wan_networks": '["::/0"]'},
        "wan.bind: '2001:db8::1' cannot be listened on: ",
    ),
    ("s2ds", {"lan": '{ bind = "::", advertise = "127.0.0.1" }'}, "lan.advertise: '127.0.0.1' is an IPv4 address"),
    ("s2ds", {"controller": '"s2cs"'}, "controller: 's2cs' is not a whole name of a certificate"),
    ("s2cs", {"expires": '"9d"'}, "expires: '9d' is longer than longest_expires, '7d'"),
    ("s2cs", {"limits": "{ unproven = 5000 }"}, "limits.unproven: 5000 is more than links, 4096"),
    ("s2ds", {"insecure": "true"}, "insecure: true turns all certificates off"),
]


@pytest.mark.parametrize(("kind", "settings", "complaint"), MACHINE)
def test_what_cannot_come_right_on_this_machine_is_refused_at_the_start(
    tmp_path: Path, pki: Path, kind: str, settings: dict[str, str], complaint: str
) -> None:
    assert refusal_of(tmp_path, kind, {**KINDS[kind](pki), **settings}).startswith(complaint)


def test_a_range_of_ports_that_others_have_is_refused_and_a_part_of_it_is_not(tmp_path: Path, pki: Path) -> None:
    first = leased.take(2)
    last = first + 1
    settings = {**s2ds(pki), "ports": f'"{first}-{last}"'}
    with socket.create_server(("127.0.0.1", first)):
        with socket.create_server(("127.0.0.1", last)):
            line = refusal_of(tmp_path, "s2ds", settings)
            assert line.startswith(f"ports: '{first}-{last}': other programs use all these ports at 127.0.0.1")
        starts(tmp_path, "s2ds", settings)


def test_ports_below_1024_are_refused_to_a_user_without_the_privilege(tmp_path: Path, pki: Path) -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) < 1024:
        pytest.skip("this system gives those ports to everybody")
    without_rights = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
    file = write(tmp_path, "s2ds", {**s2ds(pki), "ports": '"700-800"'})
    lines = refusals(tmp_path, "s2ds", "--config", str(file), before=without_rights)
    assert f"{file}: ports: '700-800': '127.0.0.1:700' cannot be listened on: permission denied" in lines[0]


CERTIFICATES: list[tuple[str, dict[str, str], str]] = [
    ("s2ds", {"certificate": "s2cs.pem", "key": "s2cs.key"}, "is not for servers (it is for URI:scistream:controller:"),
    (
        "s2cs",
        {"certificate": "ada@lab.example.pem", "key": "ada@lab.example.key"},
        "is not for servers (it is for email",
    ),
    ("s2cs", {"controller": "gateway"}, "is not for controllers (it is for DNS:gateway"),
    ("s2cs", {"certificate": "ca.pem", "key": "ca.key"}, "begins with the certificate of an authority"),
    (
        "s2cs",
        {"certificate": "leaf.pem", "authorities": "../other/ca.pem"},
        "does not lead to a self-signed authority, in the file itself or in `authorities`",
    ),
]


@pytest.mark.parametrize(("kind", "files", "complaint"), CERTIFICATES)
def test_a_certificate_that_is_not_for_this_party_is_refused_at_the_start(
    tmp_path: Path, pki: Path, kind: str, files: dict[str, str], complaint: str
) -> None:
    settings = {**KINDS[kind](pki)}
    for key, name in files.items():
        if key == "controller":
            settings[key] = settings[key].replace(str(pki / "s2cs."), str(pki / f"{name}."))
        else:
            settings[key] = f'["{pki / name}"]' if key == "authorities" else f'"{pki / name}"'
    assert complaint in refusal_of(tmp_path, kind, settings)


@pytest.mark.parametrize("kind", KINDS)
def test_a_certificate_without_its_authority_is_completed_from_the_authorities(
    tmp_path: Path, pki: Path, kind: str
) -> None:
    starts(tmp_path, kind, {**KINDS[kind](pki), "certificate": f'"{pki / "leaf.pem"}"'})


@pytest.mark.parametrize("kind", KINDS)
def test_certificates_and_addresses_that_are_wrong_are_told_at_once(tmp_path: Path, pki: Path, kind: str) -> None:
    wrong = {"listen": '"192.0.2.1:5000"', "certificate": '"nowhere.pem"'}
    if kind == "s2cs":
        wrong |= {"policy": '"nowhere.toml"', "controller": s2cs(pki)["controller"].replace("s2cs.pem", "gateway.pem")}
    lines = refusals_of(tmp_path, kind, {**KINDS[kind](pki), **wrong})
    assert len(lines) == len(wrong), lines


@pytest.mark.parametrize("kind", KINDS)
def test_a_daemon_that_runs_as_root_says_so(tmp_path: Path, pki: Path, kind: str) -> None:
    log, file = tmp_path / "log", write(tmp_path, kind, KINDS[kind](pki))
    with started(tmp_path, f"--logfile={log}", kind, "--config", str(file)) as server:

        def listens() -> bool:
            assert server.process.poll() is None, f"it has ended: {server}"
            return log.exists() and " listens on " in log.read_text()

        until(listens, lambda: f"its log does not say that it listens: {server}")
    assert ("this daemon runs as root" in log.read_text()) == (os.geteuid() == 0)


def test_an_s2cs_starts_though_the_name_of_a_gateway_is_not_known_yet(tmp_path: Path, pki: Path) -> None:
    gateways = '[{ name = "dtn1", address = "dtn1.no-such-host.invalid:5001" }]'
    starts(tmp_path, "s2cs", {**s2cs(pki), "gateways": gateways})


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_cannot_be_read_or_is_not_named_is_refused(tmp_path: Path, kind: str) -> None:
    assert refusal(tmp_path, kind, "--config", "none.toml") == "none.toml: cannot be read: No such file or directory"
    assert "--config FILE" in refusal(tmp_path, kind)
    (tmp_path / "half.toml").write_text("listen = ")
    assert refusal(tmp_path, kind, "--config", "half.toml").startswith("half.toml: is not TOML")


@pytest.mark.parametrize("kind", KINDS)
def test_a_port_that_is_taken_is_named(tmp_path: Path, pki: Path, kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        file = write(tmp_path, kind, {**KINDS[kind](pki), "listen": f'"127.0.0.1:{port}"'})
        line = refusal(tmp_path, kind, "--config", str(file))
    assert line.startswith(f"{file}: ")
    assert f"127.0.0.1:{port}" in line


def test_a_store_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path, pki: Path) -> None:
    import sqlite3

    store = tmp_path / "s2cs.sqlite"
    with contextlib.closing(sqlite3.connect(store)) as db:
        db.execute("PRAGMA user_version = 99")
    line = refusal(tmp_path, "s2cs", "--config", str(write(tmp_path, "s2cs", s2cs(pki))))
    assert f"the store {store} has schema version 99" in line


def test_a_second_server_with_the_same_store_is_refused_while_the_first_one_lives(tmp_path: Path, pki: Path) -> None:
    settings = s2cs(pki)
    file = str(write(tmp_path, "s2cs", settings))
    with started(tmp_path, "s2cs", "--config", file) as first:
        wait_until_it_serves(first, settings)
        listen, store = refusals(tmp_path, "s2cs", "--config", file)
        assert "listen: " in listen
        assert "another program listens on it" in listen
        assert f"the store {tmp_path / 's2cs.sqlite'} is in use by another S2CS, process {first.pid}: " in store
        assert first.process.poll() is None
        first.process.kill()
        first.process.wait(PATIENCE)
    with started(tmp_path, "s2cs", "--config", file) as next_one:
        wait_until_it_serves(next_one, settings)


BROKEN = [
    ("rates = 1", "rule 1 `a`: rates: unknown key; the keys here are "),
    ('rate = "lots"', "rule 1 `a`: rate: 'lots' is not a rate"),
    ('roles = ["PROD"]', "is not TOML: "),
    ('[[administrators]]\nissuer = "nowhere.pem"\nidentities = ["x:y"]', "administrators 1: issuer: "),
]


@pytest.mark.parametrize(("line", "complaint"), BROKEN)
def test_a_policy_that_cannot_be_used_is_named_with_its_rule_and_its_key(
    tmp_path: Path, pki: Path, line: str, complaint: str
) -> None:
    policy = tmp_path / "policy.toml"
    sound = f'[[rules]]\nname = "a"\nissuer = "{pki / "ca.pem"}"\nidentities = ["*@lab.example"]\nroles = []\n'
    settings = {**s2cs(pki), "policy": '"policy.toml"'}
    policy.write_text(sound + line)
    assert refusal_of(tmp_path, "s2cs", settings).startswith(f"{policy}: {complaint}")

    policy.write_text(sound)
    with started(tmp_path, "s2cs", "--config", str(write(tmp_path, "s2cs", settings))) as server:
        wait_until_it_serves(server, settings)


def test_a_policy_that_is_not_there_is_named(tmp_path: Path, pki: Path) -> None:
    line = refusal_of(tmp_path, "s2cs", {**s2cs(pki), "policy": '"nowhere.toml"'})
    assert line == f"{tmp_path / 'nowhere.toml'}: cannot be read: No such file or directory"


SPOILT = """
import os, sys
if any("elements.worker" in word for word in sys.orig_argv):
    os._exit(3)
"""


def test_a_gateway_whose_elements_do_not_start_ends_with_one_sentence(
    tmp_path: Path, pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SPOILT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    line = refusal(tmp_path, "s2ds", "--config", str(write(tmp_path, "s2ds", s2ds(pki))))
    assert re.match(r"element \d does not start \(.*exit code 3", line)


@pytest.mark.usefixtures("executed")
def test_no_module_of_the_folder_that_a_gateway_is_started_in_runs_in_it(tmp_path: Path, pki: Path) -> None:
    for name in ("random", "scistream", "twisted", "msgspec"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'was here')!r}, 'w').close()\n")
    file = write(tmp_path, "s2ds", {**s2ds(pki), "elements": "1"})
    with started(tmp_path, "s2ds", "--config", str(file)) as server:
        while "element 0 is ready" not in (line := server.line()):
            assert "ended" not in line
    assert not (tmp_path / "was here").exists()
