"""Tagging a caption as a sentence: the one door to nltk.

nltk's tagger data is looked for and never downloaded: a compute node has no internet, and a rank is no place to install
things. Only `averaged_perceptron_tagger_eng` is needed (JSON, nltk 3.9 and newer: older ones unpickle theirs), and no
sentence splitter: a caption is tagged as one sentence.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

from clipa.errors import MissingPart
from clipa.reduction.wordclass import WordClass

Tagger: TypeAlias = Callable[[str], list[tuple[str, WordClass]]]
"""A caption to its words and their classes."""

DATA = "averaged_perceptron_tagger_eng"

_CLASSES = {"NN": WordClass.NOUN, "JJ": WordClass.ADJECTIVE, "VB": WordClass.VERB}
"""Of the first two letters of a Penn treebank tag, as in CLIPA's and open_clip's `syntax_mask_tokenize`."""


@cache
def nltk_tagger() -> Tagger:
    """The tagger, loaded once a process.

    Raises:
        MissingPart: nltk or its tagger's data is not installed here.
    """
    try:
        from nltk.tag.perceptron import PerceptronTagger
        from nltk.tokenize import NLTKWordTokenizer
    except ImportError as error:
        raise MissingPart(
            "text.tagger nltk needs nltk, which is not installed here",
            hint="pip install 'clipa[nltk]', or text.tagger = \"table\"",
        ) from error
    if not hasattr(PerceptronTagger, "load_from_json"):
        raise MissingPart(
            "this nltk would unpickle its tagger's data", allowed="nltk >= 3.9", hint="pip install -U 'clipa[nltk]'"
        )
    try:
        perceptron = PerceptronTagger()
    except LookupError as error:
        raise MissingPart(
            f"nltk's tagger data {DATA} is not installed here, and clipa downloads nothing at run time",
            allowed="a folder that nltk searches (NLTK_DATA), with taggers/" + DATA,
            hint=f'python -m nltk.downloader {DATA} where there is internet, or text.tagger = "table"',
        ) from error
    split = NLTKWordTokenizer()

    def tag(caption: str) -> list[tuple[str, WordClass]]:
        tagged = perceptron.tag(split.tokenize(caption))
        return [(word, _CLASSES.get(name[:2], WordClass.OTHER)) for word, name in tagged]

    return tag
