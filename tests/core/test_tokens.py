"""Counting tokens."""

import asyncio
import subprocess
import sys

import pytest

from service.core import tokens
from service.core.pricing import Usage
from service.core.records import Message
from service.core.tokens import bound_tokens, count_tokens


@pytest.mark.parametrize(
    ("text", "model", "expected"),
    [
        ("", "gpt-5-mini", 0),
        ("hello world", "gpt-5-mini", 2),
        ("hello world", "gpt-4", 2),
        ("こんにちは世界", "gpt-5-mini", 2),
        ("こんにちは世界", "gpt-3.5-turbo", 4),
        ("<|endoftext|>", "extractive", 7),
        ("a\ud800b", "extractive", 3),
    ],
)
def test_tokens_are_counted(text: str, model: str, expected: int) -> None:
    """Tokens are counted with the model's encoding; special tokens and surrogates are text."""
    assert tokens.count_tokens(text, model) == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("gpt-4", "cl100k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("openai/gpt-3.5-turbo", "cl100k_base"),
        ("gpt-4o", "o200k_base"),
    ]
    + [
        (model, "o200k_base")
        for model in ("gpt-4.1-mini", "gpt-5-mini", "o3", "extractive", "some-local-model", "")
    ],
)
def test_encoding_of_a_model(model: str, expected: str) -> None:
    """OpenAI's older models use cl100k_base; all others o200k_base."""
    assert tokens.get_encoding_name(model) == expected


@pytest.mark.parametrize("unit", ["a", "あ", " ", "\n", "1", "!", "👩‍👩‍👧"])
def test_long_texts_are_counted(unit: str) -> None:
    """Long texts without spaces are counted, also beyond the limit of the library."""
    assert tokens.count_tokens(unit * (1_200_000 // len(unit))) > 1000


async def test_estimates_include_chat_overhead() -> None:
    """The usage of an answer counts the messages with their overhead, and the text."""
    messages = [Message("system", "hello world"), Message("user", "hello world")]
    assert await tokens.estimate_usage(messages, "hello world", "gpt-5-mini") == Usage(
        prompt_tokens=2 * (2 + 4) + 3, completion_tokens=2
    )


@pytest.mark.parametrize("most", [1, 2, 5, 8])
def test_truncated_texts_are_prefixes(most: int) -> None:
    """A truncated text is a prefix within the limit without broken characters."""
    text = "髙﨑さんの👩‍👩‍👧は、hello world と言いました。"
    part = tokens.truncate_text(text, most)
    assert text.startswith(part)
    assert tokens.count_tokens(part) <= most
    assert tokens.truncate_text(text, 1000) == text


@pytest.mark.slow
def test_import_is_cheap() -> None:
    """Importing the module does not load the library; the first count does."""
    script = (
        "import sys; from service.core import tokens; "
        "assert 'bpe_openai' not in sys.modules; tokens.count_tokens('a')"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


async def test_parallel_counts_agree() -> None:
    """Parallel first counts load the library once and agree."""
    assert set(
        await asyncio.gather(*(tokens.count_tokens_async("hello world" * 1000) for _ in range(8)))
    ) == {tokens.count_tokens("hello world" * 1000)}


def test_no_text_exceeds_the_upper_bound() -> None:
    """No text has more tokens than the bound, in any language."""
    for text in (
        "",
        "Why?",
        "返品は何日以内にできますか？" * 20,
        "🙂" * 50,
        "\x00\x01" * 50,
        "zq" * 200,
        "é" * 99,
    ):
        assert bound_tokens([Message("user", text)]) >= count_tokens(text) + 7
