"""Text to terms."""

import sqlite3
import tracemalloc
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.text.tokenizer import Terms, detect_language, get_tokenizer


def terms(text: str) -> Terms:
    """Return the terms with the dictionary."""
    return get_tokenizer("auto").extract_terms(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("東京都知事は書かなかった", ["東京", "都", "知事", "書く"]),
        ("サーバーの再起動はいつですか", ["サーバ", "再", "起動"]),
        ("食べられました", ["食べる"]),
        ("この本はとても美しい", ["本", "とても", "美しい"]),
        ("ボネール島は何海か", ["ボネール", "島", "海"]),
    ],
)
def test_words_of_the_dictionary(text: str, words: list[str]) -> None:
    """With the dictionary, Japanese words are content words in their dictionary form."""
    assert terms(text).words == words


@pytest.mark.parametrize("name", ["auto", "none"])
def test_names_identify_the_rules(name: str) -> None:
    """Tokenizers with different terms have different names."""
    assert get_tokenizer(name).name.startswith({"auto": "sudachi-", "none": "runs-"}[name])


def test_without_the_package_runs_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package, terms and name are those of the fallback."""
    monkeypatch.setattr("service.core.text.tokenizer.Dictionary", None)
    get_tokenizer.cache_clear()
    extracted = get_tokenizer("auto")
    get_tokenizer.cache_clear()
    assert (extracted.name, extracted.extract_terms("返金期限").words) == (
        get_tokenizer("none").name,
        ["返金", "期限"],
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("返品の期限は何日以内ですか？", ["返品", "期限", "日以内"]),
        ("返金期限", ["返金", "期限"]),
        ("東京都知事", ["東京", "都知事"]),
        ("サーバーとサーバ", ["サーバ", "サーバ"]),
        ("ｻｰﾊﾞｰ", ["サーバ"]),
        ("キー", ["キー"]),
        ("ＡＢＣ１２３", ["abc123"]),
        ("1,000円と1000円", ["1000", "円", "1000", "円"]),
        ("Refunds are refunded; the refund!", ["refund", "refund", "refund"]),
        ("The café's Crème brûlée", ["cafe", "creme", "brule"]),
        ("これはひらがなだけです", []),
        ("what is it?", []),
        ("한국어 привет", ["한국", "국어", "привет"]),
        ("OPENAI_API_KEY", ["openai", "api", "key"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    """Without the dictionary, words do not depend on width, case or inflection."""
    assert get_tokenizer("none").extract_terms(text).words == words


def test_grams() -> None:
    """Grams are pairs of Japanese characters except hiragana, and four letters of Latin words."""
    assert terms("お茶の味はいい").grams == ["お茶", "茶の", "の味", "味は"]
    assert terms("shipping by tea").grams == ["ship", "hipp", "ippi", "ppin", "ping", "tea"]


@given(st.text())
def test_terms_are_tokens(text: str) -> None:
    """Terms are short and consist of letters, numbers and marks."""
    extracted = terms(text)
    for term in extracted.words + extracted.grams:
        assert term
        assert len(term) <= 40
        assert all(
            unicodedata.category(character)[0] in "LNM" or unicodedata.category(character) == "Co"
            for character in term
        )


@given(st.text())
def test_width_and_case_do_not_matter(text: str) -> None:
    """Normalization forms of a text have the same terms."""
    assert terms(unicodedata.normalize("NFKC", text)) == terms(text)


@pytest.mark.slow
def test_the_index_preserves_terms() -> None:
    """FTS5 neither splits nor changes terms."""
    characters = [chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000]
    produced = {
        word
        for character in characters
        for name in ("auto", "none")
        for word in get_tokenizer(name).extract_terms(f"a{character}").words
        + get_tokenizer(name).extract_terms(character).words
    }
    database = sqlite3.connect(":memory:")
    database.execute(
        """CREATE VIRTUAL TABLE t USING fts5(
            w, tokenize="unicode61 remove_diacritics 0 categories 'L* N* M* Co'"
        )"""
    )
    database.execute("CREATE VIRTUAL TABLE v USING fts5vocab(t, row)")
    database.executemany("INSERT INTO t VALUES (?)", ((word,) for word in produced))
    indexed = {term for (term,) in database.execute("SELECT term FROM v")}
    database.close()
    assert produced - indexed == set()


def test_many_threads_stem_alike() -> None:
    """Concurrent calls of the stemmer, which is not thread-safe, do not mix their words."""
    texts = [
        f"running{i} relational{i}ly generalizations{i}ness"
        + "abcdefgh"[i % 8]
        + "ingly hopefulness"
        for i in range(2000)
    ]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(terms, texts))
    assert all(extracted.words[-1] == "hope" for extracted in together)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("返品", "ja"), ("ｶﾅ", "ja"), ("Wi-Fiは？", "ja"), ("What?", "en"), ("", "en"), ("Où?", "en")],
)
def test_language(text: str, expected: str) -> None:
    """A text with a Japanese letter is Japanese; any other is English."""
    assert detect_language(text) == expected


def test_long_words_are_not_kept_in_memory() -> None:
    """Words of any length leave nothing in memory: each would occupy 70 bytes per letter."""
    tokenizer = get_tokenizer("none")
    tracemalloc.start()
    try:
        for n in range(5):
            tokenizer.extract_terms(f"{n:07}" * 2_000)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert kept < 100_000


@pytest.mark.parametrize(("text", "other"), [("HEAD~3", "HEAD^3"), ("C++", "C#"), ("a~1", "a~2")])
def test_operators_of_identifiers_are_terms(text: str, other: str) -> None:
    """Identifiers that differ in an operator have different terms."""
    assert terms(text).words == terms(other).words or text == "a~1"
    assert terms(text).grams != terms(other).grams


def test_ranges_and_formulas_have_no_operators() -> None:
    """A tilde between numbers, and a caret after one, are punctuation."""
    assert terms("10時～12時 and 5^2").grams == terms("10時 12時 and 5 2").grams
