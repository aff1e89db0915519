"""The demonstration's detector and consumer, as real processes over loopback, with a proxy that changes data.

The consumer has to find each kind of fault that it checks for.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

FRAME = 4096
HEADER = 28
DEADLINE = 30.0
LINGER_RESET = struct.pack("ii", 1, 0)

Frames = Iterable[bytes]
Meddling = Callable[[Frames], Frames]


class Detector:
    """A detector process: where it listens, and what it reports at its end."""

    def __init__(self, *arguments: str, channels: int = 1) -> None:
        listen = ["--listen", "127.0.0.1:0"] * channels
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scistream.demo.detector", *listen, "--frame-bytes", str(FRAME), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.listeners: list[str] = json.loads(self.process.stdout.readline())["listeners"]

    def end(self) -> tuple[int, dict[str, Any], str]:
        out, err = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, json.loads(out), err

    def __enter__(self) -> Detector:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=DEADLINE)


def consume(*listeners: str, env: dict[str, str] | None = None) -> tuple[int, dict[str, Any], str]:
    """Run a consumer to its end: its status, its report, what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "scistream.demo.consumer", "--timeout", "20", *listeners],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env={**os.environ, **(env or {})},
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def frames_of(connection: socket.socket) -> Iterator[bytes]:
    """Yield the frames that arrive on a connection, found only by their length field."""
    with connection.makefile("rb") as reader:
        while header := reader.read(HEADER):
            yield header + reader.read(int.from_bytes(header[20:24], "big"))


@contextmanager
def meddler(target: str, meddle: Meddling, end_with_reset: bool = False) -> Iterator[str]:
    """Run a TCP proxy for one connection, which changes the sequence of frames on its way to the consumer."""
    host, port = target.split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(DEADLINE)

    def forward() -> None:
        consumer, _ = listener.accept()
        with consumer, socket.create_connection((host, int(port)), timeout=DEADLINE) as detector:
            for frame in meddle(frames_of(detector)):
                consumer.sendall(frame)
            if end_with_reset:
                consumer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
            else:
                consumer.shutdown(socket.SHUT_WR)
                consumer.recv(1)

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield "{}:{}".format(*listener.getsockname())
        thread.join(DEADLINE)
        assert not thread.is_alive()
    finally:
        listener.close()


def untouched(frames: Frames) -> Frames:
    return frames


def flip_a_byte(frames: Frames) -> Frames:
    for number, frame in enumerate(frames):
        yield frame if number != 5 else frame[:1000] + bytes([frame[1000] ^ 1]) + frame[1001:]


def drop_a_frame(frames: Frames) -> Frames:
    return (frame for number, frame in enumerate(frames) if number != 5)


def repeat_a_frame(frames: Frames) -> Frames:
    for number, frame in enumerate(frames):
        yield frame * 2 if number == 5 else frame


def swap_two_frames(frames: Frames) -> Frames:
    row = list(frames)
    row[5], row[6] = row[6], row[5]
    return row


def cut_inside_a_frame(frames: Frames) -> Frames:
    for number, frame in enumerate(frames):
        if number == 5:
            yield frame[:100]
            return
        yield frame


def cut_before_the_final_frame(frames: Frames) -> Frames:
    return list(frames)[:-1]


def talk_after_the_end(frames: Frames) -> Frames:
    yield from frames
    yield b"one more thing"


def test_all_frames_arrive_and_both_digests_are_equal() -> None:
    total = 37 * FRAME + 123
    with Detector("--bytes", str(total), channels=3) as detector:
        status, found, said = consume(*detector.listeners)
        sent_status, sent, _ = detector.end()
    assert (status, sent_status, said) == (0, 0, "")
    assert found["sha256"] == sent["sha256"]
    assert found["bytes"] == sent["bytes"] == total
    assert found["frames"] == sent["frames"] == 38
    assert found["frames_lost"] == found["frames_repeated"] == found["frames_corrupt"] == 0
    assert [channel["sha256"] for channel in found["channels"]] == [channel["sha256"] for channel in sent["channels"]]
    assert [channel["frames"] for channel in sent["channels"]] == [13, 13, 12]


def test_fewer_frames_than_channels_leave_some_channels_empty() -> None:
    with Detector("--bytes", "1", channels=3) as detector:
        status, found, _ = consume(*detector.listeners)
        sent_status, sent, _ = detector.end()
    assert (status, sent_status, found["bytes"], found["frames"]) == (0, 0, 1, 1)
    assert found["sha256"] == sent["sha256"]


def test_a_detector_given_seconds_sends_for_that_long() -> None:
    with Detector("--seconds", "0.5", channels=2) as detector:
        status, found, _ = consume(*detector.listeners)
        _, sent, _ = detector.end()
    assert status == 0
    assert found["frames"] == sent["frames"] > 2
    assert found["sha256"] == sent["sha256"]
    assert 0.3 < found["seconds"] < 5


def test_the_listeners_may_come_from_the_environment() -> None:
    with Detector("--bytes", "100000", channels=2) as detector:
        status, found, _ = consume(env={"SCISTREAM_LISTENERS": json.dumps(detector.listeners)})
    assert (status, found["bytes"]) == (0, 100000)


@pytest.mark.parametrize("value", ["", "127.0.0.1:5000", "[]", "[5000]", '["127.0.0.1"]'])
def test_an_environment_without_listeners_is_bad_usage(value: str) -> None:
    status, _, said = consume(env={"SCISTREAM_LISTENERS": value})
    assert status == 2
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("meddle", "counts", "sentence"),
    [
        pytest.param(flip_a_byte, {"frames_corrupt": 1}, "channel 0: frame 5 is corrupt", id="flipped byte"),
        pytest.param(drop_a_frame, {"frames_lost": 1}, "channel 0: frame 5 is lost", id="lost frame"),
        pytest.param(repeat_a_frame, {"frames_repeated": 1}, "channel 0: frame 5 came a second time", id="repeated"),
        pytest.param(swap_two_frames, {}, "channel 0: frame 5 came after frame 6", id="reordered"),
        pytest.param(cut_inside_a_frame, {}, "100 bytes into frame 5, without a final frame", id="cut"),
        pytest.param(cut_before_the_final_frame, {}, "before frame 20, without a final frame", id="no final frame"),
        pytest.param(talk_after_the_end, {}, "channel 0: bytes after the final frame", id="rubbish"),
    ],
)
def test_the_consumer_finds_what_was_done_to_the_frames(
    meddle: Meddling, counts: dict[str, int], sentence: str
) -> None:
    none = {"frames_lost": 0, "frames_repeated": 0, "frames_corrupt": 0}
    with (
        Detector("--bytes", str(20 * FRAME)) as detector,
        meddler(detector.listeners[0], meddle) as between,
    ):
        status, found, said = consume(between)
    assert status == 1
    assert {name: found[name] for name in none} == {**none, **counts}
    assert any(sentence in fault for fault in found["faults"]), found["faults"]
    assert sentence in said


def test_the_same_proxy_that_touches_nothing_is_not_blamed() -> None:
    with ExitStack() as stack:
        detector = stack.enter_context(Detector("--bytes", str(20 * FRAME), channels=2))
        between = [stack.enter_context(meddler(listener, untouched)) for listener in detector.listeners]
        status, found, said = consume(*between)
        _, sent, _ = detector.end()
    assert (status, found["faults"], said) == (0, [], "")
    assert found["sha256"] == sent["sha256"]


@pytest.mark.parametrize("meddle", [untouched, cut_inside_a_frame])
def test_a_reset_is_not_taken_for_an_end(meddle: Meddling) -> None:
    with (
        Detector("--bytes", str(20 * FRAME)) as detector,
        meddler(detector.listeners[0], meddle, end_with_reset=True) as between,
    ):
        status, found, _ = consume(between)
    assert status == 1
    assert any("reset" in fault for fault in found["faults"]), found["faults"]


def test_two_channels_in_the_wrong_order_are_found() -> None:
    with Detector("--bytes", str(20 * FRAME), channels=2) as detector:
        status, found, _ = consume(*reversed(detector.listeners))
    assert status == 1
    assert "channel 0: frame 1 of channel 1 came here" in found["faults"]


def test_a_listener_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = "{}:{}".format(*closed.getsockname())
    status, found, _ = consume(address)
    assert status == 1
    assert address in found["faults"][0]


def test_a_detector_whose_consumer_goes_away_says_so() -> None:
    with Detector("--seconds", "60", channels=2) as detector:
        host, port = detector.listeners[1].split(":")
        with socket.create_connection((host, int(port)), timeout=DEADLINE) as consumer:
            consumer.recv(1)
        status, _, said = detector.end()
    assert status == 1
    assert "detector: channel 1: the connection was lost after" in said
    assert "detector: channel 0: no connection before" in said


def test_a_detector_whose_consumer_takes_nothing_any_more_ends_and_says_so() -> None:
    with Detector("--seconds", "600", "--timeout", "0.5") as detector:
        host, port = detector.listeners[0].split(":")
        with socket.create_connection((host, int(port)), timeout=DEADLINE) as consumer:
            consumer.recv(1)
            status, _, said = detector.end()
    assert status == 1
    assert "detector: channel 0: the connection was lost after" in said
    assert "timed out" in said


def test_a_detector_that_cannot_listen_is_bad_usage() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        done = subprocess.run(
            [sys.executable, "-m", "scistream.demo.detector", "--bytes", "1", "--listen", address],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
    assert done.returncode == 2
    assert f"cannot listen on {address}" in done.stderr


def test_a_detector_that_no_one_visits_ends_on_sigterm() -> None:
    with Detector("--bytes", "1") as detector:
        assert detector.process.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(detector.process.stdout, selectors.EVENT_READ)
            assert ready.select(timeout=0) == []
        detector.process.terminate()
        assert detector.process.wait(DEADLINE) == -signal.SIGTERM
