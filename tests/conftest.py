"""For all tests; that it is here also lets them import the modules beside it."""

from __future__ import annotations

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a test that looks at what the others of its file have done run after them."""
    for item in [item for item in items if item.get_closest_marker("after_the_others")]:
        items.remove(item)
        others = [index for index, other in enumerate(items) if other.path == item.path]
        items.insert(others[-1] + 1 if others else len(items), item)
