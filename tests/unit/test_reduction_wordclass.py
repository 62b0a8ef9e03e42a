"""The table of word classes, and how it is made from a lexicon."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipa.errors import InputError
from clipa.reduction import lexicon
from clipa.reduction.wordclass import TABLE, WordClass, class_of, read_classes, word_classes
from tests.services.wordnet import wordnet

N, A, V, O = WordClass  # noqa: E741


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (N, "cat cats dog ledge train photo street man women children light water something selfie iphone giraffes"),
        (A, "red wooden beautiful old bigger happiest other several"),
        (V, "is are sitting sits sat running holding ate doesn having stopped"),
        (O, "a the of with and she can not n't? 's 't very three , . -- 🙂 7 42 which"),
    ],
)
def test_usual_words_have_their_usual_class(kind: WordClass, words: str) -> None:
    found = {word: class_of(word) for word in words.replace("n't? ", "").split()}
    assert found == dict.fromkeys(found, kind)


@given(st.text(max_size=12))
def test_every_word_has_a_class_and_unknown_letters_are_a_noun(word: str) -> None:
    found = class_of(word)
    if word not in word_classes():
        assert found == (N if any(letter.isalpha() for letter in word) else O)


def test_the_table_says_what_it_is_and_holds_no_noun() -> None:
    text = TABLE.read_text()
    assert "Not a part-of-speech tagger" in text
    assert (TABLE.parent / "LICENSE-WordNet").read_text().count("WordNet 3.0 Copyright 2006 by Princeton University")
    assert set(word_classes().values()) == {A, V, O}
    assert 50_000 < len(word_classes()) < 60_000
    assert TABLE.stat().st_size < 600_000


def test_the_committed_table_is_the_one_that_is_made() -> None:
    assert lexicon.rendered(lexicon.classes(wordnet())) == TABLE.read_text()


@pytest.mark.parametrize(
    ("lemma", "ending", "form"),
    [
        ("cat", "s", "cats"), ("box", "s", "boxes"), ("dish", "s", "dishes"), ("fly", "s", "flies"),
        ("toy", "s", "toys"), ("bake", "ing", "baking"), ("see", "ing", "seeing"), ("dye", "ing", "dyeing"),
        ("canoe", "ing", "canoeing"), ("play", "ed", "played"), ("carry", "ed", "carried"), ("bake", "ed", "baked"),
        ("cold", "er", "colder"), ("happy", "est", "happiest"), ("nice", "er", "nicer"), ("cat", "", "cat"),
    ],
)  # fmt: skip
def test_regular_forms(lemma: str, ending: str, form: str) -> None:
    assert lexicon.inflected(lemma, ending) == form


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A lexicon of six lemmas in WordNet's format."""
    files = {
        "index.noun": "  1 licence\ncat n 8 0 8 1 1\nrun n 16 0 16 12 1\nstand n 2 0 2 1 1\nice_cream n 1 0 1 0 1\n",
        "index.verb": "run v 41 0 41 30 1\nstand v 12 0 12 9 1\nsit v 10 0 10 5 1\n",
        "index.adj": "red a 3 0 3 1 1\nstanding a 5 0 5 3 1\n",
        "index.adv": "merrily r 1 0 1 0 1\n",
        "cntlist.rev": "cat%1:05:00:: 1 18\nrun%1:04:00:: 1 50\nrun%2:38:00:: 1 100\nstand%2:35:00:: 1 300\n"
        "sit%2:35:00:: 1 134\nred%5:00:00:chromatic:00 1 43\nstanding%3:00:00:: 1 2\n",
        "noun.exc": "",
        "verb.exc": "ran run\nrunning run\nsat sit\nsitting sit\nstood stand\n",
        "adj.exc": "redder red\nreddest red\n",
        "adv.exc": "",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_form_has_the_class_that_it_is_most_often(small: Path) -> None:
    found = lexicon.classes(small)
    own = {word: kind for word, kind in found.items() if word not in read_classes(lexicon.CLOSED)}
    assert own == {
        # "run" is a noun, though the verb is met twice as often: three in four nouns are singular, a third of the
        # verbs have no ending. "stand" is a verb.
        "runs": V, "ran": V, "running": V,
        "stand": V, "stands": V, "stood": V, "standing": V,
        "sit": V, "sits": V, "sat": V, "sitting": V,
        "red": A, "redder": A, "reddest": A,
        "merrily": O,
    }  # fmt: skip


def test_the_closed_classes_are_set_by_hand(small: Path) -> None:
    found = lexicon.classes(small)
    assert (found["the"], found["is"], found["many"]) == (O, V, A)
    assert "something" not in found  # a noun


def test_a_table_survives_its_file(small: Path, tmp_path: Path) -> None:
    table = lexicon.classes(small)
    (tmp_path / "table.txt").write_text(lexicon.rendered(table))
    assert read_classes(tmp_path / "table.txt") == table


def test_a_missing_lexicon_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        lexicon.classes(tmp_path)
    assert "cannot read WordNet's noun.exc" in str(caught.value)
    assert "hint: apt install wordnet-base" in str(caught.value)
