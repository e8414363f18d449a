"""What a law tries on a method: some of it in every run, all of it with `-m slow`."""

import zlib

import pytest

from tests.laws.rows import some


@pytest.fixture
def chosen(request):
    """A choice of items by the name of the test; all of them where it is slow."""
    if request.node.get_closest_marker("slow"):
        return list
    start = zlib.crc32(request.node.name.encode())
    return lambda items: some(items, start)
