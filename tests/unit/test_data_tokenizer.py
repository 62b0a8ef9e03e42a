import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa.data.open_clip_file import open_clip_file
from clipa.data.tokenizer import Tokenizer, tokenizer
from clipa.errors import ConfigError
from clipa.spec.family import VOCABULARY
from tests.captions import captions

_SOURCE = open_clip_file("tokenizer.py").SimpleTokenizer()


def _letters(data: bytes) -> str:
    return "".join(_SOURCE.byte_encoder[byte] for byte in data)


@pytest.mark.parametrize(("count", "tokens"), [(1_000, 3), (1_000, 8), (10_000, 77)])
def test_ids_equal_open_clips_own(count: int, tokens: int) -> None:
    texts = captions(count)
    expected = _SOURCE(texts, tokens)
    found = tokenizer("clip-bpe").encode(texts, tokens)
    assert found.dtype == torch.int64
    assert found.shape == (count, tokens)
    assert torch.equal(found, expected)


@given(st.text(st.characters(max_codepoint=0x7F), max_size=60))
def test_plain_ascii_is_cleaned_as_open_clip_does(text: str) -> None:
    found = tokenizer("clip-bpe")
    assert found._cleaned(text).split() == found._clean(text).split(" ") or not found._clean(text)


PARTS = st.one_of(
    st.text(max_size=8),
    st.text(st.characters(max_codepoint=0x17F), max_size=12),
    st.text(st.characters(categories=("Cc", "Cf", "Zs", "Zl", "Zp", "Mn", "So", "Sk")), max_size=6),
    st.sampled_from(
        ["&amp;", "&lt;", "&#x1F600;", "&amp;eacute;", "&nbsp;", "&copy", "â€™", "Ã©", "ï»¿", "’", "“", "…"]
    ),
    st.sampled_from(["👩🏽‍🚀", "🇩🇪", "\r\n", "\x1c", "\x85", "\u2028", "ﬁ", "Ａ", "İ", "ẞ", "'S", "'lL", "ſ", "K"]),
    st.sampled_from(
        ["<start_of_text>", "<END_OF_TEXT>", "<|endoftext|>", "</w>", "a</w>", "Ġ", "dogs", "Don't", "2024"]
    ),
)


@given(st.lists(PARTS, max_size=12).map("".join))
@settings(max_examples=400)
def test_any_text_has_open_clips_ids(text: str) -> None:
    found = tokenizer("clip-bpe")
    expected = _SOURCE.encode(text)
    assert found.ids(text, 10_000) == expected
    assert found.ids(text, 5)[:5] == expected[:5]


def test_a_full_memory_changes_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = captions(300)
    expected = tokenizer("clip-bpe").encode(texts, 32)
    monkeypatch.setattr("clipa.data.words._CACHED_WORDS", 50)
    small = Tokenizer()
    assert torch.equal(small.encode(texts, 32), expected)
    assert [id_ for word in small.words(texts[0]) for id_ in word.ids] == small.ids(texts[0], 10_000)
    assert all(0 < len(memory) <= 50 for memory in (small._known, small._known_ids, small._known_pieces))
    assert max(map(len, small._known)) <= 64


@given(st.one_of(st.text(st.sampled_from("abeinst'"), max_size=70), st.binary(max_size=40).map(_letters)))
def test_words_are_merged_as_open_clip_merges_them(word: str) -> None:
    expected = [_SOURCE.encoder[part] for part in _SOURCE.bpe(word).split(" ")] if word else []
    assert tokenizer("clip-bpe")._merged(word) == expected


def test_a_long_word_takes_no_longer_than_its_letters() -> None:
    began = time.process_time()  # open_clip's own merging is quadratic: this takes it an hour
    assert len(tokenizer("clip-bpe").ids("ab" * 50_000, 1)) > 10_000
    assert time.process_time() - began < 5


@given(st.text(max_size=60))
def test_words_hold_the_ids_of_the_text(text: str) -> None:
    found = tokenizer("clip-bpe")
    words = found.words(text)
    assert [id_ for word in words for id_ in word.ids] == found.ids(text, 10_000)
    assert all(word.text and word.ids for word in words)


def test_words_are_split_at_signs() -> None:
    found = [word.text for word in tokenizer("clip-bpe").words("A T-shirt, 42 dogs; it's 🙂!")]
    assert found == ["a", "t", "-", "shirt", ",", "4", "2", "dogs", ";", "it", "'s", "🙂!"]


def test_no_captions_gives_no_rows() -> None:
    assert tokenizer("clip-bpe").encode([], 8).shape == (0, 8)


def test_vocabulary_is_the_one_of_the_budget() -> None:
    found = tokenizer("clip-bpe")
    assert (found.vocabulary, found.start, found.end) == (VOCABULARY["clip-bpe"], 49_406, 49_407)


def test_unknown_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError) as caught:
        tokenizer("clip-bp")
    assert 'did you mean "clip-bpe"?' in str(caught.value)


def test_neither_open_clip_nor_torchvision_is_imported() -> None:
    code = (
        "import sys; from clipa.data.tokenizer import tokenizer; tokenizer('clip-bpe').encode(['a dog'], 8);"
        "print(sorted({'torchvision', 'open_clip', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
