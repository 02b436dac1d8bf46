"""Detokenizer and stop strings: nothing split, nothing lost, nothing of a stop string shown."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specfleet.text import Detokenizer, StopStrings, Tokenizer
from support.text import files, sentencepiece

BYTE_LEVEL = Tokenizer.from_files(files())
SENTENCEPIECE = Tokenizer.from_files(files(sentencepiece(), eos_token="</s>", bos_token="<s>"))
texts = st.lists(
    st.one_of(
        st.text(),
        st.sampled_from(
            ["the house", " time", "  ", "\n", "漢字", "é", "👩‍👩‍👧", "😀😀", "🇩🇪", "नमस्ते", "\ufffd", "|>"]
        ),
    )
).map("".join)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte-level", "sentencepiece"])
@given(text=texts)
def test_pieces_join_to_the_whole(tokenizer: Tokenizer, text: str) -> None:
    """Joined, what the detokenizer gives is the decoding of all ids, for any text."""
    ids = tokenizer.encode(text)
    detokenizer = Detokenizer(tokenizer)

    pieces = [detokenizer.feed(one) for one in ids]

    assert tokenizer.decode(ids) == "".join(pieces) + detokenizer.flush()


@given(ids=st.lists(st.integers(0, 330)))
def test_any_ids_join_to_the_whole(ids: list[int]) -> None:
    """The same for ids that are no text at all: half characters, specials, ids beyond the vocabulary."""
    detokenizer = Detokenizer(BYTE_LEVEL)

    assert BYTE_LEVEL.decode(ids) == detokenizer.feed_all(ids) + detokenizer.flush()


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte-level", "sentencepiece"])
def test_no_character_is_split(tokenizer: Tokenizer) -> None:
    """A character of several tokens appears whole, as soon as its last token is there."""
    text = "a😀漢é"
    detokenizer = Detokenizer(tokenizer)

    pieces = [piece for one in tokenizer.encode(text) if (piece := detokenizer.feed(one))]

    assert pieces == ["a", "😀", "漢", "é"]
    assert detokenizer.flush() == ""


def test_incomplete_character_comes_at_the_end() -> None:
    """A text that stops inside a character shows U+FFFD for it, and only when it is flushed."""
    detokenizer = Detokenizer(BYTE_LEVEL)

    assert detokenizer.feed_all(BYTE_LEVEL.encode("a😀")[:-1]) == "a"
    assert detokenizer.flush() == "\ufffd"


def test_detokenizing_is_linear() -> None:
    """Ten times the tokens take about ten times as long, even where no character is ever completed."""
    broken = BYTE_LEVEL.encode("😀")[0]

    def seconds(count: int) -> float:
        begun = time.process_time()
        Detokenizer(BYTE_LEVEL).feed_all([broken] * count)
        return time.process_time() - begun

    seconds(100)
    assert seconds(20_000) < 40 * seconds(2_000)


@given(
    text=st.text(alphabet="ab", max_size=60),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=4),
    cuts=st.lists(st.integers(0, 60)),
)
def test_stop_strings_do_not_depend_on_token_borders(text: str, stops: list[str], cuts: list[int]) -> None:
    """However the text is cut, what is shown ends before the first stop string that is completed, and nothing is lost."""
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    matcher = StopStrings(stops)

    shown = [matcher.feed(text[a:b]) for a, b in itertools.pairwise(borders)]

    end = next((end for end in range(len(text) + 1) if any(text[:end].endswith(one) for one in stops)), None)
    if end is None:
        assert text == "".join(shown) + matcher.flush()
        assert not matcher.stopped
    else:
        longest = max(len(one) for one in stops if text[:end].endswith(one))
        assert text[: end - longest] == "".join(shown) + matcher.flush()
        assert matcher.stopped


@given(text=st.text(alphabet="ab", max_size=40), stop=st.text(alphabet="ab", min_size=1, max_size=6))
def test_only_what_could_begin_a_stop_string_is_held(text: str, stop: str) -> None:
    """What is held back is exactly the longest end of the text that a stop string begins with."""
    matcher = StopStrings([stop])

    shown = matcher.feed(text)

    if not matcher.stopped:
        held = max(n for n in range(len(stop)) if text.endswith(stop[:n]))
        assert text[: len(text) - held] == shown


def test_long_stop_strings_are_cheap() -> None:
    """A stop string that almost matches everywhere costs linear time."""
    matcher = StopStrings(["a" * 20_000 + "b"])
    begun = time.process_time()

    for _ in range(400):
        matcher.feed("a" * 100)

    assert time.process_time() - begun < 2.0
