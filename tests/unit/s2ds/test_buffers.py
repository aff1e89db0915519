"""What relays borrow: pools that keep a little, within limits."""

from __future__ import annotations

import fcntl
import os
import sys

import pytest

from scistream.s2ds.relay.buffers import Buffers, Pipe, Pipes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gateways run on Linux")


def is_open(pipe: Pipe) -> bool:
    return os.path.exists(f"/proc/self/fd/{pipe.reading}") and os.path.exists(f"/proc/self/fd/{pipe.writing}")


def borrow(pipes: Pipes) -> Pipe:
    pipe = pipes.borrow()
    assert pipe is not None
    return pipe


def test_a_buffer_that_is_returned_is_reused() -> None:
    buffers = Buffers(1000, spare=1)
    first, second = buffers.borrow(), buffers.borrow()
    assert len(first.view) == 1000
    buffers.give_back(first)
    buffers.give_back(second)  # one too many
    assert buffers.borrow() is first
    assert buffers.borrow() is not second


def test_an_empty_pipe_is_kept_and_one_that_holds_something_is_not() -> None:
    pipes = Pipes(65536)
    first, second = borrow(pipes), borrow(pipes)
    os.write(first.writing, b"of another connection")
    first.held = 21
    pipes.give_back(first)
    pipes.give_back(second)
    assert not is_open(first)
    assert borrow(pipes) is second
    pipes.give_back(second)
    pipes.close()
    assert not is_open(second)


def test_a_pool_of_pipes_has_a_limit() -> None:
    pipes = Pipes(65536, spare=1, most=2)
    first, second = borrow(pipes), borrow(pipes)
    assert pipes.borrow() is None
    pipes.give_back(first)
    pipes.give_back(second)
    assert is_open(first)
    assert not is_open(second)
    pipes.close()


def test_where_the_system_allows_no_larger_pipe_a_usual_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.fcntl

    def fcntl_of_a_user_with_many(fd: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETPIPE_SZ:
            raise PermissionError(1, "Operation not permitted")
        return real(fd, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", fcntl_of_a_user_with_many)
    pipes = Pipes(1024 * 1024)
    pipe = borrow(pipes)
    assert pipe.size == 65536
    pipes.give_back(pipe)
    pipes.close()


def test_a_pipe_too_small_to_be_of_use_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fcntl_of_a_user_with_too_many(_fd: int, command: int, _argument: int = 0) -> int:
        if command == fcntl.F_SETPIPE_SZ:
            raise PermissionError(1, "Operation not permitted")
        return 8192

    monkeypatch.setattr(fcntl, "fcntl", fcntl_of_a_user_with_too_many)
    before = set(os.listdir("/proc/self/fd"))
    assert Pipes(1024 * 1024).borrow() is None
    assert set(os.listdir("/proc/self/fd")) == before
