"""Verification of cited claims."""

import pytest

from service.core.grounding.verification import ClaimVerifier
from tests.core.grounding.test_prompt import passages

ENGLISH = "Orders are sent on the same day. Delivery takes three days and costs 1,600 yen."
JAPANESE = "配達には3日かかります。送料は全国一律600円で、Hinataが負担します。"


@pytest.mark.parametrize(
    ("question", "claim", "supported"),
    [
        ("How long does delivery take?", "Delivery takes three days.", True),
        ("How long does delivery take?", "It takes 3 days, according to the document.", True),
        ("How long does delivery take?", "Delivery takes four days.", False),
        ("How long does delivery take?", "Delivery takes three weeks.", False),
        ("When will my parcel arrive?", "Your parcel will arrive in three days.", True),
        ("What does it cost?", "It costs 1600 yen.", True),
        ("What does it cost?", "It costs 600 yen.", False),
        ("How?", "", True),
        ("送料は？", "配達には3 days、1600 yenかかります。", True),
        ("送料は？", "配達には5日かかります。", False),
    ],
)
def test_english_passages(question: str, claim: str, supported: bool) -> None:
    """Each word of a claim is in the passage or in the question; in Japanese, each number."""
    verifier = ClaimVerifier(question, passages(ENGLISH))
    assert verifier.is_supported(claim, [1]) == supported


@pytest.mark.parametrize(
    ("question", "claim", "supported"),
    [
        ("配達は何日かかりますか", "3日かかります。", True),
        ("配達は何日かかりますか", "配達の日数は3日です。", False),
        ("配達の日数は？", "配達の日数は3日です。", True),
        ("送料は？", "送料は全国一律で600円です。", True),
        ("送料は？", "送料は全国一律で900円です。", False),
        ("送料は？", "送料はお客様が負担します。", False),
        ("送料は？", "送料はHinataの負担です。", True),
        ("送料は？", "送料はAcmeの負担です。", False),
        ("How much is it?", "Shipping costs 600 yen.", True),
        ("How much is it?", "Shipping costs 700 yen.", False),
    ],
)
def test_japanese_passages(question: str, claim: str, supported: bool) -> None:
    """Each word of a claim is in the passage or in the question; in English, each number."""
    verifier = ClaimVerifier(question, passages(JAPANESE))
    assert verifier.is_supported(claim, [1]) == supported


def test_passages_cited_together_support_a_claim_together() -> None:
    """A claim from two passages needs both citations."""
    verifier = ClaimVerifier("", passages("The tower is old.", "The bridge is new."))
    assert verifier.is_supported("The tower is old, the bridge new.", [1, 2])
    assert not verifier.is_supported("The tower is old, the bridge new.", [1])
    assert not verifier.is_supported("The tower is old.", [2])
