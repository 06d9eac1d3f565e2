"""Counting tokens, offline. The one door to `bpe-openai`.

The library takes most of a second and some 140 MB to load, so it is loaded at the first count, not at import: a process
that never counts never pays. `load()` does it ahead of time; on a loop use `count_async`, or call the others in a thread.

Counting is linear, about 0.1 µs a character in English and Japanese and 0.3 µs in the worst text we found (random
letters without a space), whatever the length of a run. The library refuses texts of 200,000 tokens; longer ones
are counted in slices, which can split a token at each border: at most one too many per `SLICE_CHARACTERS`.
"""

import math
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import anyio.to_thread

from service.core.lazy import LazyModule
from service.core.ports import Message
from service.core.pricing import Usage

if TYPE_CHECKING:
    import bpe_openai
else:
    bpe_openai = LazyModule("bpe_openai")

SLICE_CHARACTERS = 50_000
INLINE_CHARACTERS = (
    4_000  # below this, counting takes about a millisecond at most, and no thread is needed
)
MESSAGE_TOKENS = 4  # role and delimiters of one message, and 3 that prime the reply: OpenAI's cookbook, "How to count tokens"
REPLY_TOKENS = 3
TEMPLATE_TOKENS = (
    16  # more than any chat template we know of puts around a message, or around all of them
)

_CL100K = ("gpt-4-", "gpt-3.5", "text-embedding-")


class Encoding(Protocol):
    """What is used of an encoding of `bpe_openai`, which is not typed."""

    def encode_ordinary(self, text: str) -> list[int]:
        """The tokens of a text; special tokens in it are plain text."""
        ...

    def decode(self, tokens: list[int], *, errors: str) -> str:
        """The text of some tokens."""
        ...


_loading = threading.Lock()
_encodings: dict[str, Encoding] = {}


def encoding_name(model: str) -> str:
    """The encoding of a model: cl100k_base for the older ones of OpenAI, o200k_base for all others, which is an estimate."""
    name = model.lower().rpartition("/")[2]
    return "cl100k_base" if name == "gpt-4" or name.startswith(_CL100K) else "o200k_base"


def load_encoding(model: str = "") -> Encoding:
    """The encoding of a model, loaded if it is not. Takes about a second the first time."""
    name = encoding_name(model)
    if name not in _encodings:
        with _loading:
            if name not in _encodings:
                _encodings[name] = bpe_openai.get_encoding(name)
    return _encodings[name]


def count_tokens(text: str, model: str = "") -> int:
    """The number of tokens of a text. Special tokens in it count as the plain text they are."""
    return sum(len(_encode(part, model)) for part in _slices(text))


async def count_tokens_async(text: str, model: str = "") -> int:
    """`count`, in a thread where loading or counting would hold up the loop."""
    if len(text) <= INLINE_CHARACTERS and encoding_name(model) in _encodings:
        return count_tokens(text, model)
    return await anyio.to_thread.run_sync(count_tokens, text, model)


async def estimate_usage(messages: list[Message], text: str, model: str = "") -> Usage:
    """What an answer used, with the overhead that a chat has per message and per reply."""
    prompt = REPLY_TOKENS
    for message in messages:
        prompt += MESSAGE_TOKENS + await count_tokens_async(message.content, model)
    return Usage(prompt_tokens=prompt, completion_tokens=await count_tokens_async(text, model))


def approximate_tokens(text: str) -> int:
    """About how many tokens a text has: four ASCII characters make one, other characters are nearly one each."""
    ascii_characters = len(text.encode("ascii", "ignore"))
    return math.ceil(ascii_characters / 4 + (len(text) - ascii_characters) * 0.8)


def bound_tokens(messages: Sequence[Message]) -> int:
    """More tokens than these messages can have, in any vocabulary that falls back to bytes: each token has one or more."""
    size = TEMPLATE_TOKENS
    for message in messages:
        size += TEMPLATE_TOKENS + (
            len(message.content) if message.content.isascii() else len(message.content.encode())
        )
    return size


def truncate_text(text: str, tokens_max: int, model: str = "") -> str:
    """The longest beginning of a text that has at most `tokens_max` tokens and no broken character."""
    # A token is at least a third of a character, and at most 128 of them.
    ids = _encode(text[: min(len(text), tokens_max * 128, SLICE_CHARACTERS)], model)
    if len(ids) <= tokens_max:
        return text
    return load_encoding(model).decode(ids[:tokens_max], errors="ignore")


def _encode(text: str, model: str) -> list[int]:
    return load_encoding(model).encode_ordinary(text)


def _slices(text: str) -> list[str]:
    return [
        text[start : start + SLICE_CHARACTERS] for start in range(0, len(text), SLICE_CHARACTERS)
    ]
