"""`s2uc watch`, `s2uc facilities` and names of facilities, with real facilities and terminals."""

from __future__ import annotations

import json
import signal
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Streaming, World, free_ports

from scistream import __version__
from scistream.protocol.messages import StreamStatus
from support.applications import address_of, listen, receive_exactly
from support.facilities import HOST
from support.json_page import keys_of
from support.programs import Program
from support.requirements import needs
from support.terminals import Terminal

DATA = b"frame" * 100_000


@pytest.fixture
def streaming(world: World) -> Iterator[Streaming]:
    """Make a stream that has carried some bytes, with a connection that stays open."""
    with listen() as detector, world.stream([address_of(detector)]) as stream, stream.connect() as analysis:
        camera, _ = detector.accept()
        with camera:
            camera.sendall(DATA)
            assert receive_exactly(analysis, len(DATA)) == DATA
            yield stream


def watch(world: World, uid: str, *options: str, terminal: Terminal | None = None, **env: str) -> Program:
    command = [str(world.programs / "s2uc"), "watch", uid, "--interval", "0.2s", *options]
    return world.start(*command, env=env, descriptors=terminal.descriptors if terminal is not None else None)


def state(world: World, uid: str) -> str | None:
    return world.lab.states().get((uid, "PROD"))


def test_into_a_pipe_each_interval_is_a_line_until_the_stream_is_released(world: World, streaming: Streaming) -> None:
    program = watch(world, streaming.uid[:8])
    lines = [program.line() for _ in range(3)]
    for line in lines:
        assert "producer Streaming, consumer Streaming, 1 open, 500 kB to the consumer" in line
    assert "(0 kbit/s)" in lines[-1]
    world.s2uc("release", streaming.uid)
    ended = program.end()
    assert ended.stdout.splitlines()[-1] == (
        f"{streaming.uid} is released: 500 kB to the consumer, 0 B to the producer"
    )
    assert "\x1b" not in ended.stdout + ended.stderr


def test_with_json_each_interval_is_an_object_and_so_is_the_end(world: World, streaming: Streaming) -> None:
    program = watch(world, streaming.uid, "--json")
    told = json.loads(program.line())
    assert told["states"] == {"PROD": "Streaming", "CONS": "Streaming"}
    assert told["bytes"] == {"to_consumer": len(DATA), "to_producer": 0}
    world.s2uc("release", streaming.uid)
    last = json.loads(program.end().stdout.splitlines()[-1])
    assert (last["uid"], last["state"], last["bytes"]) == (streaming.uid, "Released", told["bytes"])


def test_on_a_terminal_it_is_drawn_and_q_leaves_the_stream_alone(world: World, streaming: Streaming) -> None:
    with Terminal(80, 24) as terminal:
        before = termios.tcgetattr(terminal.side)
        program = watch(world, streaming.uid, terminal=terminal, TERM="xterm")
        shown = terminal.wait_for("q ends the view")
        for part in (streaming.uid, "Streaming", "500 kB", "kbit/s to the consumer", "round trip", "now"):
            assert part in shown
        assert max(len(line) for line in shown.splitlines()) <= 80
        assert not termios.tcgetattr(terminal.side)[3] & termios.ICANON
        terminal.press("q")
        program.end()
        assert termios.tcgetattr(terminal.side) == before
        assert "producer Streaming, consumer Streaming" in terminal.rest()
    assert state(world, streaming.uid) == "Streaming"


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_cannot_draw_gets_lines(world: World, streaming: Streaming, term: str) -> None:
    with Terminal() as terminal:
        program = watch(world, streaming.uid, terminal=terminal, TERM=term)
        terminal.wait_for("500 kB to the consumer")
        terminal.wait_for("500 kB to the consumer")
        assert b"\x1b" not in terminal.raw()
        program.process.send_signal(signal.SIGINT)
        program.end()
        terminal.wait_for(f"no longer watched: stream {streaming.uid} goes on")
    assert state(world, streaming.uid) == "Streaming"


def test_a_stream_that_expires_ends_it_with_the_reason_and_status_1(world: World) -> None:
    with world.request(1, "100Mbit", "--expires", "2s") as requested:
        program = watch(world, requested.uid, "--json")
        told = json.loads(program.line())
        assert told["states"] == {"PROD": "Listening", "CONS": "Listening"}
        assert "appctrl prod" in told["waits_for"]["PROD"]
        last = json.loads(program.end(status=1).stdout.splitlines()[-1])
        assert (last["uid"], last["state"], last["error"]["code"]) == (requested.uid, "Failed", "expired")
        assert last["error"]["remedy"]
        requested.forget()
        requested.program.stop()


# -- facilities and their names


@pytest.fixture
def named(world: World, tmp_path: Path) -> Path:
    """Write the user's configuration, with names for both facilities and for one that is not there."""
    usual = (world.folder / "config" / "scistream" / "s2uc.toml").read_text()
    names = {"lab": world.lab.s2cs, "centre": world.centre.s2cs, "nowhere": f"{HOST}:{free_ports()}"}
    file = tmp_path / "s2uc.toml"
    sections = (f'\n[[facilities]]\nname = "{name}"\naddress = "{at}"\n' for name, at in names.items())
    file.write_text(usual + "".join(sections))
    return file


def test_facilities_are_asked_together_and_those_that_are_away_are_named(world: World, named: Path) -> None:
    ended = world.s2uc("facilities", "--json", "--config", str(named), check=False)
    assert ended.returncode == 1
    told = json.loads(ended.stdout)
    assert told["ok"] is False
    lab, centre, nowhere = told["facilities"]
    for one, name in ((lab, "lab"), (centre, "centre")):
        assert (one["name"], one["ok"], one["version"]) == (name, True, __version__)
        assert 0 < one["round_trip_ms"] < 10_000
    assert (nowhere["name"], nowhere["ok"], nowhere["version"]) == ("nowhere", False, None)
    assert "refused" in nowhere["reason"]
    shown = world.s2uc("facilities", "lab", world.centre.s2cs, "--config", str(named)).stdout
    assert [line.split()[0] for line in shown.splitlines()] == ["NAME", "lab", world.centre.s2cs]


def test_a_name_will_do_wherever_an_address_would(world: World, named: Path) -> None:
    more = ("--config", str(named))
    program = world.start_s2uc("request", "--json", "--prod", "lab", "--cons", "centre", *more)
    reserved = json.loads(program.line())
    assert list(reserved) == keys_of("s2uc", "``request``, when both sides have reserved")
    uid = reserved["uid"]
    listed = json.loads(world.s2uc("list", "--at", "lab", "--json", *more).stdout)
    assert uid in [one["uid"] for one in listed]
    known = {one.uid: one for one in world.remembered.all()}[uid]
    assert (known.prod, known.cons) == (world.lab.s2cs, world.centre.s2cs), "names may change their meaning"
    world.s2uc("release", uid)
    program.stop()
    refused = world.s2uc("list", "--at", "lap", *more, check=False)
    assert refused.returncode == 2
    assert "'lap' is neither HOST:PORT nor the name of a facility" in refused.stderr
    assert "centre, lab, nowhere" in refused.stderr


# -- JSON


def test_commands_print_the_keys_that_the_page_about_json_names(world: World, named: Path) -> None:
    def told(*arguments: str) -> dict[str, Any]:
        found = json.loads(world.s2uc(*arguments, "--json").stdout.splitlines()[-1])
        return found[0] if isinstance(found, list) else found

    def is_described(found: dict[str, Any], term: str, section: str = "s2uc") -> None:
        assert set(found) == set(keys_of(section, term)), term

    with listen() as detector, world.request() as requested:
        prod = world.start(
            *(str(world.programs / "appctrl"), "prod", "--json", "--listen", address_of(detector)),
            env={"SCISTREAM_JOIN": requested.join["PROD"]},
        )
        is_described(
            json.loads(world.cons(requested.join["CONS"]).end().stdout),
            "``prod`` and ``cons``, without a program to start",
            "appctrl",
        )
        is_described(json.loads(prod.end().stdout), "``prod`` and ``cons``, without a program to start", "appctrl")
        is_described(requested.streaming(), "``request`` and ``attach``, when the stream streams")
        uid = requested.uid
        is_described(told("wait", uid), "``wait``")
        is_described(told("attach", uid), "``request`` and ``attach``, when the stream streams")
        is_described(told("status", uid), "``status``")
        is_described(told("list"), "``list``")
        is_described(json.loads(watch(world, uid, "--json").line()), "``watch``, at each interval")
        at = {"list": told("list", "--at", world.lab.s2cs), "status": told("status", uid, "--at", world.lab.s2cs)}
        for status in at.values():
            assert set(status) <= set(StreamStatus.__struct_fields__)
        program = watch(world, uid, "--json")
        program.line()
        is_described(told("release", uid), "``release``")
        requested.forget()
        is_described(json.loads(program.end().stdout.splitlines()[-1]), "``watch``, at the end of the stream")
    is_described(told("facilities", "lab", "--config", str(named)), "``facilities``")
    asked = ("--prod", "lab", "--cons", "centre", "--config", str(named), "--seconds", "1", "--rate", "100Mbit")
    is_described(told("probe", *asked), "``probe``")


# -- completion, by real shells

_COMPLETE = {
    "bash": """eval "$(s2uc completion bash)"
complete_words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _s2uc_completion s2uc; echo "${COMPREPLY[@]}"; }
complete_words s2uc rel; complete_words s2uc release ""; complete_words s2uc --config CONFIG request --prod c""",
    "zsh": """autoload -Uz compinit; compinit -u -d DUMP
compadd() { :; }; _describe() { :; }
eval "$(s2uc completion zsh)"
words=(s2uc rel); CURRENT=2
print -r -- ${(f)"$(env COMP_WORDS="${words[*]}" COMP_CWORD=1 _S2UC_COMPLETE=zsh_complete s2uc)"}
whence -w _s2uc_completion
words=(s2uc release "")
print -r -- ${(f)"$(env COMP_WORDS="${words[*]}" COMP_CWORD=2 _S2UC_COMPLETE=zsh_complete s2uc)"}
words=(s2uc --config CONFIG request --prod c)
print -r -- ${(f)"$(env COMP_WORDS="${words[*]}" COMP_CWORD=5 _S2UC_COMPLETE=zsh_complete s2uc)"}""",
    "fish": """s2uc completion fish | source
complete -C "s2uc rel"; complete -C "s2uc release "; complete -C "s2uc --config CONFIG request --prod c" """,
}


@pytest.mark.parametrize("shell", list(_COMPLETE))
def test_a_shell_completes_commands_uids_and_names_of_facilities(
    world: World, named: Path, tmp_path: Path, shell: str
) -> None:
    needs(shell)
    program = world.start_s2uc("request", "--json", "--prod", world.lab.s2cs, "--cons", world.centre.s2cs)
    uid = json.loads(program.line())["uid"]
    script = _COMPLETE[shell].replace("CONFIG", str(named)).replace("DUMP", str(tmp_path / "dump"))
    env = {**world.env, "PATH": f"{world.programs}:{world.env['PATH']}", "HOME": str(tmp_path)}
    plain = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    ended = subprocess.run(
        [shell, *plain, "-c", script], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    world.s2uc("release", uid)
    program.stop()
    assert ended.stderr == ""
    for word in ("release", uid, "centre"):
        assert word in ended.stdout
    assert "request" not in ended.stdout.split()
    assert "nowhere" not in ended.stdout
