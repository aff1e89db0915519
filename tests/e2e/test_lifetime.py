"""`s2uc extend` and `s2uc request --wait-for-release`, and streams that are extended while bytes flow."""

from __future__ import annotations

import json
import signal

import pytest
from harness import World

from support.applications import address_of, connect, listen, receive_exactly
from support.waiting import until

pytestmark = pytest.mark.usefixtures("nothing_left")


def seconds_left(world: World, uid: str) -> list[float]:
    sides = json.loads(world.s2uc("status", "--json", uid).stdout)["streams"][uid]
    return sorted(side["seconds_left"] for side in sides.values())


def test_an_extended_stream_carries_bytes_on_its_old_connections_and_on_new_ones(world: World) -> None:
    with listen() as detector, world.request(1, "1Gbit", "--expires", "10m") as requested:
        world.prod(requested.join["PROD"], [address_of(detector)]).end()
        requested.streaming()
        listener = world.cons_listeners(requested.join["CONS"])[0]
        with connect(listener) as old:
            camera, _ = detector.accept()
            with camera:
                ended = json.loads(world.s2uc("extend", requested.uid, "--by", "4h", "--json").stdout)
                assert (ended["uid"], ended["state"]) == (requested.uid, "Extended")
                assert ended["seconds_left"] == pytest.approx(15000.0, abs=60.0)
                assert seconds_left(world, requested.uid) == pytest.approx([15000.0] * 2, abs=60.0)
                camera.sendall(b"frame" * 1000)
                assert receive_exactly(old, 5000) == b"frame" * 1000
                with connect(listener) as new:
                    second, _ = detector.accept()
                    with second:
                        second.sendall(b"image" * 1000)
                        assert receive_exactly(new, 5000) == b"image" * 1000
        (listed,) = json.loads(world.s2uc("list", "--json").stdout)
        assert listed["expires_at"] - listed["asked_at"] == pytest.approx(15000.0, abs=60.0)
        refused = world.s2uc("extend", requested.uid, "--by", "7d", check=False)
        assert refused.returncode == 1
        assert "longest_expires" in refused.stderr
        assert "the stream ends as before" in refused.stderr
        assert seconds_left(world, requested.uid) == pytest.approx([15000.0] * 2, abs=120.0)
    for facility in world.facilities:
        lines = [json.loads(line) for line in facility.store.with_suffix(".audit.jsonl").read_text().splitlines()]
        [extended] = [line for line in lines if line["event"] == "extend" and line["uid"] == requested.uid]
        assert extended["life"] == pytest.approx(15000.0, abs=60.0)
        assert extended["by"] == "scistream:user:ada"


@pytest.mark.parametrize("how", ["ctrl-c", "elsewhere"])
def test_a_request_that_waits_for_the_release_ends_with_the_stream(world: World, how: str) -> None:
    with listen() as detector, world.request(1, "1Gbit", "--wait-for-release") as requested:
        world.prod(requested.join["PROD"], [address_of(detector)]).end()
        assert json.loads(requested.program.line())["state"] == "Streaming"
        assert requested.program.process.poll() is None
        if how == "ctrl-c":
            requested.program.process.send_signal(signal.SIGINT)
        else:
            world.s2uc("release", requested.uid)
        ended = json.loads(requested.program.line())
        requested.program.end(status=0)
        by = {"ctrl-c": "this command", "elsewhere": "another command"}[how]
        assert ended == {"uid": requested.uid, "state": "Released", "by": by}
        until(lambda: requested.state("PROD") == requested.state("CONS") == "Released", lambda: str(requested.uid))
        requested.forget()


def test_a_request_that_waits_for_the_release_fails_with_the_stream(world: World) -> None:
    with listen() as detector, world.request(1, "1Gbit", "--wait-for-release", "--expires", "4s") as requested:
        world.prod(requested.join["PROD"], [address_of(detector)]).end()
        assert json.loads(requested.program.line())["state"] == "Streaming"
        ended = json.loads(requested.program.line())
        assert (ended["state"], ended["error"]["code"]) == ("Failed", "expired")
        assert "expired" in requested.program.end(status=1).stderr
        requested.forget()


def test_what_has_happened_is_shown_with_the_side_and_the_time(world: World) -> None:
    with listen() as detector, world.request(1, "1Gbit") as requested:
        world.prod(requested.join["PROD"], [address_of(detector)]).end()
        requested.streaming()
        requested.release()
    shown = json.loads(world.s2uc("events", "--json", "--at", world.lab.s2cs, requested.uid).stdout)
    assert [one["state"] for one in shown["events"] if one["state"]] == [
        *("Reserving", "Listening", "Ready", "Streaming", "Releasing", "Released")
    ]
    assert any(one["text"] == "release requested by scistream:user:ada" for one in shown["events"])
    assert {one["role"] for one in shown["events"]} == {"PROD"}
    lines = world.s2uc("events", "--at", world.centre.s2cs, requested.uid).stdout.splitlines()
    assert lines[0].endswith("consumer  Reserving: requested")
    assert len(lines[0].split()[0]) == len("2026-01-01")
