"""A vocabulary as large as BERT's, for where the real one is not at hand."""

from __future__ import annotations

import random
import string

from clipa.data.wordpiece import ENTRIES, SPECIAL


def made_vocabulary() -> str:
    """30,522 entries: the special ones in their places, letters, signs, and made-up pieces."""
    chance = random.Random(3)
    entries = {f"[unused{number}]": None for number in range(104)}
    places = list(entries)
    for entry, number in SPECIAL.items():
        places[number] = entry
    signs = string.ascii_lowercase + string.digits + string.punctuation + "éäßаб東猫"
    pieces = dict.fromkeys([*places, *signs, *("##" + sign for sign in signs)])
    while len(pieces) < ENTRIES:
        word = "".join(chance.choices(string.ascii_lowercase[:12] + "eeaaoois", k=chance.randint(2, 5)))
        pieces["##" + word if chance.random() < 0.4 else word] = None
    return "\n".join(pieces) + "\n"
