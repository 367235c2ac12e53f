import pytest

from penstock.sse import SseReader

STREAM = (
    "\ufeff: comment\r\n\r\nid: 1\r\nevent: delta\r\ndata: ä\r\ndata:b\r\n\r\n"
    "data: c\n\n\nevent: empty\n\nid\rdata: {\r\rdata: unfinished"
).encode()
EVENTS = [("delta", "ä\nb", "1"), ("message", "c", ""), ("message", "{", "")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_events_are_the_same_in_chunks_of_any_size(size: int) -> None:
    reader = SseReader()
    chunks = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert [event for chunk in chunks for event in reader.feed(chunk)] == EVENTS
