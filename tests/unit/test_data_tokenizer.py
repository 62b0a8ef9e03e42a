import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipa.data.open_clip_file import open_clip_file
from clipa.data.tokenizer import Tokenizer, merged, tokenizer
from clipa.errors import ConfigError
from clipa.spec.family import VOCABULARY
from tests.captions import captions

_SOURCE = open_clip_file("tokenizer.py").SimpleTokenizer()


@pytest.mark.parametrize("tokens", [3, 8, 77])
def test_ids_equal_open_clips_own(tokens: int) -> None:
    texts = captions()
    expected = _SOURCE(texts, tokens)
    found = tokenizer("clip-bpe").encode(texts, tokens)
    assert found.dtype == torch.int64
    assert found.shape == (10_000, tokens)
    assert torch.equal(found, expected)


@given(st.text(st.characters(max_codepoint=0x7F), max_size=60))
def test_plain_ascii_is_cleaned_as_open_clip_does(text: str) -> None:
    found = tokenizer("clip-bpe")
    assert found._cleaned(text).split() == found._clean(text).split(" ") or not found._clean(text)
    assert found.ids(text, 1000) == _SOURCE.encode(text)


def test_a_full_memory_changes_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = captions(300)
    expected = tokenizer("clip-bpe").encode(texts, 32)
    monkeypatch.setattr("clipa.data.words._CACHED_WORDS", 50)
    small = Tokenizer()
    assert torch.equal(small.encode(texts, 32), expected)
    assert len(small._known) <= 50
    assert len(small._known_ids) <= 50
    assert len(small._source.cache) == 2  # the special tokens only: open_clip's own memory has no bound


@given(st.text(st.sampled_from("abeinst'"), min_size=2, max_size=120))
def test_queue_merges_like_open_clip(word: str) -> None:
    source = tokenizer("clip-bpe")._source
    expected = tokenizer("clip-bpe")._merge(word).split(" ")
    source.cache.pop(word, None)
    assert merged(word, source.bpe_ranks) == expected


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
