"""10,000 generated captions for tokenizers: plain ones, odd ones, and characters from all of Unicode."""

from __future__ import annotations

import random

ODD = [
    "",
    " \t\r\n\x0b",
    "\x00\x01\x1b[31mred\x7f\u200b\ufeff",
    "🙂 👩🏽‍🚀 🇩🇪 a🙂b",
    "&amp;lt;b&amp;gt; &nbsp;&#128512; caf&eacute;",
    "naïve Ünïcödé ﬁne ﷺ Ａｂｃ",
    "東京の猫 кошка قطة",
    "don't we'll I'd THEY'RE it's 's 'S",
    "1984 3.14 ½ ٣ x2y",
    "<start_of_text> in the <END_OF_TEXT> middle",
    "[CLS] a [SEP] b [PAD][MASK]c [UNK] [cls] [ sep ] x[SEP]y",
    "sch\ufffd\ufffd mojibake: cafÃ© â€œquotedâ€\x9d",
    "word " * 10_000,
    "x" * 500,
    "ä" * 100 + " " + "é" * 101 + " e\u0301\u0323" * 60,
    "-" * 300 + "🙂" * 200,
    "{}[]()<>|\\/~^`@#$%*_=+",
    "한국어 ไทย हिन्दी עִבְרִית tiếng Việt ǅ İstanbul ẞ ß ſ K",
]
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCXYZäß'-.,!0123456789 é&;#<>_🙂東\x07"
_WORDS = ["a", "the", "photo", "of", "dog", "dogs", "running", "blue", "London", "isn't", "&amp;", "unaffable",
          "http://x.y/z?q=1", "[MASK]", "Zürich", "24/7"]  # fmt: skip


def captions(count: int = 10_000) -> list[str]:
    """The same ones every time."""
    chance = random.Random(5)
    words = ["".join(chance.choices(_LETTERS, k=chance.randint(1, 14))) for _ in range(1500)] + 20 * _WORDS
    made = [" ".join(chance.choices(words, k=chance.randint(0, 25))) for _ in range(count * 3 // 4)]
    while len(made) < count - len(ODD):
        length = chance.randint(1, 12)
        made.append("".join(_any(chance) for _ in range(length)))
    return made + ODD


def _any(chance: random.Random) -> str:
    """A character of any plane that has some, or a plain one."""
    point = chance.choice([chance.randrange(0x3000), chance.randrange(0x20000), chance.randrange(0x110000), 0x20, 0x61])
    return chr(point) if not 0xD800 <= point <= 0xDFFF else "a"
