"""Output that cannot be written while real facilities hold something.

Nothing stays reserved, and no traceback is shown.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import pytest
from harness import World

from scistream.protocol.messages import CONS, PROD
from support.applications import address_of, listen
from support.programs import Program
from support.waiting import PATIENCE, until

pytestmark = pytest.mark.usefixtures("nothing_left")

HOW = ("closed", "full", "broken")


def start(
    world: World, arguments: Sequence[str], spoilt: Mapping[int, str], program: str = "s2uc", join: str = ""
) -> Program:
    """Start a command whose standard descriptors are closed, full or broken."""
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_RDWR)
    files = {"closed": None, "full": full, "broken": writer}
    try:
        return world.start(
            str(world.programs / program),
            *arguments,
            env={"SCISTREAM_JOIN": join} if join else {},
            descriptors={number: files[how] for number, how in spoilt.items()},
        )
    finally:
        os.close(writer)
        os.close(full)


def run(
    world: World, arguments: Sequence[str], spoilt: Mapping[int, str], program: str = "s2uc", join: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run such a command to its end."""
    return start(world, arguments, spoilt, program, join).end(2 * PATIENCE, status=None)


def assert_says_a_line_at_most(ended: subprocess.CompletedProcess[str], how: str) -> None:
    words = [line for line in ended.stderr.splitlines() if not line.startswith("waiting for ")]
    if how == "broken":
        assert (ended.returncode, words) == (128 + signal.SIGPIPE, [])
    else:
        assert ended.returncode == 1
        assert len(words) == 1, words
        assert words[0].startswith("error: standard output cannot be written: ")


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("how", HOW)
def test_a_request_that_cannot_hand_out_its_join_strings_holds_nothing(world: World, how: str, as_json: bool) -> None:
    uid = str(uuid4())
    between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs, "--rate", "100Mbit", "--uid", uid]
    ended = run(world, ["request", *between, *(["--json"] if as_json else [])], {1: how})
    assert_says_a_line_at_most(ended, how)
    assert world.lab.states().get((uid, PROD), "Released") == "Released"
    assert world.centre.states().get((uid, CONS), "Released") == "Released"
    assert world.remembered.all() == []
    if how != "full":
        assert (uid, PROD) not in world.lab.states(), "it is known before anything is asked for"


@pytest.mark.parametrize("how", HOW)
def test_a_request_whose_errors_nobody_can_read_goes_on(world: World, how: str, tmp_path: Path) -> None:
    script = ["request", "--json", "--prod", world.lab.s2cs, "--cons", world.centre.s2cs, "--timeout", "1s"]
    ended = run(world, script, {2: how, 0: "closed"})
    first, last = map(json.loads, ended.stdout.splitlines())
    assert ended.returncode == 1
    assert first["state"] == "Reserved"
    assert (last["state"], last["error"]["code"], last["released"]) == ("Failed", "timeout", True)
    assert world.remembered.all() == []


@pytest.mark.parametrize("how", HOW)
def test_no_command_shows_a_traceback_when_any_of_its_output_is_lost(world: World, how: str) -> None:
    between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs]
    with listen() as detector, world.stream([address_of(detector)]) as stream:
        looks = [
            ["status"],
            ["status", stream.uid],
            ["status", stream.uid, "--json"],
            ["list"],
            ["list", "--json"],
            ["list", "--at", world.lab.s2cs],
            ["wait", stream.uid],
            ["attach", stream.uid],
            ["probe", *between, "--seconds", "1", "--rate", "100Mbit"],
        ]
        for arguments in looks:
            assert_says_a_line_at_most(run(world, arguments, {1: how}), how)
            assert "Traceback" not in run(world, arguments, {2: how}).stdout
        ended = run(world, ["release", stream.uid], {1: how})
        assert_says_a_line_at_most(ended, how)
        until(lambda: world.lab.states()[stream.uid, PROD] == "Released", world.lab.server.words)
        until(lambda: world.centre.states()[stream.uid, CONS] == "Released", world.centre.server.words)
        assert world.remembered.all() == []
        stream.requested._released = True


@pytest.mark.parametrize(
    ("as_json", "lines"), [(False, 0), (False, 1), (False, 6), (False, 7), (True, 0), (True, 1), (True, 2)]
)
def test_a_request_whose_reader_goes_away_at_any_line_streams_or_holds_nothing(
    world: World, lines: int, as_json: bool, tmp_path: Path
) -> None:
    """The applications have their join strings from files, so that all goes on while nobody reads."""
    uid = str(uuid4())
    between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs, "--rate", "100Mbit", "--uid", uid]
    options = [*between, "--join-dir", str(tmp_path), *(["--json"] if as_json else [])]
    with listen() as detector:
        request = subprocess.Popen(
            [str(world.programs / "s2uc"), "request", *options],
            env=world.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert request.stdout is not None
        files = {role: tmp_path / f"{uid}.{role.lower()}" for role in (PROD, CONS)}
        until(
            lambda: all(file.exists() and file.read_text().endswith("\n") for file in files.values()), lambda: "files"
        )
        joins = {role: file.read_text().strip() for role, file in files.items()}
        before = 1 if as_json else 6
        for _ in range(min(lines, before)):
            assert request.stdout.readline()
        if lines <= before:
            request.stdout.close()
        world.prod(joins[PROD], [address_of(detector)])
        if lines > before:
            for _ in range(lines - before):
                request.stdout.readline()
            request.stdout.close()
        status = request.wait(PATIENCE)
        if status == 0:
            assert lines > before
            assert world.lab.states()[uid, PROD] == world.centre.states()[uid, CONS] == "Streaming"
            world.s2uc("release", uid)
        else:
            assert status == 128 + signal.SIGPIPE
        assert world.remembered.all() == []
        assert world.lab.states()[uid, PROD] == world.centre.states()[uid, CONS] == "Released"


def test_files_of_join_strings_go_with_a_release_by_another_process(world: World, tmp_path: Path) -> None:
    """The request that has written them was killed."""
    uid = str(uuid4())
    between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs, "--rate", "100Mbit", "--uid", uid]
    request = world.start_s2uc("request", *between, "--join-dir", str(tmp_path), "--json")
    files = [Path(name) for name in json.loads(request.line())["join_files"].values()]
    request.process.kill()
    request.end(status=-signal.SIGKILL)
    assert [file.exists() for file in files] == [True, True]
    assert world.s2uc("release", uid).stdout == f"released {uid}\n"
    assert [file.exists() for file in files] == [False, False]
    assert world.remembered.all() == []


@pytest.mark.parametrize("how", HOW)
def test_appctrl_ends_in_order_when_any_of_its_output_is_lost(world: World, how: str) -> None:
    with listen() as detector, world.request() as requested:
        told = ["prod", "--listen", address_of(detector)]
        silent = run(world, told, {0: "closed", 1: how, 2: how}, "appctrl", requested.join[PROD])
        assert (silent.returncode, silent.stdout, silent.stderr) == (0, "", ""), "it has nothing to say"
        requested.streaming()
        assert_says_a_line_at_most(run(world, ["cons"], {1: how}, "appctrl", requested.join[CONS]), how)
        unseen = run(world, ["cons"], {0: "closed", 2: how}, "appctrl", requested.join[CONS])
        assert (unseen.returncode, json.loads(unseen.stdout)["uid"]) == (0, requested.uid)
        program = run(world, ["cons", "--", "sh", "-c", "exit 7"], dict.fromkeys((0, 1, 2), how), "appctrl",
                      requested.join[CONS])  # fmt: skip
        assert program.returncode == 7
    refused = run(world, ["cons"], {2: how}, "appctrl", requested.join[CONS])
    assert (refused.returncode, refused.stdout) == (1, ""), "the stream is over, whether or not anybody can be told"


# -- every command that reserves something, under every descriptor that is lost

LOST: list[dict[int, str]] = [
    *({number: how} for number in (0, 1, 2) for how in HOW),
    *({1: how, 2: how} for how in HOW),
    *({1: first, 2: second} for first, second in (("closed", "broken"), ("full", "broken"), ("broken", "full"))),
    *(dict.fromkeys((0, 1, 2), how) for how in HOW),
]
RESERVING = [
    "request",
    "request --json",
    "request --join-dir",
    pytest.param("probe --seconds 1", marks=pytest.mark.long),
]


@pytest.mark.parametrize("command", RESERVING)
def test_a_request_that_lost_any_descriptors_leaves_nothing_reserved(
    world: World, command: str, tmp_path: Path
) -> None:
    """A request to which no application comes gives up by itself, and a probe is done soon."""
    between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs, "--rate", "100Mbit"]
    gateways = [gateway for facility in world.facilities for gateway in facility.gateways]
    before = [gateway.ports_in_use() for gateway in gateways]
    width = 2 if command.startswith("probe") else 4  # a gateway has 8 ports
    folders = [tmp_path / f"joins-{number}" for number in range(len(LOST))]
    programs: list[Program] = []
    for number, (lost, folder) in enumerate(zip(LOST, folders, strict=True)):
        folder.mkdir()
        arguments = [*command.split(), *([str(folder)] if command.endswith("dir") else []), *between]
        arguments += ["--timeout", "1s"] if command.startswith("request") else []
        if number >= width:
            programs[number - width].end(2 * PATIENCE, status=None)
        programs.append(start(world, arguments, lost))
    for lost, folder, program in zip(LOST, folders, programs, strict=True):
        ended = program.end(2 * PATIENCE, status=None)
        assert "Traceback" not in ended.stdout + ended.stderr, (lost, ended)
        if command.startswith("probe") and 1 not in lost:
            assert ended.returncode == 0, (lost, ended)
        else:  # nobody has used the stream, or nobody could be told what the probe has found
            assert ended.returncode in (1, 128 + signal.SIGPIPE), (lost, ended)
        assert list(folder.iterdir()) == [], lost
    for facility in world.facilities:
        assert set(facility.states().values()) <= {"Released"}
    until(lambda: [gateway.ports_in_use() for gateway in gateways] == before, lambda: "the ports are not free again")
    assert world.remembered.all() == []
