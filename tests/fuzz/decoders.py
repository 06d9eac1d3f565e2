"""Coverage-guided fuzzing of decoders: journal frames and provider streams (`make test-nightly`).

    python -m tests.fuzz.decoders frames -max_total_time=60
    python -m tests.fuzz.decoders streams -max_total_time=60

An exception is a finding: atheris prints the input and ends with a non-zero status.
"""

import sys
from contextlib import suppress

import atheris

with atheris.instrument_imports(include=["service"]):
    from service.core.accounting.journal import decode_frames, encode_frame
    from service.core.providers.chat_stream import StreamDecoder, decode_completion
    from service.core.records import Intent, Outcome

from service.core.errors import ProviderError


def frames(data: bytes) -> None:
    """Any bytes can be read; decoded frames survive a round trip."""
    for record in decode_frames(data):
        assert record is None or isinstance(record, Intent | Outcome)
        if record is not None:
            assert list(decode_frames(encode_frame(record))) == [record]


def streams(data: bytes) -> None:
    """Any bytes in two reads are decoded or refused, with the same text for every split."""
    whole = StreamDecoder()
    text = "".join(delta.text for delta in [*whole.feed(data), *whole.end()])
    cut = len(data) // 3
    parts = StreamDecoder()
    again = "".join(
        delta.text for delta in [*parts.feed(data[:cut]), *parts.feed(data[cut:]), *parts.end()]
    )
    assert text == again
    with suppress(ProviderError):
        decode_completion(data)


if __name__ == "__main__":
    target = {"frames": frames, "streams": streams}[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
