"""One stream as a user sets it up: two files for `s2uc`, and `appctrl` for each of two unmodified programs."""

from __future__ import annotations

import json
import re
import shlex
import uuid
from pathlib import Path

import pytest
from harness import World, free_ports

from support.applications import MIB
from support.facilities import HOST
from support.requirements import needs

pytestmark = pytest.mark.usefixtures("nothing_left")

AMOUNT = 64 * MIB


def export_line(line: str) -> str:
    """Return the join string in a line for a shell."""
    word, setting = shlex.split(line)
    name, _, value = setting.partition("=")
    assert (word, name) == ("export", "SCISTREAM_JOIN")
    return value


def test_single_stream_from_a_request_file_to_a_release_file(world: World, tmp_path: Path) -> None:
    needs("iperf3")
    port = free_ports()
    ask = tmp_path / "request.json"
    between = {"prod": world.lab.s2cs, "cons": world.centre.s2cs}
    ask.write_text(json.dumps({"cmd": "REQ", "num_conn": 1, "rate": 20000, **between}))
    request = world.start_s2uc("--req-file", str(ask))
    key, _, uid = request.line().partition(": ")
    assert (key, uid) == ("uid", str(uuid.UUID(uid)))
    assert re.fullmatch(r"ends: \d{4}-\d\d-\d\d \d\d:\d\d, in 24 h", request.line())
    texts = [request.line() for _ in range(4)]
    assert texts[0].startswith("#")
    assert "producer" in texts[0]
    assert texts[2].startswith("#")
    assert "consumer" in texts[2]
    producer, consumer = export_line(texts[1]), export_line(texts[3])
    assert producer.startswith(f"scistream://{uid}:")
    assert producer != consumer

    server = world.prod(producer, [f"{HOST}:{port}"], ["iperf3", "-s", "-1", "-p", str(port)])
    options = ["-n", str(AMOUNT), "--json"]
    client = world.cons(consumer, ["iperf3", "-c", "{host}", "-p", "{port}", *options])
    *reserved, first, second, last = request.end().stdout.splitlines()[6:]
    lan, wan = first.split(" --> ")
    assert reserved == [f"producer side listens on {wan}", f"consumer side listens on {lan}"]
    assert second == f"{wan} --> {HOST}:{port}"
    assert world.centre.gateways[0].offers(lan)
    assert world.lab.gateways[0].offers(wan)
    assert re.fullmatch(r"\*\*\* Process time: \d+\.\d+ sec\.", last)

    report = json.loads(client.end().stdout)
    assert "error" not in report
    assert report["start"]["connecting_to"] == {"host": HOST, "port": int(lan.rpartition(":")[2])}
    sent, received = (report["end"][sum_of]["bytes"] for sum_of in ("sum_sent", "sum_received"))
    assert sent >= AMOUNT
    assert AMOUNT / 2 < received <= sent  # its server stops counting when the client is done, not when all is there
    server.end()

    sides = json.loads(world.s2uc("status", uid, "--json").stdout)["streams"][uid]
    assert {role: side["state"] for role, side in sides.items()} == {"PROD": "Streaming", "CONS": "Streaming"}
    for side in sides.values():
        (figures,) = side["figures"]
        assert figures["bytes_to_producer"] >= received
        assert (figures["accepted"], figures["connections"]) == (2, 0)

    end = tmp_path / "release.json"
    end.write_text(json.dumps({"cmd": "REL", "uid": uid}))
    assert world.s2uc("--req-file", str(end)).stdout == f"released {uid}\n"
    assert world.s2uc("list", "--json").stdout == "[]\n"
