"""Steady mixed load: nothing grows (`bench/soak.py`)."""

from pathlib import Path

import pytest

from bench.soak import (
    WARMUP_DOCUMENTS,
    Report,
    Sample,
    compute_slope,
    run_soak,
    select_lowest,
)

# Per hour. In 25 minutes, a single step of 5 MB counts as 15 MB per hour.
MEGABYTES_MAX, OTHERS_MAX = 20.0, 10.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("minutes", "warmup_minutes", "warmup_documents", "megabytes_max"),
    [
        (0.5, 0.25, 3, 2_000.0),  # of the program; half a minute says little about memory
        pytest.param(
            25,
            8,
            WARMUP_DOCUMENTS,
            MEGABYTES_MAX,
            marks=[pytest.mark.nightly, pytest.mark.timeout(1800)],
        ),
    ],
)
def test_nothing_grows_under_a_steady_load(
    tmp_path: Path,
    minutes: float,
    warmup_minutes: float,
    warmup_documents: int,
    megabytes_max: float,
) -> None:
    """Memory, file descriptors, threads and files stay the same once the caches are full."""
    report = run_soak(
        tmp_path,
        seconds=minutes * 60,
        warmup_seconds=warmup_minutes * 60,
        warmup_documents=warmup_documents,
        rate=60,
        show=True,
    )

    assert not report.failures, report.to_text()
    assert min(report.requests.values()) > minutes * 60 / 2
    others_max = OTHERS_MAX if megabytes_max == MEGABYTES_MAX else 2_000.0
    assert report.exceeds(megabytes_max, others_max) == [], report.to_text()


def build_samples(*memory: float) -> list[Sample]:
    """Build samples a minute apart, with ten requests per second."""
    return [Sample(n * 60, n * 600, size, 0, 20, 10, 5, 1) for n, size in enumerate(memory)]


def test_the_slope_is_robust_against_peaks() -> None:
    """A single peak does not count, a steady growth does."""
    assert compute_slope(build_samples(100, 100, 180, 100, 100, 100), "memory", 10) == 0
    growing = build_samples(100, 101, 102, 150, 104, 105)
    assert compute_slope(growing, "memory", 10) == pytest.approx(60)


def test_the_slope_is_that_of_the_requested_rate() -> None:
    """Requests that arrive at half the rate make memory grow as fast as at the whole."""
    assert compute_slope(build_samples(100, 101, 102), "memory", 20) == pytest.approx(120)


def test_the_lowest_sample_of_each_minute_counts() -> None:
    """Memory that is freed within a minute does not count as growth."""
    samples = [
        Sample(n * 30, n, memory, 0, 20, 10, 5, 1) for n, memory in enumerate((9, 5, 8, 4, 7))
    ]

    assert [sample.memory for sample in select_lowest(samples)] == [5, 4, 7]


def test_growth_is_reported_by_name() -> None:
    """What grows faster than allowed is named."""
    report = Report(slopes={"memory": 6.0, "descriptors": 0.0, "threads": 11.0})

    assert report.exceeds(5, 10) == ["memory", "threads"]
