"""Fixtures of tests on a testbed: see `testbed` and `testbed_facilities`."""

from __future__ import annotations

from collections.abc import Iterator

import netns
import pytest
from testbed import Testbed
from testbed_facilities import Facilities

from support.requirements import missing, needs_root
from support.waiting import until


@pytest.fixture(scope="session", autouse=True)
def _forked(fork_server: None) -> None:
    """Fork the project's commands."""


@pytest.fixture(scope="session")
def testbed() -> Iterator[Testbed]:
    """A testbed, shared by all tests; nothing of it may be left in the end."""
    needs_root("network namespaces need root")
    lack = netns.missing()
    if lack is not None:
        missing(lack)
    with Testbed.of_its_own() as testbed:
        yield testbed
    assert testbed.leftovers() == []


@pytest.fixture
def wan(testbed: Testbed) -> Iterator[Testbed]:
    """Provide the testbed to a test that disturbs the WAN, once no packet of an earlier test can come any more.

    TCP repeats packets of connections that an earlier test has closed; they would be counted as packets of this test.
    """
    testbed.wan(clear=True)
    until(lambda: not testbed.unacknowledged(), lambda: f"not acknowledged: {testbed.unacknowledged()}")
    testbed.reseed(1)
    yield testbed
    testbed.wan(clear=True)


@pytest.fixture(scope="module")
def facilities(testbed: Testbed) -> Iterator[Facilities]:
    """SciStream on the testbed, shared by the tests of a file."""
    with Facilities(testbed) as facilities:
        yield facilities
