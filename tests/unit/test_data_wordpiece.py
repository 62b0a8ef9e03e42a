"""BERT's WordPiece gives open_clip's ids, without a hub; and says what to do where there is no vocabulary."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipa.data.open_clip_file import open_clip_file
from clipa.data.tokenizer import tokenizer
from clipa.data.wordpiece import WordPiece, read_vocabulary
from clipa.errors import ConfigError
from clipa.storage.vocabulary import VARIABLE, find_vocabulary
from tests.captions import captions
from tests.vocabulary import made_vocabulary

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "bert-uncased-vocab.txt"
REAL = Path(os.environ.get(VARIABLE) or SHARED)


@pytest.fixture(scope="module", params=["made", "real"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as open_clip's HFTokenizer reads it."""
    if request.param == "real" and not REAL.is_file():
        pytest.skip(f"BERT's real vocabulary is not here: set {VARIABLE}")
    found = tmp_path_factory.mktemp(request.param)
    (found / "vocab.txt").write_text(REAL.read_text() if request.param == "real" else made_vocabulary())
    (found / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (found / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    return found


@pytest.fixture(scope="module")
def reference(folder: Path) -> object:
    return open_clip_file("tokenizer.py").HFTokenizer(str(folder), strip_sep_token=True)


@pytest.fixture(scope="module")
def words(folder: Path) -> WordPiece:
    return WordPiece(end=0, vocabulary=folder / "vocab.txt")


def test_ids_equal_open_clips_own_on_10000_captions(folder: Path, words: WordPiece, reference: object) -> None:
    texts = captions()
    expected = reference(texts, 32)  # type: ignore[operator]
    published = WordPiece(vocabulary=folder / "vocab.txt")
    found = words.encode(texts, 32)
    assert found.shape == (10_000, 32)
    assert torch.equal(found, expected)
    # CLIPA-v2 has no place for [SEP]: its row of 31 is open_clip's row of 32 without the last, blanked one.
    assert torch.equal(published.encode(texts, 31), expected[:, :31])
    assert torch.equal(words.encode(texts, 31)[:, -1], torch.zeros(10_000, dtype=torch.int64))
    assert (published.encode(texts, 8)[:, -1] != 0).sum() > 5_000, "the captions are long enough to tell the two"


@given(text=st.text(max_size=40))
def test_any_text_gives_open_clips_ids(words: WordPiece, reference: object, text: str) -> None:
    assert torch.equal(words.encode([text], 48), reference([text], 48))  # type: ignore[operator]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text(made_vocabulary())
    return path


def test_words_hold_the_ids_of_the_text(made: Path) -> None:
    words = WordPiece(vocabulary=made)
    for text in captions(2_000):
        if len(text) < 5_000:
            found = words.words(text)
            assert [id_ for word in found for id_ in word.ids] == words.ids(text, 100_000)
            assert all(word.text and word.ids for word in found)
    assert [word.text for word in words.words("A T-shirt, 42 dogs; it's Café [MASK]!")] == [
        "a", "t", "-", "shirt", ",", "42", "dogs", ";", "it", "'", "s", "café", "[mask]", "!"]  # fmt: skip


def test_the_vocabulary_is_found_where_the_variable_says(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (made, made.parent):
        monkeypatch.setenv(VARIABLE, str(value))
        assert find_vocabulary(os.environ) == made
    tokenizer.cache_clear()
    assert tokenizer("bert-wordpiece").end is None
    assert tokenizer("bert-wordpiece-sep").end == 0
    tokenizer.cache_clear()


@pytest.mark.parametrize(
    ("variable", "folder"),
    [
        ("HF_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
        ("HOME", ".cache/huggingface/hub"),
    ],
)
def test_the_hubs_cache_is_looked_at(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, folder: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    environment, cache = {variable: str(tmp_path)}, tmp_path / folder
    with pytest.raises(ConfigError, match="not on this machine") as caught:
        find_vocabulary(environment)
    assert VARIABLE in str(caught.value)
    assert "huggingface-cli download" in str(caught.value)
    repository = cache / "models--google-bert--bert-base-uncased"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc")
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (snapshot / "vocab.txt").write_text(made.read_text())
    assert find_vocabulary(environment) == snapshot / "vocab.txt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("[CLS]\n", "", 1), "another vocabulary"),
        (lambda text: text + "more\n", "30,523 entries"),
        (lambda text: "[PAD]\nthe\n", "2 entries"),
        (lambda text: "", "another vocabulary"),
    ],
)
def test_another_vocabulary_is_refused(made: Path, change: object, message: str) -> None:
    made.write_text(change(made.read_text()))  # type: ignore[operator]
    with pytest.raises(ConfigError, match=message):
        read_vocabulary(made)


def test_a_vocabulary_that_is_no_text_or_not_there_is_refused(made: Path) -> None:
    made.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_vocabulary(made)
    with pytest.raises(ConfigError, match="not there"):
        find_vocabulary({VARIABLE: str(made.parent / "nowhere")})


def test_windows_line_ends_change_no_entry(made: Path) -> None:
    expected = read_vocabulary(made)
    made.write_bytes(made.read_bytes().replace(b"\n", b"\r\n"))
    assert read_vocabulary(made) == expected
