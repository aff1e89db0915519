"""Lines are sent at once: none waits until the last one is acknowledged, which takes a kernel 40 ms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from link_in_memory import Owner
from OpenSSL import SSL
from twisted.internet import reactor as running
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, serverFromString
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater

from scistream.links.link import Link
from scistream.tls.endpoints import wrap_client_endpoint, wrap_server_factory

reactor: Any = running


@contextmanager
def closed_in_the_end(links: list[Link]) -> Iterator[None]:
    try:
        yield
    finally:
        for link in links:
            link.transport.abortConnection()


async def _both_ends_have_no_delay(tls: bool) -> None:
    links: list[Link] = []

    def build(*, accepted: bool) -> Link:
        links.append(Link(Owner(), reactor, (lambda _: "somebody") if tls else None, accepted=accepted))
        return links[-1]

    context = SSL.Context(SSL.TLS_METHOD)
    factory: Any = Factory.forProtocol(lambda: build(accepted=True))
    listening = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(
        wrap_server_factory(context, factory, reactor) if tls else factory
    )
    with closed_in_the_end(links):
        endpoint: Any = HostnameEndpoint(reactor, "127.0.0.1", listening.getHost().port)
        if tls:
            endpoint = wrap_client_endpoint(context, "127.0.0.1", endpoint, reactor)
        await connectProtocol(endpoint, build(accepted=False))
        limit = reactor.seconds() + 10
        while any(link.transport is None for link in links) or len(links) < 2:
            assert reactor.seconds() < limit, "the link was not accepted"
            await deferLater(reactor, 0.01)
        assert [bool(link.transport.getTcpNoDelay()) for link in links] == [True, True]
    await listening.stopListening()


@pytest.mark.parametrize("tls", [False, True])
def test_neither_end_of_a_link_waits_for_the_other_to_confirm(tls: bool) -> Any:
    return Deferred.fromCoroutine(_both_ends_have_no_delay(tls))
