"""Syntax by nltk's tagger, with data that the test trains: nltk's own cannot be had where nothing is downloaded."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nltk import data as nltk_data
from nltk.tag.perceptron import PerceptronTagger
from nltk.tokenize import NLTKWordTokenizer

from clipa.data.open_clip_file import open_clip_file
from clipa.data.tokenizer import tokenizer
from clipa.errors import MissingPart
from clipa.reduction import nltk_tagger as door
from clipa.reduction.text import TokenSelection
from clipa.reduction.wordclass import WordClass
from clipa.spec.inputs import TextInput

TAGGED = """
An/DT orange/JJ cat/NN that/WDT is/VBZ sitting/VBG on/IN a/DT ledge/NN
Two/CD dogs/NNS run/VBP on/IN the/DT green/JJ grass/NN ./.
A/DT man/NN in/IN a/DT red/JJ shirt/NN is/VBZ riding/VBG a/DT horse/NN
The/DT old/JJ train/NN stands/VBZ in/IN London/NNP ,/, near/IN a/DT bridge/NN
Children/NNS were/VBD happily/RB playing/VBG with/IN big/JJ red/JJ balls/NNS
She/PRP does/VBZ n't/RB like/VB the/DT cold/JJ weather/NN
"""
CAPTIONS = [
    "An orange cat that is sitting on a ledge",
    "Two big dogs and a man that does n't run",
    "the old horse in London is n't red, it's green.",
    "a cat, a dog, a horse",
    "sitting",
    "",
    "東京 🙂 children's “balls”",
]


@pytest.fixture(scope="module")
def tagger_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of nltk's data with a tagger that six sentences have taught: one for all tests, as nltk keeps it."""
    root = tmp_path_factory.mktemp("nltk")
    folder = root / "taggers" / door.DATA
    folder.mkdir(parents=True)
    sentences = [[tuple(pair.rsplit("/", 1)) for pair in line.split()] for line in TAGGED.strip().splitlines()]
    tagger = PerceptronTagger(load=False)
    random.seed(0)  # it shuffles the sentences
    tagger.train(sentences, nr_iter=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk_data, "path", [str(root)])  # where nltk lets itself write
        tagger.save_to_json(lang="eng", loc=str(folder))
    return root


@pytest.fixture
def taught(tagger_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """nltk finds that data and no other."""
    monkeypatch.setattr(nltk_data, "path", [str(tagger_folder)])
    door.nltk_tagger.cache_clear()
    yield
    door.nltk_tagger.cache_clear()


MOJIBAKE = [
    "the \xe2\u20ac\u0153red door\xe2\u20ac\x9d of a caf\xc3\xa9 in M\xc3\xbcnchen at night",
    "sch\xc3\xb6n \xe2\u20ac\u201d a view of the sea",
    "it\xe2\u20ac\u2122s a dog\xe2\u20ac\u2122s life\xe2\u20ac\xa6",
]
"""UTF-8 that was read as Windows-1252: what is one word there is several here, and ftfy mends them together only."""


@pytest.mark.usefixtures("taught")
def test_a_sentence_is_tagged_by_nltk() -> None:
    tagged = door.nltk_tagger()("An orange cat is sitting on grass")
    N, J, V, O = WordClass.NOUN, WordClass.ADJECTIVE, WordClass.VERB, WordClass.OTHER  # noqa: E741
    assert tagged == [("An", O), ("orange", J), ("cat", N), ("is", V), ("sitting", V), ("on", O), ("grass", N)]


@pytest.mark.usefixtures("taught")
@pytest.mark.parametrize("tokens", [3, 6, 8, 16])
def test_rows_equal_open_clips(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = open_clip_file("tokenizer.py")
    monkeypatch.setattr(theirs, "_nltk_init", True)  # else it downloads
    # Its sentence splitter's data cannot be had either; these captions are one sentence each.
    monkeypatch.setattr("nltk.tokenize.word_tokenize", NLTKWordTokenizer().tokenize)
    # Which of two equal words it keeps is left to numpy's unstable sort, and differs by processor: here the first.
    stable = SimpleNamespace(array=np.array, take=np.take, argsort=partial(np.argsort, kind="stable"))
    monkeypatch.setattr(theirs, "np", stable)
    own = tokenizer("clip-bpe")
    source = theirs.SimpleTokenizer()
    captions = [caption for caption in CAPTIONS if caption] + MOJIBAKE
    expected = theirs.syntax_mask_tokenize(captions, tokens, own.start, own.end, source.encode)
    keep = TokenSelection(own, TextInput(tokens=tokens, reduction="syntax", tagger="nltk"))
    assert torch.equal(keep(captions), expected)
    assert keep([""])[0].tolist() == [own.start, own.end] + [0] * (tokens - 2)


def test_missing_data_is_refused_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk_data, "path", [str(tmp_path)])
    door.nltk_tagger.cache_clear()
    with pytest.raises(MissingPart) as caught:
        TokenSelection(tokenizer("clip-bpe"), TextInput(tokens=8, reduction="syntax", tagger="nltk"))
    assert str(caught.value) == (
        "nltk's tagger data averaged_perceptron_tagger_eng is not installed here, "
        "and clipa downloads nothing at run time\n"
        "allowed: a folder that nltk searches (NLTK_DATA), with taggers/averaged_perceptron_tagger_eng\n"
        "hint: python -m nltk.downloader averaged_perceptron_tagger_eng where there is internet, "
        'or text.tagger = "table"'
    )


def test_missing_nltk_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    door.nltk_tagger.cache_clear()
    monkeypatch.setitem(sys.modules, "nltk.tag.perceptron", None)
    with pytest.raises(MissingPart, match="needs nltk") as caught:
        door.nltk_tagger()
    assert "clipa[nltk]" in caught.value.hint


def test_the_table_needs_no_nltk() -> None:
    code = (
        "import sys; from clipa.data.tokenizer import tokenizer; from clipa.reduction.text import TokenSelection;"
        "from clipa.spec.inputs import TextInput;"
        "TokenSelection(tokenizer('clip-bpe'), TextInput(tokens=4, reduction='syntax'))(['a red dog runs home']);"
        "print('nltk' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
