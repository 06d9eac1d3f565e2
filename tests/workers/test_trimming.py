"""Freed memory is returned to the operating system."""

import asyncio
import ctypes
import os

import pytest

from service.workers.trimming import MemoryTrimmer
from tests.attacks.measure import memory_of

PIECES, PIECE_BYTES, KEPT = 20_000, 4_000, 16  # one piece of this many is kept


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not run: no malloc_trim")
async def test_free_memory_is_returned() -> None:
    """Memory that is free, but between allocations in use, is returned within an interval."""
    pieces = [bytearray(PIECE_BYTES) for _ in range(PIECES)]
    kept = pieces[::KEPT]
    pieces.clear()
    before = memory_of(os.getpid())
    trimmer = MemoryTrimmer(trim_seconds=0.01)
    trimmer.start()
    async with asyncio.timeout(10):
        while not trimmer.statistics().trims:
            await asyncio.sleep(0.001)
    await trimmer.stop()

    assert before - memory_of(os.getpid()) > PIECES * PIECE_BYTES * 0.3
    assert len(kept) == PIECES // KEPT
    assert not trimmer.degraded()
