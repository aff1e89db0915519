"""Nothing waits without a limit: calls that block until somebody else does something name how long, at most.

The source is read, not run: product, tests and benchmark, and scripts inside the tests' texts are not looked at. What a
reader of source cannot tell (a socket's timeout, a Deferred) is for other tests.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.no_cover  # the source is read, not run

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    file for folder in ("scistream", "twisted", "bench", "tests") for file in (ROOT / folder).rglob("*.py")
)

WITHOUT_ARGUMENTS = {"wait", "join", "result", "exception", "acquire", "get", "select"}
"""Methods that wait for ever if they are called without an argument, whatever has them."""
WITH_TIMEOUT = {
    "run": 99,
    "call": 99,
    "check_call": 99,
    "check_output": 99,
    "communicate": 1,
    "create_connection": 1,
    "urlopen": 2,
}
"""Calls that take a `timeout`, and which positional argument that is."""
OF_SUBPROCESS = {"run", "call", "check_call", "check_output"}

ALLOWED = {
    ("bench/connection.py", "socket.create_connection(_listener.getsockname())"): "it listens in this process",
    ("bench/stages.py", "socket.create_connection(listener.getsockname())"): "it listens in this process",
    ("bench/stages.py", "os.waitpid(child, 0)"): "that process ends with the connection, which is shut down",
    ("scistream/app/handover.py", "os.waitpid(intermediate, 0)"): "that process only forks and ends",
    ("scistream/demo/consumer.py", "channel.join()"): "a channel ends by itself: its socket has a timeout",
    ("scistream/demo/detector.py", "channel.join()"): "a channel ends by itself: its socket has a timeout",
    ("scistream/s2ds/relay/token_bucket.py", "self._store.get()"): "a value in shared memory",
    ("scistream/s2ds/relay/throttle.py", "self._bucket.wait()"): "tells how long to wait, and does not",
    (
        "scistream/standard_streams.py",
        "room.poll()",
    ): "as every program waits for who reads its output",
    (
        "tests/support/fork_server.py",
        "os.waitpid(order['wait'], 0)",
    ): "the test that asks has a limit, and ends this process",
    ("tests/e2e/test_secrets.py", "os.waitpid(process.pid, 0)"): "the process was sent a signal that ends it",
    ("tests/testbed/wan_router.py", "self._held.wait()"): "tells how long to wait, and does not",
    ("tests/e2e/test_relay.py", "os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)"): "it was sent SIGKILL",
    ("tests/unit/s2ds/test_shared_figures.py", "shared.tokens(slot, 1).get()"): "a value in shared memory",
    ("tests/unit/s2ds/test_capacity.py", "bucket.wait()"): "tells how long to wait, and does not",
    ("tests/unit/s2ds/test_watchdog.py", "os.waitid(os.P_PID, busy, os.WSTOPPED | os.WNOWAIT)"): "it was sent SIGSTOP",
    ("tests/unit/tls/test_control_tls.py", "os.waitpid(service, 0)"): "that process reads a file and ends",
    ("tests/unit/test_standard_streams.py", "os.waitpid(child, 0)"): "both its outputs have ended",
}
"""What only looks like such a wait, or ends by itself: where, which call, and why."""


def waits(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls in a module that can wait without a limit."""
    awaited = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Await)}
    polls = {name for node in ast.walk(tree) if isinstance(node, ast.Assign) for name in _polls(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and id(node) not in awaited and _can_wait_for_ever(node, polls):
            yield node


def _polls(node: ast.Assign) -> Iterator[str]:
    """Yield the names assigned a `select.poll`, whose method `poll` waits, unlike that of a process."""
    if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) in ("select.poll", "select.epoll"):
        yield from map(ast.unparse, node.targets)


def _can_wait_for_ever(call: ast.Call, polls: set[str]) -> bool:
    if not isinstance(call.func, ast.Attribute):
        return (
            isinstance(call.func, ast.Name) and call.func.id in ("create_connection", "urlopen") and _endless(call, 1)
        )
    name, owner = call.func.attr, ast.unparse(call.func.value)
    if owner == "select" and name == "select":
        return len(call.args) < 4
    if owner == "os":
        return name in ("wait", "waitpid", "waitid") and "WNOHANG" not in ast.unparse(call)
    if owner == "fcntl":
        return name in ("flock", "lockf") and not any(word in ast.unparse(call) for word in ("LOCK_NB", "LOCK_UN"))
    if name == "poll":
        return owner in polls and not call.args
    if name in OF_SUBPROCESS:
        return owner == "subprocess" and _endless(call, 99)
    if name in WITH_TIMEOUT:
        return _endless(call, WITH_TIMEOUT[name])
    return name in WITHOUT_ARGUMENTS and not call.args and not call.keywords


def _endless(call: ast.Call, place: int) -> bool:
    """Return True if a call that takes a `timeout` has none, or None."""
    given = [keyword.value for keyword in call.keywords if keyword.arg in ("timeout", None)] + call.args[place:]
    return not given or (isinstance(given[0], ast.Constant) and given[0].value is None)


def test_every_wait_in_the_source_has_a_limit() -> None:
    found = set()
    for file in SOURCES:
        place = str(file.relative_to(ROOT))
        for call in waits(ast.parse(file.read_text())):
            found.add((place, ast.unparse(call)))
    endless = found - set(ALLOWED)
    assert not endless, "\n".join(f"{place}: {code}" for place, code in sorted(endless))
    assert set(ALLOWED) <= found, f"allowed and not there any more: {set(ALLOWED) - found}"


@pytest.mark.parametrize(
    "code",
    [
        "subprocess.run(['x'])",
        "subprocess.run(['x'], check=True, timeout=None)",
        "process.communicate()",
        "process.communicate(b'x')",
        "process.wait()",
        "thread.join()",
        "event.wait()",
        "future.result()",
        "lock.acquire()",
        "queue.get()",
        "socket.create_connection(('h', 1))",
        "create_connection(('h', 1))",
        "select.select([a], [], [])",
        "selector.select()",
        "looking = select.poll()\nlooking.poll()",
        "os.waitpid(1, 0)",
        "fcntl.flock(1, fcntl.LOCK_EX)",
        "urlopen('http://h')",
    ],
)
def test_a_wait_without_a_limit_is_found(code: str) -> None:
    assert len(list(waits(ast.parse(code)))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "subprocess.run(['x'], timeout=5)",
        "process.communicate(timeout=5)",
        "process.communicate(b'x', 5)",
        "process.wait(5)",
        "thread.join(5)",
        "', '.join(words)",
        "event.wait(timeout=5)",
        "socket.create_connection(('h', 1), 5)",
        "socket.create_connection(('h', 1), timeout=limit)",
        "select.select([a], [], [], 0)",
        "process.poll()",
        "mapping.get('x')",
        "os.waitpid(1, os.WNOHANG)",
        "fcntl.flock(1, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "self.run(order)",
    ],
)
def test_what_does_not_wait_or_has_a_limit_is_not_found(code: str) -> None:
    assert list(waits(ast.parse(code))) == []
