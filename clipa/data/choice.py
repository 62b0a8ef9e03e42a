"""Which of a sample's captions is taken: in the proportions of the recipe, a pure function of seed and position."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import msgspec

from clipa.data.index import Part
from clipa.data.shards import Reader, Sample, caption_of
from clipa.errors import DataError
from clipa.reduction.draws import Draws, Purpose

TXT = "txt"
"""The name of the caption in the txt member; every other name is a key of the json member."""

_json: msgspec.json.Decoder[dict[str, object]] = msgspec.json.Decoder(dict[str, object])


class CaptionChoice:
    """Takes one of the captions that a sample has.

    Args:
        weights: of each caption by name (`clipa.spec.inputs.TextInput.captions`); empty: `txt`, else json's "caption".
        seed: of the run.
    """

    def __init__(self, weights: Mapping[str, float], seed: int) -> None:
        total = sum(weights.values())
        self._names = tuple(weights)
        self._ends = [end / total for end in accumulate(weights.values())]
        self._seed = seed

    def of(self, reader: Reader, number: int, sample: Sample, position: int) -> str:
        """The caption of sample `number` at a position of the stream. Where the chosen one is missing or empty, the
        next one in the recipe's order stands in; of a list one is taken, each as often.

        Raises:
            DataError: the sample has none of them, or its json cannot be read.
        """
        if not self._names:
            if not (caption := caption_of(sample)).strip():
                raise DataError("the caption is empty", where=sample.key)
            return caption
        draws = Draws(self._seed, position, Purpose.CAPTION_CHOICE)
        at = draws.uniform()
        first = next((i for i, end in enumerate(self._ends) if at < end), 0)
        fields: dict[str, object] | None = None
        for name in (*self._names[first:], *self._names[:first]):
            if name == TXT:
                said: object = sample.other.decode("utf-8", "replace") if sample.extension == TXT else ""
            else:
                fields = _fields(reader, number, sample) if fields is None else fields
                said = fields.get(name)
            texts = [text for text in (said if isinstance(said, list) else [said]) if isinstance(text, str)]
            if texts := [text for text in texts if text.strip()]:
                return texts[draws.integer(len(texts))]
        raise DataError(f"none of its captions is there: {', '.join(self._names)}", where=sample.key)


def _fields(reader: Reader, number: int, sample: Sample) -> dict[str, object]:
    if not reader.has(number, Part.JSON):
        return {}
    try:
        return _json.decode(reader.other(number, Part.JSON))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"the json member is not usable ({error})", where=sample.key) from error
