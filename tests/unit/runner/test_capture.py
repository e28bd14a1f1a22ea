from hypothesis import given
from hypothesis import strategies as st

from callgate_runner.capture import Bounded, HeadAndTail

CHUNKS = st.lists(st.binary(max_size=50), max_size=20)


@given(chunks=CHUNKS, limit=st.integers(min_value=1, max_value=200))
def test_head_and_tail_are_the_first_and_last_bytes_however_they_come(chunks: list[bytes], limit: int) -> None:
    stream = HeadAndTail(limit)
    head = b"".join(stream.feed(chunk) for chunk in chunks)
    whole = b"".join(chunks)
    assert stream.total == len(whole)
    assert stream.gap == (len(whole) > limit)
    if stream.gap:
        assert head == whole[: limit // 2]
        assert stream.tail == whole[-(limit - limit // 2) :]
    else:
        assert head + stream.tail == whole


@given(chunks=CHUNKS, limit=st.integers(min_value=0, max_value=200))
def test_a_bounded_stream_is_kept_whole_or_not_at_all(chunks: list[bytes], limit: int) -> None:
    stream = Bounded(limit)
    for chunk in chunks:
        stream.feed(chunk)
    whole = b"".join(chunks)
    assert stream.truncated == (len(whole) > limit)
    assert stream.data == (b"" if stream.truncated else whole)
    assert stream.total == len(whole)
