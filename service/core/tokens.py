"""Token counting, offline. The only module that imports `bpe-openai`.

The library takes most of a second and 140 MB to load, so it is loaded at the first count.
`load_encoding` loads it in advance; on the event loop use `count_tokens_async`, or call the other
functions in a thread.

Counting is linear: about 0.1 µs per character of English and Japanese, 0.3 µs for the worst text we
found (random letters without spaces). The library rejects texts of 200,000 tokens; longer ones are
counted in slices, which can split one token per border.
"""

import math
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import anyio.to_thread

from service.core.lazy import LazyModule
from service.core.pricing import Usage
from service.core.records import Message

if TYPE_CHECKING:
    import bpe_openai
else:
    bpe_openai = LazyModule("bpe_openai")

SLICE_CHARACTERS = 50_000
INLINE_CHARACTERS = 4_000  # up to this length counting takes about 1 ms and needs no thread
# Role and delimiters of one message, and 3 that prime the reply (OpenAI's cookbook, "How to count
# tokens with tiktoken").
MESSAGE_TOKENS = 4
REPLY_TOKENS = 3
TEMPLATE_TOKENS = 16  # upper bound of what chat templates add per message, and per conversation

_CL100K = ("gpt-4-", "gpt-3.5", "text-embedding-")


class Encoding(Protocol):
    """The part of a `bpe_openai` encoding that is used; the library is untyped."""

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the tokens of a text; special tokens in it are plain text."""
        ...

    def decode(self, tokens: list[int], *, errors: str) -> str:
        """Return the text of some tokens."""
        ...


_load_lock = threading.Lock()
_encodings: dict[str, Encoding] = {}


def get_encoding_name(model: str) -> str:
    """Return cl100k_base for OpenAI's older models, o200k_base (an estimate) for others."""
    name = model.lower().rpartition("/")[2]
    return "cl100k_base" if name == "gpt-4" or name.startswith(_CL100K) else "o200k_base"


def load_encoding(model: str = "") -> Encoding:
    """Return the encoding of a model. Takes about a second the first time."""
    name = get_encoding_name(model)
    if name not in _encodings:
        with _load_lock:
            if name not in _encodings:
                _encodings[name] = bpe_openai.get_encoding(name)
    return _encodings[name]


def count_tokens(text: str, model: str = "") -> int:
    """Return the number of tokens of a text. Special tokens in it count as plain text."""
    return sum(len(_encode_text(part, model)) for part in _split_slices(text))


async def count_tokens_async(text: str, model: str = "") -> int:
    """Count tokens, in a thread if loading or counting would block the event loop."""
    if len(text) <= INLINE_CHARACTERS and get_encoding_name(model) in _encodings:
        return count_tokens(text, model)
    return await anyio.to_thread.run_sync(count_tokens, text, model)


async def estimate_usage(messages: list[Message], text: str, model: str = "") -> Usage:
    """Estimate the usage of an answer, with the chat overhead per message and reply."""
    prompt = REPLY_TOKENS
    for message in messages:
        prompt += MESSAGE_TOKENS + await count_tokens_async(message.content, model)
    return Usage(prompt_tokens=prompt, completion_tokens=await count_tokens_async(text, model))


def approximate_tokens(text: str) -> int:
    """Approximate the tokens of a text: 4 per ASCII character, 0.8 for others."""
    ascii_characters = len(text.encode("ascii", "ignore"))
    return math.ceil(ascii_characters / 4 + (len(text) - ascii_characters) * 0.8)


def bound_tokens(messages: Sequence[Message]) -> int:
    """Return an upper bound of the tokens: in byte-level vocabularies a token has ≥ 1 byte."""
    size = TEMPLATE_TOKENS
    for message in messages:
        size += TEMPLATE_TOKENS + (
            len(message.content) if message.content.isascii() else len(message.content.encode())
        )
    return size


def truncate_text(text: str, tokens_max: int, model: str = "") -> str:
    """Return the longest prefix with at most `tokens_max` tokens and no broken character."""
    # A token has between a third of a character and 128 characters.
    ids = _encode_text(text[: min(len(text), tokens_max * 128, SLICE_CHARACTERS)], model)
    if len(ids) <= tokens_max:
        return text
    return load_encoding(model).decode(ids[:tokens_max], errors="ignore")


def _encode_text(text: str, model: str) -> list[int]:
    return load_encoding(model).encode_ordinary(text)


def _split_slices(text: str) -> list[str]:
    return [
        text[start : start + SLICE_CHARACTERS] for start in range(0, len(text), SLICE_CHARACTERS)
    ]
