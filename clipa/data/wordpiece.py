"""BERT's uncased WordPiece, CLIPA-v2's tokenizer. The one door to the `tokenizers` library, and the vocabulary's place.

The ids are those of open_clip's HFTokenizer, down to the Unicode tables that library was built with. What the authors
used (tensorflow_text) differs outside plain English: it folds case (ß is ss), makes a space of a control character,
counts the longest word in bytes, and mends no mojibake and no HTML entities.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from clipa.data.open_clip_file import open_clip_file
from clipa.data.words import WordTokenizer, is_plain
from clipa.errors import ConfigError, MissingPart
from clipa.reduction.text import Word
from clipa.storage.vocabulary import FILE, HINT, find_vocabulary

ENTRIES = 30_522
PAD, UNKNOWN, START, SEPARATOR, MASK = 0, 100, 101, 102, 103
SPECIAL = {"[PAD]": PAD, "[UNK]": UNKNOWN, "[CLS]": START, "[SEP]": SEPARATOR, "[MASK]": MASK}


def read_vocabulary(path: Path) -> dict[str, int]:
    """Entry -> id of a vocabulary file, one entry a line.

    Raises:
        ConfigError: it cannot be read, or is another one than BERT's uncased vocabulary of 30,522 entries.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the vocabulary cannot be read: {error}", where=str(path), hint=HINT) from error
    entries = text.removesuffix("\n").split("\n")
    found = {entry.rstrip("\r"): number for number, entry in enumerate(entries)}
    if len(found) != ENTRIES or any(found.get(entry) != number for entry, number in SPECIAL.items()):
        start = found.get("[CLS]")
        raise ConfigError(
            f"this is another vocabulary than BERT's uncased one: {len(found):,} entries, [CLS] is {start}",
            where=str(path),
            allowed=f"{ENTRIES:,} entries, [CLS] is {START}",
            hint=HINT,
        )
    return found


@contextmanager
def _installed() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingPart("the tokenizers library is not installed", hint="pip install 'clipa[train]'") from error


def byte_pairs(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> Callable[[str], list[int]]:
    """Ids of a word, given as CLIP's letters for its bytes, by its merges, best first: 1.6 us instead of 23 in Python.

    Raises:
        MissingPart: the tokenizers library is not installed.
    """
    with _installed():
        from tokenizers import models
    # Without a memory of its own: words are remembered by who asks.
    model = models.BPE(vocab=dict(vocabulary), merges=list(merges), end_of_word_suffix="</w>", cache_capacity=0)
    return lambda symbols: [token.id for token in model.tokenize(symbols)]


class WordPiece(WordTokenizer):
    """BERT's uncased WordPiece: [CLS], pieces, zeros. Words are what BERT splits at spaces and punctuation.

    `end` is None for CLIPA-v2, whose rows have no end: a piece may stand at the last place, where the text is pooled.
    open_clip's HFTokenizer cuts one piece earlier, for a [SEP] that it then blanks, so its rows end with a 0: `end` 0.
    """

    start = START

    def __init__(self, end: int | None = None, vocabulary: Path | None = None) -> None:
        super().__init__()
        with _installed():
            from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
        self.end = end
        self.path = vocabulary or find_vocabulary(os.environ)
        model = models.WordPiece(read_vocabulary(self.path), unk_token="[UNK]", max_input_chars_per_word=100)  # noqa: S106
        self._pieces = Tokenizer(model)
        self._pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
        self._pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._pieces.add_special_tokens(list(SPECIAL))
        self._clean: Callable[[str], str] = open_clip_file("tokenizer.py").get_clean_fn("whitespace")

    def save(self, folder: Path) -> None:
        """Write the files with which open_clip's HFTokenizer, with `strip_sep_token`, gives the rows of this one.

        `vocab.txt` is enough for transformers' own BertTokenizer, which ends a row with [SEP]. The published rows have
        no end: `tokenizer.json` says so.
        """
        from tokenizers import Tokenizer, processors

        shutil.copyfile(self.path, folder / FILE)
        settings = {
            "do_lower_case": True,
            "tokenizer_class": "BertTokenizer",
            **{f"{name.strip('[]').lower()}_token": name for name in SPECIAL},
        }
        if self.end is None:
            pieces = Tokenizer.from_str(self._pieces.to_str())
            pieces.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", START)])
            pieces.save(str(folder / "tokenizer.json"))
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
        (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))

    def _cleaned(self, text: str) -> str:
        return text if is_plain(text) else self._clean(text)

    def _split(self, run: str) -> tuple[Word, ...]:
        found = self._pieces.encode(run, add_special_tokens=False)
        words: list[Word] = []
        before: int | None = None
        for id_, number, (begin, stop) in zip(found.ids, found.word_ids, found.offsets, strict=True):
            word = Word(run[begin:stop].lower(), (PAD if id_ == SEPARATOR else id_,))  # as open_clip's strip_sep_token
            if number is not None and number == before:
                word = Word(words[-1].text + word.text, words.pop().ids + word.ids)
            words.append(word)
            before = number
        return tuple(words)
