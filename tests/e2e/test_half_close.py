"""A direction that ends in order ends on the far side as well, and the other direction stays open."""

from __future__ import annotations

import socket

import pytest
from harness import World, together

from support.applications import MIB, accept, address_of, listeners, noise, receive, sha256

pytestmark = pytest.mark.usefixtures("nothing_left")

QUESTION = noise(3 * MIB + 1, seed=1)
ANSWER = noise(5 * MIB + 3, seed=2)


def speak_first(sock: socket.socket) -> bytes:
    """Say all, say that this is all, then listen to the end."""
    with sock:
        sock.sendall(QUESTION)
        sock.shutdown(socket.SHUT_WR)
        return receive(sock)


def answer_after_the_end(sock: socket.socket) -> bytes:
    """Listen to the end, and only then speak."""
    with sock:
        heard = receive(sock)
        sock.sendall(ANSWER)
        return heard


def test_a_server_answers_after_the_client_has_ended_its_input(world: World) -> None:
    with listeners(1) as (listener,), world.stream([address_of(listener)]) as stream:
        answer, question = together(
            lambda: speak_first(stream.connect()), lambda: answer_after_the_end(accept(listener))
        )
        assert sha256(question) == sha256(QUESTION)
        assert sha256(answer) == sha256(ANSWER)


def test_a_client_answers_after_the_server_has_ended_its_output(world: World) -> None:
    with listeners(1) as (listener,), world.stream([address_of(listener)]) as stream:
        answer, question = together(
            lambda: speak_first(accept(listener)), lambda: answer_after_the_end(stream.connect())
        )
        assert sha256(question) == sha256(QUESTION)
        assert sha256(answer) == sha256(ANSWER)
