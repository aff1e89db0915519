"""The command lines where no server is needed: what they say to a person, and with which status they end."""

import json
import multiprocessing
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

import scistream.app.cli
import scistream.cli
import scistream.cli_support
import scistream.s2uc.cli
from scistream.config import ConfigError
from scistream.protocol.address import Address
from scistream.protocol.join_string import Join, new_app_key
from scistream.protocol.messages import CONS
from scistream.s2uc.history import RememberedStream, StreamHistory
from scistream.s2uc.options import RequestOptions, read_file
from support.command_tree import COMMANDS, every_command
from support.programs import INSTALLED, Program

JOIN = Join("f81d4fae-7dec-11d0-a765-00a0c91e6bf6", new_app_key(), Address("127.0.0.1", 5000), CONS, None)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fork_server: None) -> None:
    """Nothing of this user's own; and no log observer that outlives a test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("SCISTREAM_JOIN", raising=False)
    monkeypatch.setattr(scistream.cli_support, "start_logging", lambda verbose: None)
    for module in (scistream.s2uc.cli, scistream.app.cli):
        monkeypatch.setattr(module, "keep_secrets", lambda **_: None)  # it would last for this whole process


def say(command_line: str, *more: str, given: str = "") -> Result:
    """Run a command line in this process; only for those that end before the reactor is needed."""
    name, *arguments = command_line.split()
    return CliRunner().invoke(COMMANDS[name], [*arguments, *more], input=given, prog_name=name)


def run(command_line: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a process of its own."""
    name, *arguments = command_line.split()
    return result_of([str(INSTALLED / name), *arguments, *more])


def result_of(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command in an empty folder, in which it must write nothing."""
    with tempfile.TemporaryDirectory() as folder:
        result = Program(command, Path(folder) / "errors").end(60.0, status=None)
        assert os.listdir(folder) == ["errors"]
        return result


# -- help


@pytest.mark.parametrize("path", [path for path, _ in every_command()])
def test_help_says_what_a_command_is_for(path: str) -> None:
    asked = say(path, "--help")
    assert asked.exit_code == 0
    assert asked.output.startswith(f"Usage: {path} ")
    assert len(asked.output.splitlines()) > 5


def test_every_option_has_a_help_text() -> None:
    silent = [
        f"{path} {option.opts[0]}"
        for path, command in every_command()
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    ]
    assert silent == []


def test_the_help_of_request_shows_an_example_and_the_defaults() -> None:
    assert "s2uc request --prod anl.example:5000" in say("s2uc --help").output
    shown = " ".join(say("s2uc request --help").output.split())
    for part in (
        "[default: 1Gbit]",
        "default: the shorter of the facilities",
        "--join-dir",
        "Ctrl-C releases both sides",
    ):
        assert part in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_version_is_shown(name: str) -> None:
    assert say(name, "--version").output == f"{name}, version {scistream.__version__}\n"


def test_s2uc_without_a_command_shows_its_help_and_ends_with_status_2() -> None:
    alone = say("s2uc")
    assert alone.exit_code == 2
    assert "Commands:" in alone.output


# -- wrong values


REQUEST = "s2uc request --insecure --prod 127.0.0.1:1 --cons 127.0.0.1:1"


@pytest.mark.parametrize(
    ("command_line", "named"),
    [
        ("s2uc request --prod anl.example --cons b.example:1", ["--prod", "'anl.example'", "HOST:PORT"]),
        ("s2uc request --prod a.example:1 --cons b.example:99999", ["--cons", "'99999'", "1 to 65535"]),
        ("s2uc request --prod a.example:1 --cons ::1:5000", ["--cons", "brackets"]),
        ("s2uc request --prod a.example:1", ["--cons", "Missing"]),
        (f"{REQUEST} --num-conn 0", ["--num-conn", "0", "1<=x<=1024"]),
        (f"{REQUEST} --num-conn 1025", ["--num-conn", "1025", "1<=x<=1024"]),
        (f"{REQUEST} --rate fast", ["--rate", "'fast'", "10Gbit"]),
        (f"{REQUEST} --rate 0", ["--rate", "'0'", "above 0"]),
        (f"{REQUEST} --rate -5Gbit", ["--rate", "'-5Gbit'"]),
        (f"{REQUEST} --rate 11Tbit", ["--rate", "'11Tbit'", "at most 10 Tbit/s"]),
        (f"{REQUEST} --expires soon", ["--expires", "'soon'", "8h"]),
        (f"{REQUEST} --expires 400d", ["--expires", "'400d'", "366d"]),
        (f"{REQUEST} --timeout never", ["--timeout", "'never'"]),
        (f"{REQUEST} --uid 1234", ["--uid", "'1234'"]),
        (f"{REQUEST} --speed 5", ["--speed"]),
        ("s2uc wait 1234 --timeout -1s", ["--timeout", "'-1s'"]),
        ("s2uc release", ["UID"]),
        ("s2uc stop", ["'stop'"]),
        ("appctrl prod", ["--listen"]),
        ("appctrl prod --listen 7000", ["--listen", "'7000'", "HOST:PORT"]),
        ("appctrl prod --listen 127.0.0.1:0", ["--listen", "'0'"]),
        ("appctrl consumer", ["'consumer'"]),
        ("scistream pki issue somewhere client ada@lab.example", ["'client'", "'server', 'controller', 'user'"]),
    ],
)
def test_a_wrong_value_is_named_and_the_status_is_2(command_line: str, named: list[str]) -> None:
    refused = say(command_line)
    assert refused.exit_code == 2
    for part in named:
        assert part in refused.output
    assert "Traceback" not in refused.output


def test_without_certificates_s2uc_says_where_they_are_to_be_named(tmp_path: Path) -> None:
    refused = run("s2uc request --prod a.example:1 --cons b.example:1")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    for part in (str(tmp_path / "config" / "scistream" / "s2uc.toml"), "--certificate", "--key", "--authority"):
        assert part in line
    assert refused.stdout == ""


def test_a_certificate_that_is_not_there_is_named(tmp_path: Path) -> None:
    files = [f"--{what}={tmp_path / 'nowhere.pem'}" for what in ("certificate", "key", "authority")]
    refused = run("s2uc request --prod a.example:1 --cons b.example:1", *files)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert str(tmp_path / "nowhere.pem") in line


def test_a_wrong_key_in_the_user_s_configuration_names_the_file_and_the_keys_that_are_allowed(tmp_path: Path) -> None:
    file = tmp_path / "s2uc.toml"
    file.write_text('certifcate = "ada.pem"\n')
    refused = run("s2uc status", "--config", str(file))
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    for part in (str(file), "certifcate: unknown key", "authorities, certificate, crl, facilities, insecure, key"):
        assert part in line


def test_a_uid_that_is_not_remembered_is_named_with_the_file(tmp_path: Path) -> None:
    refused = run("s2uc release 1234 --insecure")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "'1234'" in line
    assert str(tmp_path / "state") in line


@pytest.mark.parametrize("length", [8, 36])
def test_a_second_release_says_that_the_stream_is_already_released(length: int) -> None:
    known = remembered(0x1234ABCD)
    StreamHistory().add(known)
    StreamHistory().note_release(known.uid)
    again = run(f"s2uc release {known.uid[:length]} --insecure")
    assert (again.returncode, again.stdout, again.stderr) == (0, f"{known.uid} is already released\n", "")


# -- request files


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "truncated"),
        ("[]", "not a JSON object: write {"),
        ('{"cmd": "GO"}', "cmd"),
        ('{"cmd": "REQ", "cons": "b.example:1"}', "prod"),
        (
            '{"cmd": "REQ", "prod": "a.example", "cons": "b.example:1"}',
            "prod: 'a.example' has no port: write HOST:PORT",
        ),
        ('{"cmd": "REQ", "prod": "a.example:1", "cons": "b.example"}', "cons: 'b.example'"),
        (
            '{"cmd": "REQ", "prod": "a.example:1", "cons": "b.example:1", "num_conn": "5"}',
            'num_conn: "5" is not valid here: write a whole number from 1 to 1024, such as 1',
        ),
        ('{"cmd": "REQ", "prod": "a.example:1", "cons": "b.example:1", "num_conn": 1025}', "num_conn"),
        (
            '{"cmd": "REQ", "prod": "a.example:1", "cons": "b.example:1", "rate": "fast"}',
            "rate: 'fast' is not a rate: write it like 10Gbit",
        ),
        ('{"cmd": "REQ", "prod": "a.example:1", "cons": "b.example:1", "rate": -1}', "rate: '-1' is"),
        ('{"cmd": "REQ", "prod": "a.example:1", "cons": "b.example:1", "rate": [1]}', "rate: [1] is not valid here"),
        ('{"cmd": "REQ", "prod": 5, "cons": "b.example:1"}', "prod: 5 is not valid here: write text in quotes"),
        ('{"cmd": 7}', "its cmd is 7: write {"),
        ('{"cmd": "REQ", "prod": "a.example:1", "cons": "b.example:1", "expires": "soon"}', "expires: 'soon'"),
        ('{"cmd": "REQ", "prod": "a.example:1", "cons": "b.example:1", "uid": "nix"}', "uid: 'nix'"),
        (
            '{"cmd": "REQ", "prod": "a.example:1", "cons": "b.example:1", "speed": 1}',
            "speed: unknown key; the keys here are cons, expires",
        ),
        ('{"cmd": "REL"}', "uid: is missing"),
        ('{"cmd": "REL", "uid": 7}', "uid: 7 is not valid here: write text in quotes"),
    ],
)
def test_a_wrong_request_file_is_named_with_the_field(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "request.json"
    file.write_text(text)
    refused = say("s2uc --insecure", "--req-file", str(file))
    assert refused.exit_code == 2
    (line,) = refused.output.splitlines()
    assert line.startswith(f"error: {file}: ")
    assert named in line


def test_all_that_is_wrong_with_a_request_file_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text('{"cmd": "REQ", "prod": "a.example", "num_conn": 0, "rate": "fast", "label": null}')
    refused = say("s2uc --insecure", "--req-file", str(file))
    said = refused.output.removeprefix("error: ").splitlines()
    assert all(line.startswith(f"{file}: ") for line in said)
    assert sorted(line.split(": ")[1] for line in said) == ["cons", "num_conn", "prod", "rate"]


@pytest.mark.parametrize("text", [
    '{"cmd": "REQ", "prod": "a.example:1", "cons": "b.example:1"}',
    '{"cmd": "REQ", "prod": "a.example:1", "cons": "b.example:1", "rate": null, "expires": null, "uid": null}',
    '{"cmd": "REQ", "prod": "a.example:1", "cons": "b.example:1", "rate": "1Gbit", "label": null}',
    '{"cmd": "REQ", "prod": "a.example:1", "cons": "b.example:1", "rate": 1000}',
    '\ufeff{"cmd": "REQ", "prod": "a.example:1", "cons": "b.example:1"}',
])  # fmt: skip
def test_what_a_request_file_leaves_out_has_the_defaults_of_the_command_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "request.json"
    file.write_text(text)
    asked = read_file(file)
    assert isinstance(asked, RequestOptions)
    assert (asked.num_conn, asked.rate, asked.expires, asked.label) == (1, 1000.0, None, None)


def test_a_request_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    refused = say("s2uc --insecure", "--req-file", str(tmp_path / "none.json"))
    assert refused.exit_code == 2
    assert refused.output == f"error: {tmp_path / 'none.json'}: cannot be read: No such file or directory\n"


def test_a_request_file_goes_with_no_further_command(tmp_path: Path) -> None:
    refused = say("s2uc", "--req-file", str(tmp_path / "none.json"), "list")
    assert refused.exit_code == 2
    assert "--req-file" in refused.output


# -- options that commands share


def test_v_may_stand_before_a_command_or_behind_it() -> None:
    for name in ("s2uc", "appctrl"):
        for path, one in every_command():
            if path.split()[0] == name:
                assert any("-v" in parameter.opts for parameter in one.params), path


@pytest.mark.parametrize(
    ("options", "lines"),
    [("{} list", 0), ("-v {} list", 1), ("{} list -v", 1), ("-v {} list -v", 2), ("{} list -vv", 2)],
)
def test_v_counts_wherever_it_stands(options: str, lines: int) -> None:
    """A stand-in for what a command logs: `list` itself has nothing to say."""
    script = (
        "import scistream.s2uc.cli as cli; from scistream.s2uc.history import StreamHistory\n"
        "from twisted.logger import Logger; known = StreamHistory.all\n"
        "def all(memory): log = Logger(); log.info('a little'); log.debug('all of it'); return known(memory)\n"
        "StreamHistory.all = all; cli.main()"
    )
    told = result_of([sys.executable, "-c", script, *options.format("").split()])
    assert (told.returncode, told.stdout) == (0, "no streams\n")
    assert [part in told.stderr for part in ("a little", "all of it")] == [lines >= 1, lines >= 2]


def test_every_command_has_json() -> None:
    for path, one in every_command():
        if not path.endswith((" completion", " schema")):  # these print a script for a shell, and a JSON Schema
            leaf = not isinstance(one, click.Group)
            assert leaf == any("--json" in parameter.opts for parameter in one.params), path


def test_a_release_tells_a_program_whether_it_was_needed() -> None:
    known = remembered(0x1234ABCD)
    StreamHistory().add(known)
    StreamHistory().note_release(known.uid)
    again = run(f"s2uc release {known.uid} --insecure --json")
    assert json.loads(again.stdout) == {"uid": known.uid, "state": "Released", "already": True}


def test_a_release_that_fails_says_so_in_its_last_line_of_json() -> None:
    nobody = {"prod": "127.0.0.1:1", "cons": "127.0.0.1:1"}
    known = msgspec.structs.replace(remembered(0x1234ABCD), **nobody)
    StreamHistory().add(known)
    ended = run(f"s2uc release {known.uid} --insecure --json")
    last = json.loads(ended.stdout.splitlines()[-1])
    assert ended.returncode == 1
    assert (last["uid"], last["state"], last["error"]["code"]) == (known.uid, "Failed", "timeout")
    ended = run(f"s2uc forget {known.uid} --json")
    assert json.loads(ended.stdout) == {"uid": known.uid, "state": "Forgotten"}


REQUEST = "request --prod 127.0.0.1:1 --cons 127.0.0.1:1"
LONELY = [
    REQUEST,
    "probe --prod 127.0.0.1:1 --cons 127.0.0.1:1",
    "list --at 127.0.0.1:1",
    f"status {JOIN.uid} --at 127.0.0.1:1",
    f"release {JOIN.uid} --at 127.0.0.1:1",
    "status",
]
"""Commands that need certificates."""
OF_A_STREAM = ["status", "release", "wait", "attach", "forget"]


@pytest.mark.parametrize(
    ("command", "reason"),
    [(one, "no certificates: name certificate, key and authorities") for one in LONELY]
    + [(f"{one} 12345678 {'--insecure' * (one != 'forget')}", "begins with") for one in OF_A_STREAM]
    + [("release 12 --at 127.0.0.1:1 --insecure", "the uid '12' is too short")],
)
def test_a_command_that_fails_before_it_asks_anybody_says_so_in_its_last_line_of_json(
    command: str, reason: str
) -> None:
    ended = run(f"s2uc {command} --json")
    (line,) = ended.stdout.splitlines()
    last = json.loads(line)
    assert ended.returncode == 2
    assert (last["state"], last["error"]["code"]) == ("Failed", "configuration")
    assert reason in last["error"]["msg"]
    assert last["error"]["remedy"]
    assert reason in ended.stderr


def test_a_request_for_a_uid_that_is_in_use_says_so_in_its_last_line_of_json() -> None:
    known = remembered(0x1234ABCD)
    StreamHistory().add(known)
    ended = run(f"s2uc {REQUEST} --uid {known.uid} --insecure --json")
    (line,) = ended.stdout.splitlines()
    last = json.loads(line)
    assert ended.returncode == 1
    assert (last["uid"], last["state"], last["error"]["code"]) == (known.uid, "Failed", "uid-in-use")


# -- join strings


def test_a_join_string_is_no_argument_of_any_command() -> None:
    options = {name for path, one in every_command() if "appctrl" in path for par in one.params for name in par.opts}
    known = {"--help", "-h", "--version", "--verbose", "-v", "--listen", "--toward", "--join-file", "--join-wait"}
    assert options <= {*known, "--json", "command", "shell"}
    refused = say("appctrl cons", f"--join={JOIN}")
    assert refused.exit_code == 2
    assert "--join-file" in refused.output


def test_a_join_string_in_place_of_the_program_is_not_taken_and_not_repeated() -> None:
    refused = say("appctrl cons", str(JOIN))
    assert refused.exit_code == 2
    assert "SCISTREAM_JOIN" in refused.output
    assert JOIN.app_key not in refused.output


def test_without_a_join_string_appctrl_says_where_it_takes_it_from() -> None:
    refused = say("appctrl cons")
    assert refused.exit_code == 2
    assert refused.output == "error: no join string: set SCISTREAM_JOIN to the line that `s2uc request` printed\n"


@pytest.mark.parametrize("source", ["environment", "file", "standard input"])
def test_a_broken_join_string_is_refused_without_being_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    broken = str(JOIN).replace("/cons", "/both")
    arguments: list[str] = []
    if source == "environment":
        monkeypatch.setenv("SCISTREAM_JOIN", broken)
    elif source == "file":
        (tmp_path / "join").write_text(broken)
        arguments = ["--join-file", str(tmp_path / "join")]
    else:
        arguments = ["--join-file", "-"]
    refused = say("appctrl cons", *arguments, given=broken)
    assert refused.exit_code == 2
    assert "this is not a join string" in refused.output
    assert JOIN.app_key not in refused.output


def test_the_join_string_of_the_other_side_is_refused_with_the_right_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCISTREAM_JOIN", str(JOIN))
    refused = say("appctrl prod --listen 127.0.0.1:7000")
    assert refused.exit_code == 2
    assert "`appctrl cons`" in refused.output
    assert "SCISTREAM_JOIN" not in os.environ, "what is started after this cannot see it"


def test_a_join_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "join"
    file.write_text(f"\ufeff{JOIN}\n")
    said = say("appctrl prod --listen 127.0.0.1:7000", "--join-file", str(file))
    assert "`appctrl cons`" in said.output, "it is read, and is the other side's"


def test_a_join_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    refused = say("appctrl cons", "--join-file", str(tmp_path / "none"))
    assert refused.exit_code == 2
    assert str(tmp_path / "none") in refused.output


@pytest.mark.parametrize(("mode", "is_open"), [(0o600, False), (0o640, True), (0o604, True), (0o644, True)])
def test_a_join_file_that_others_can_read_is_told_with_the_remedy(tmp_path: Path, mode: int, is_open: bool) -> None:
    file = tmp_path / "join"
    file.write_text(str(JOIN))
    file.chmod(mode)
    said = say("appctrl prod --listen 127.0.0.1:7000", "--join-file", str(file))  # the other side's: it goes no further
    warning = f"appctrl: warning: {file} holds a secret, and other users can read it: run `chmod 600 {file}`"
    assert (warning in said.output) is is_open
    assert "`appctrl cons`" in said.output
    assert JOIN.app_key not in said.output


def test_a_join_string_shows_no_key_when_it_is_printed_for_debugging() -> None:
    assert JOIN.app_key not in repr(JOIN)
    assert Join.parse(str(JOIN)) == JOIN


# -- what s2uc remembers


def remembered(number: int = 0, uid: str = "") -> RememberedStream:
    return RememberedStream(
        uid=uid or f"{number:08x}-1234-4234-8234-123456789abc",
        prod="a.example:5000",
        cons="b.example:5000",
        num_conn=2,
        rate=100.0,
        asked_at=1e9 + number,
        expires_at=2e9,
        label="run 7",
    )


def test_the_memory_is_readable_by_its_user_alone_under_any_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        StreamHistory().add(remembered(1))
        StreamHistory().add(remembered(2))
        StreamHistory().remove(remembered(1).uid)
    finally:
        os.umask(before)
    folder = tmp_path / "state" / "scistream" / "streams"
    assert {stat.S_IMODE(place.stat().st_mode) for place in (folder, folder.parent)} == {0o700}
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert (folder / f"{remembered(2).uid}.json").exists()


@pytest.mark.parametrize("command", ["s2uc list", "s2uc release 12345678 --insecure"])
def test_without_a_home_folder_the_variable_to_set_is_named_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "")
    monkeypatch.chdir(tmp_path)
    refused = run(command)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "XDG_STATE_HOME: is not set" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_join_string_is_in_the_memory() -> None:
    assert {"join", "app_key", "key"}.isdisjoint(RememberedStream.__struct_fields__)


def test_a_stream_is_found_by_the_beginning_of_its_uid_if_only_one_begins_so() -> None:
    memory = StreamHistory()
    for number in (0x1A, 0x1B, 0x2C):
        memory.add(remembered(number))
    assert memory.find("0000002") == remembered(0x2C)
    assert memory.find("0000001B") == remembered(0x1B)
    with pytest.raises(ConfigError, match="2 streams with a uid that begins with '0000001'"):
        memory.find("0000001")
    with pytest.raises(ConfigError, match="no stream with a uid that begins with 'ff'"):
        memory.find("ff")


def _add_some(path: Path, first: int) -> None:
    for number in range(first, first + 10):
        StreamHistory(path).add(remembered(number))


def test_commands_that_run_at_the_same_time_lose_nothing_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "streams"
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_add_some, args=(path, 100 * number)) for number in range(3)]
    for other in others:
        other.start()
    _add_some(path, 1000)
    for other in others:
        other.join(60)
    assert [other.exitcode for other in others] == [0, 0, 0]
    assert len(StreamHistory(path).all()) == 40


def test_a_stream_that_cannot_be_read_is_named_and_left_alone_and_hinders_no_other(tmp_path: Path) -> None:
    StreamHistory().add(remembered(1))
    path = tmp_path / "state" / "scistream" / "streams" / f"{remembered(1).uid}.json"
    path.write_text("{half")
    refused = say("s2uc list")
    assert refused.exit_code == 2
    assert str(path) in refused.output
    with pytest.raises(ConfigError):
        StreamHistory().add(remembered(1))
    assert StreamHistory().add(remembered(2))
    assert path.read_text() == "{half"


def test_list_shows_what_is_remembered_to_people_and_to_programs() -> None:
    assert say("s2uc list").output == "no streams\n"
    assert json.loads(say("s2uc list --json").output) == []
    StreamHistory().add(remembered(2))
    StreamHistory().add(remembered(1))
    shown = say("s2uc list").output
    for part in (remembered(1).uid, "a.example:5000", "b.example:5000", "run 7", "2033"):
        assert part in shown
    found = json.loads(say("s2uc list --json").output)
    assert [one["uid"] for one in found] == [remembered(1).uid, remembered(2).uid]
    assert found[0]["rate"] == 100.0
