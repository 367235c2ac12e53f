import pytest

from penstock.sse import SseReader

STREAM = (
    "\ufeff: comment\r\n\r\nid: 1\r\nevent: delta\r\ndata: ä\r\ndata:b\r\n\r\n"
    "data: c\n\n\nevent: empty\n\nid\rdata: {\r\r"
    "\ufeffdata: no field\ndata: \u2028\u2029\u0085\ufeff\n\ndata: unfinished"
).encode()
EVENTS = [
    ("delta", "ä\nb", "1"),
    ("message", "c", ""),
    ("message", "{", ""),
    ("message", "\u2028\u2029\u0085\ufeff", ""),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_events_are_the_same_in_chunks_of_any_size(size: int) -> None:
    reader = SseReader()
    chunks = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert [event for chunk in chunks for event in reader.feed(chunk)] == EVENTS
