"""The vocabulary of a scope: its words as they are written, for corrections (`spelling.py`).

It is read at the first query with an unknown word, and then updated by the chunks that were added
and removed since, so that it always has exactly the words of the current chunks. Words are grouped
by length. Each has a signature of 64 bits: its letters and its pairs of letters. An edit changes at
most six bits of it (`BITS_PER_EDIT`), so one comparison of arrays rejects nearly all other words.

Memory: about 100 bytes per distinct word, and 4 per distinct word of a chunk. Scopes with more
than `CHUNKS_MAX` chunks in total have no vocabulary.
"""

import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from service.core.search.kana import compute_key
from service.core.text.tokenizer import fold_text

CHUNKS_MAX = 50_000  # of the scopes that a caller sees
WORD_CHARACTERS_MIN, WORD_CHARACTERS_MAX = 4, 30
BITS_PER_EDIT, LETTER_BITS_PER_EDIT = 6, 2
READ_AT_ONCE = 200  # chunks, a few milliseconds each time
YIELD_SECONDS = 0.0001  # the event loop waits for the interpreter lock
# Alphabetic scripts that are written with spaces. Numbers and identifiers are not corrected.
_WORD = re.compile(r"(?<![\w])[^\W\d_\u3005-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\uffff]+(?!\w)")
_KATAKANA = re.compile("[\u30a1-\u30fa\u30fc]{3,30}")
_LETTERS = np.uint64((1 << 32) - 1)

Ids = NDArray[np.int64]
Text = tuple[int, str, str, str]  # id, title, text, and the words of the index


def list_written_words(text: str) -> set[str]:
    """Return the distinct words of a text that can be the correction of another, in lower case."""
    lowered = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).lower()
    words = {
        word
        for word in _WORD.findall(lowered)
        if WORD_CHARACTERS_MIN <= len(word) <= WORD_CHARACTERS_MAX
    }
    return words if lowered.isascii() else words.union(_KATAKANA.findall(lowered))


def compute_signatures(words: Sequence[str]) -> NDArray[np.uint64]:
    """Return the signatures of words of the same length."""
    codes = np.array(words).view(np.uint32).reshape(len(words), -1).astype(np.uint64)
    bit, mask = np.uint64(1), np.uint64(31)
    letters = np.bitwise_or.reduce(bit << (codes & mask), axis=1)
    pairs = codes[:, :-1] * np.uint64(7) + codes[:, 1:]
    signatures: NDArray[np.uint64] = letters | np.bitwise_or.reduce(
        bit << ((pairs & mask) + np.uint64(32)), axis=1
    )
    return signatures


class Vocabulary:
    """The words of the chunks of one scope. Used by one search at a time."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}  # of each word
        self._words: list[str] = []
        self._folded: list[str] = []
        self._chunks: dict[int, NDArray[np.uint32]] = {}  # the numbers of their words
        self._counts: NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # chunks with each word
        self._sounds: dict[str, list[int]] = {}  # by key
        self._grouped = 0  # the number of words in the groups
        self._groups: dict[int, tuple[Ids, NDArray[np.uint64]]] = {}  # by length

    def __len__(self) -> int:
        """The size: number of words, of all chunks together."""
        return len(self._words) + sum(map(len, self._chunks.values()))

    def update(self, ids: Iterable[int], read: Callable[[list[int]], Iterable[Text]]) -> None:
        """Make it the vocabulary of these chunks; `read` returns the texts of new ones."""
        current = set(ids)
        for id_ in self._chunks.keys() - current:
            self._counts[self._chunks.pop(id_)] -= 1
        new = sorted(current - self._chunks.keys())
        for begin in range(0, len(new), READ_AT_ONCE):
            for id_, title, text, words in read(new[begin : begin + READ_AT_ONCE]):
                # Katakana is written without spaces; the index has the words within a run.
                parts = _KATAKANA.findall(words)
                self._add(id_, list_written_words(f"{title}\n{text}").union(parts))
            time.sleep(YIELD_SECONDS)
        self._group_words()

    def _add(self, chunk: int, words: set[str]) -> None:
        numbers = self._numbers
        for word in words:
            if word not in numbers:
                numbers[word] = len(self._words)
                self._words.append(word)
                self._folded.append(word if word.isascii() else fold_text(word))
        if len(self._words) > len(self._counts):
            missing = max(len(self._words), 1024)
            self._counts = np.concatenate([self._counts, np.zeros(missing, dtype=np.int64)])
        self._chunks[chunk] = np.array([numbers[word] for word in words], dtype=np.uint32)
        self._counts[self._chunks[chunk]] += 1

    def _group_words(self) -> None:
        by_length: dict[int, list[int]] = {}
        for number in range(self._grouped, len(self._words)):
            if key := compute_key(self._folded[number]):
                self._sounds.setdefault(key, []).append(number)
            by_length.setdefault(len(self._folded[number]), []).append(number)
        empty = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
        for length, numbers in by_length.items():
            before = self._groups.get(length, empty)
            signatures = compute_signatures([self._folded[number] for number in numbers])
            self._groups[length] = (
                np.concatenate([before[0], np.array(numbers, dtype=np.int64)]),
                np.concatenate([before[1], signatures]),
            )
        self._grouped = len(self._words)

    def find_near(self, word: str, edits_max: int) -> Iterator[tuple[str, str, int]]:
        """Yield the words that may be within a number of edits of a folded word.

        Each is yielded folded, as written, and with the number of chunks that contain it.
        """
        (signature,) = compute_signatures([word])
        for length in range(len(word) - edits_max, len(word) + edits_max + 1):
            if length not in self._groups:
                continue
            numbers, signatures = self._groups[length]
            changed = signatures ^ signature
            near = np.bitwise_count(changed) <= BITS_PER_EDIT * edits_max
            near &= np.bitwise_count(changed & _LETTERS) <= LETTER_BITS_PER_EDIT * edits_max
            for number in numbers[near].tolist():
                if count := int(self._counts[number]):
                    yield self._folded[number], self._words[number], count

    def find_alike(self, key: str) -> Iterator[tuple[str, int]]:
        """Yield the words with this key of `kana.compute_key`, as written, and their count."""
        for number in self._sounds.get(key, ()):
            if count := int(self._counts[number]):
                yield self._words[number], count

    def count_chunks(self, word: str) -> int:
        """Return the number of chunks with a word as it is written."""
        number = self._numbers.get(word)
        return 0 if number is None else int(self._counts[number])
