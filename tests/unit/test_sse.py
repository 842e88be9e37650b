"""The event stream format, by the cases of the WHATWG HTML standard and under any chunking."""

import re
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.protocol.sse import EventTooLarge, ServerSentEvent, SSEDecoder


def decode(*chunks: bytes) -> list[tuple[str, bytes]]:
    decoder = SSEDecoder()
    return [(event.event, event.data) for chunk in chunks for event in decoder.feed(chunk)]


def test_data_lines_are_joined_by_a_line_feed() -> None:
    assert decode(b"data: YHOO\ndata: +2\ndata: 10\n\n") == [("", b"YHOO\n+2\n10")]


def test_events_without_a_name_follow_each_other() -> None:
    stream = b"data: first message\n\ndata: second one, of\ndata: two lines\n\ndata: third\n\n"
    assert decode(stream) == [("", b"first message"), ("", b"second one, of\ntwo lines"), ("", b"third")]


def test_every_event_has_the_name_given_with_it_wherever_the_line_stands() -> None:
    stream = b"event: add\ndata: 73857293\n\ndata: 2153\nevent: remove\n\nevent: add\ndata: 113411\n\n"
    assert decode(stream) == [("add", b"73857293"), ("remove", b"2153"), ("add", b"113411")]


def test_a_line_that_begins_with_a_colon_is_a_comment_even_when_it_is_nothing_else() -> None:
    assert decode(b":\n:data: no\n::\ndata: yes\n:\n\n") == [("", b"yes")]


def test_a_stream_of_comments_and_empty_lines_makes_no_event() -> None:
    assert decode(b"\n\n\r\n: keep-alive\n\n\r\r:\n") == []


def test_a_name_of_one_space_is_empty_and_of_two_is_not() -> None:
    assert decode(b"event: \ndata: 1\n\nevent:  \ndata: 2\n\n") == [("", b"1"), (" ", b"2")]


def test_comments_ids_and_retry_times_make_no_event() -> None:
    stream = b": test stream\n\ndata: first\nid: 1\n\ndata:second\nid\n\ndata:  third\nretry: 10\n\n"
    assert decode(stream) == [("", b"first"), ("", b"second"), ("", b" third")]


def test_a_data_line_without_value_makes_an_empty_event_and_an_unfinished_one_makes_none() -> None:
    assert decode(b"data\n\ndata\ndata\n\ndata:") == [("", b""), ("", b"\n")]


def test_only_one_space_after_the_colon_is_dropped() -> None:
    assert decode(b"data:test\n\ndata: test\n\ndata:  test\n\n") == [
        ("", b"test"),
        ("", b"test"),
        ("", b" test"),
    ]


def test_the_name_belongs_to_one_event_and_the_last_one_given_counts() -> None:
    assert decode(b"event: a\nevent: b\ndata: 1\n\ndata: 2\n\n") == [("b", b"1"), ("", b"2")]


def test_a_name_without_data_makes_no_event_and_is_forgotten() -> None:
    assert decode(b"event: lost\n\ndata: 1\n\n") == [("", b"1")]


def test_fields_nobody_knows_are_ignored_and_names_are_case_sensitive() -> None:
    assert decode(b"Data: no\nwhatever\nx: y\ndata: yes\n\n") == [("", b"yes")]


def test_an_event_that_the_stream_ends_in_is_dropped() -> None:
    assert decode(b"data: whole\n\ndata: half\n") == [("", b"whole")]


def test_a_byte_order_mark_is_dropped_at_the_start_only() -> None:
    assert decode(b"\xef", b"\xbb\xbfdata: 1\n\n\xef\xbb\xbfdata: 2\n\n") == [("", b"1")]


def test_a_colon_in_the_value_belongs_to_it() -> None:
    assert decode(b'data: {"a": "b: c"}\n\n') == [("", b'{"a": "b: c"}')]


def test_a_second_byte_order_mark_belongs_to_the_line() -> None:
    assert decode(b"\xef\xbb\xbf\xef\xbb\xbfdata: 1\n\ndata: 2\n\n") == [("", b"2")]


def test_a_stream_that_ends_within_its_byte_order_mark_or_has_half_of_one_is_read() -> None:
    assert decode(b"\xef\xbb") == []
    assert decode(b"\xef\xbbdata: 1\n\ndata: 2\n\n") == [("", b"2")]


def test_a_line_feed_that_follows_in_the_next_chunk_ends_no_second_line() -> None:
    assert decode(b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n") == [("", b"a\nb")]


def test_an_event_ended_by_a_lone_carriage_return_is_out_at_once() -> None:
    assert decode(b"data: a\r\r") == [("", b"a")]


def test_invalid_utf8_in_a_name_is_replaced() -> None:
    assert decode(b"event: \xff\ndata: 1\n\n") == [("\ufffd", b"1")]


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([b"data: " + b"x" * 200], id="one line without an end"),
        pytest.param([b"data: xx"] + [b"x"] * 200, id="the same, byte by byte"),
        pytest.param([b"data: 1234567890\n"] * 20, id="many lines"),
        pytest.param([b"data\n" * 200], id="many empty lines"),
        pytest.param([b"data: " + b"x" * 200 + b"\n\n"], id="a whole event"),
    ],
)
def test_an_event_past_the_bound_is_refused_in_every_shape(chunks: list[bytes]) -> None:
    decoder = SSEDecoder(max_event_bytes=100)
    with pytest.raises(EventTooLarge, match="100 bytes"):
        deque(map(decoder.feed, chunks))


def test_the_bound_is_on_one_event_and_comments_do_not_add_up() -> None:
    decoder = SSEDecoder(max_event_bytes=100)
    events = [event for _ in range(1000) for event in decoder.feed(b": ping\ndata: " + b"x" * 80 + b"\n\n")]
    assert len(events) == 1000


# Surrogates have no place in UTF-8.
_characters = st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])
_lines = st.one_of(
    st.sampled_from([b"", b"", b"data", b"data:", b"data: ", b"event: x", b"event", b": note", b"id: 7"]),
    st.builds(lambda text: b"data: " + text.encode(), st.text(_characters)),
)


@given(
    lines=st.lists(st.tuples(_lines, st.sampled_from([b"\n", b"\r", b"\r\n"])), max_size=30),
    bom=st.booleans(),
    data=st.data(),
)
def test_neither_chunk_boundaries_nor_line_ends_change_the_events(
    lines: list[tuple[bytes, bytes]], bom: bool, data: st.DataObject
) -> None:
    # A lone CR followed by an empty line that ends in LF would read as CRLF: that is another stream.
    ends = (
        [b"\r\n" if end == b"\r" else end for _, end in lines]
        if data.draw(st.booleans())
        else [lines[0][1] for _ in lines]
    )
    text = [line for line, _ in lines]
    stream = (b"\xef\xbb\xbf" if bom else b"") + b"".join(
        line + end for line, end in zip(text, ends, strict=True)
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decode(*chunks) == decode(b"".join(line + b"\n" for line in text))
    assert decode(*(bytes([byte]) for byte in stream)) == decode(*chunks)


def by_the_standard(stream: bytes) -> list[tuple[str, bytes]]:
    """The events of a whole stream, by the standard's rules one after the other."""
    stream = stream.removeprefix(b"\xef\xbb\xbf")
    *lines, _ = re.split(b"\r\n|\n|\r", stream)  # what no line end follows is no line
    events: list[tuple[str, bytes]] = []
    name, data = b"", b""
    for line in lines:
        if line == b"":
            if data:
                events.append((name.decode("utf-8", "replace"), data[:-1]))
            name, data = b"", b""
            continue
        field, colon, value = line.partition(b":")
        if colon and value[:1] == b" ":
            value = value[1:]
        if field == b"event":
            name = value
        elif field == b"data":
            data += value + b"\n"
    return events


_ends = [b"\r", b"\n", b"\r\n", b"\n\n"]
_words = [b"data", b"event", b"id", b":", b": ", b" ", b"x", b"[DONE]", b"data: 1", b"event: e"]
_odd = [b"\xef\xbb\xbf", b"\0", b"\xff", b"\xc3\xa9"]
_pieces = st.sampled_from([*_ends, *_words, *_odd])


@given(pieces=st.lists(_pieces, max_size=40), data=st.data())
def test_any_bytes_in_any_chunks_are_read_as_the_standard_says(
    pieces: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decode(*chunks) == by_the_standard(stream)


@given(pieces=st.lists(_pieces, max_size=40), at=st.integers(0, 200))
def test_a_stream_that_ends_anywhere_has_the_events_that_were_whole(pieces: list[bytes], at: int) -> None:
    stream = b"".join(pieces)
    whole = decode(stream)
    cut = decode(stream[:at])
    assert cut == whole[: len(cut)]


def test_an_event_is_a_plain_value() -> None:
    assert SSEDecoder().feed(b"event: e\ndata: d\n\n") == [ServerSentEvent("e", b"d")]
