"""What is kept of ranges that were read, however often they are."""

import zlib

from loramerge.adapters import spans
from loramerge.adapters.spans import Spans


def test_a_range_is_kept_once_with_each_content_that_it_had(monkeypatch):
    monkeypatch.setattr(spans, "FEW", 4)
    found = Spans()
    found._most = 4
    for _ in range(100):
        for start in range(3):
            found.note(memoryview(b"abc"), start)
        assert len(found) <= 8
    wanted = {(start, 3, zlib.crc32(b"abc")) for start in range(3)}
    assert set(found) == wanted
    found.note(memoryview(b"abd"), 0)
    assert set(found) == wanted | {(0, 3, zlib.crc32(b"abd"))}


def test_many_ranges_are_put_together_seldom(monkeypatch):
    monkeypatch.setattr(spans, "FEW", 4)
    found, seen = Spans(), []
    found._most = 4
    monkeypatch.setattr(
        spans, "sorted", lambda rows: (seen.append(len(rows)), sorted(rows))[1], raising=False
    )
    for start in range(1000):
        found.note(memoryview(b"x"), start)
    assert len(found) == len(set(found)) == 1000
    assert sum(seen) < 4000
