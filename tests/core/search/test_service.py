"""Search, and the extractive answers over the sample documents, with the default thresholds."""

import asyncio
import datetime as dt
import statistics
import sys
import threading
import time
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from typing import TypeVar

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.tenants import fill_database
from service import __main__ as entry
from service.core.database.engine import Database
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.errors import DatabaseUnavailable
from service.core.grounding.citations import read_citations
from service.core.grounding.extraction import quote_answer
from service.core.grounding.prompt import build_context
from service.core.search.ranking import parse_query
from service.core.search.results import SearchResults
from service.core.search.service import SEARCHES_AT_ONCE, SearchService
from service.core.settings import Settings
from service.core.text.tokenizer import get_tokenizer

pytestmark = pytest.mark.every_database

SETTINGS = Settings(_env_file=None)

# (question, sample document, what the answer must say)
JAPANESE = [
    ("返品は何日以内にできますか？", "tea-shop-shipping-and-refunds-ja", "30日以内"),
    ("送料はいくらですか？", "tea-shop-shipping-and-refunds-ja", "600円"),
    ("送料が無料になるのはいくらからですか", "tea-shop-shipping-and-refunds-ja", "8,000円以上"),
    ("返金はいつ行われますか？", "tea-shop-shipping-and-refunds-ja", "5営業日以内"),
    (
        "開封した茶葉は返品できますか？",
        "tea-shop-shipping-and-refunds-ja",
        "返品をお受けできません",
    ),
    (
        "急須が割れて届いたらどうすればいいですか",
        "tea-shop-shipping-and-refunds-ja",
        "7日以内に写真",
    ),
    ("ギフト包装の料金は？", "tea-shop-shipping-and-refunds-ja", "300円"),
    ("ポイントの有効期限を教えてください", "tea-shop-shipping-and-refunds-ja", "12か月"),
    (
        "電話の受付時間は何時から何時までですか？",
        "tea-shop-shipping-and-refunds-ja",
        "午前10時から午後5時",
    ),
    ("在宅勤務は週に何日までできますか？", "office-handbook-ja", "週に3日"),
    ("有給休暇は年に何日ありますか？", "office-handbook-ja", "20日"),
    ("有給休暇は何日まで繰り越せますか？", "office-handbook-ja", "5日まで"),
    ("経費の申請の締め切りはいつですか？", "office-handbook-ja", "25日"),
    ("ノートパソコンは何年ごとに交換されますか", "office-handbook-ja", "4年ごと"),
    ("会議室「みなと」の定員は何名ですか？", "office-handbook-ja", "12名"),
    ("来客用の無線LANの名前は何ですか？", "office-handbook-ja", "Todai-Guest"),
    ("火災報知器が鳴ったらどこに集合しますか？", "office-handbook-ja", "噴水"),
    ("救急箱はどこにありますか？", "office-handbook-ja", "給湯室"),
    ("博物館の休館日はいつですか？", "museum-guide-ja", "水曜日"),
    ("入館料は大人いくらですか？", "museum-guide-ja", "700円"),
    ("いちばん古い収蔵品は何ですか？", "museum-guide-ja", "1712年"),
    ("レンズの重さはどのくらいですか？", "museum-guide-ja", "480"),
    ("案内ツアーの所要時間は？", "museum-guide-ja", "50分"),
    ("最寄り駅はどこですか？", "museum-guide-ja", "港南駅"),
    ("館内で写真撮影はできますか？", "museum-guide-ja", "フラッシュ"),
    ("昆布を沸騰する前に取り出すのはなぜですか？", "miso-soup-and-rice-ja", "苦味"),
    ("だしは冷蔵庫で何日間保存できますか？", "miso-soup-and-rice-ja", "3日間"),
    ("味噌はいつ入れますか？", "miso-soup-and-rice-ja", "火を止めてから"),
    ("米1合は何グラムですか？", "miso-soup-and-rice-ja", "150グラム"),
    ("冷凍したごはんは電子レンジで何分温めますか？", "miso-soup-and-rice-ja", "3分"),
    ("Kotaeという名前の由来は？", "about-kotae-ja", "答え"),
    ("APIキーがなくても使えますか？", "about-kotae-ja", "抽出モデル"),
    ("データはどこに保存されますか？", "about-kotae-ja", "SQLite"),
    ("接続が切れたらどうなりますか？", "about-kotae-ja", "Last-Event-ID"),
]
ENGLISH = [
    ("How many days do I have to return a product?", "tea-shop-shipping-and-refunds-en", "30 days"),
    ("How much does standard shipping cost?", "tea-shop-shipping-and-refunds-en", "600 yen"),
    ("When is shipping free?", "tea-shop-shipping-and-refunds-en", "8,000 yen"),
    ("How long do refunds take?", "tea-shop-shipping-and-refunds-en", "five business days"),
    ("Can I return opened tea?", "tea-shop-shipping-and-refunds-en", "cannot be returned"),
    (
        "What should I do if my teapot arrives broken?",
        "tea-shop-shipping-and-refunds-en",
        "photograph",
    ),
    ("What is the price of gift wrapping?", "tea-shop-shipping-and-refunds-en", "300 yen"),
    ("When do points expire?", "tea-shop-shipping-and-refunds-en", "twelve months"),
    (
        "What is the phone number of customer support?",
        "tea-shop-shipping-and-refunds-en",
        "054-555-0142",
    ),
    ("What are the core hours?", "office-handbook-en", "11 a.m. to 3 p.m."),
    ("How many days of paid holiday do employees get?", "office-handbook-en", "20 days"),
    ("How many days a week can I work from home?", "office-handbook-en", "three days"),
    ("By when must expenses be submitted?", "office-handbook-en", "25th"),
    ("Where is the IT desk?", "office-handbook-en", "room 204"),
    ("How often is a laptop replaced?", "office-handbook-en", "four years"),
    ("What is the name of the guest Wi-Fi?", "office-handbook-en", "Lantern-Guest"),
    ("Where do we meet if the fire alarm rings?", "office-handbook-en", "fountain"),
    ("Are dogs allowed in the office?", "office-handbook-en", "Fridays"),
    ("On which day is the museum closed?", "museum-guide-en", "Mondays"),
    ("How much is the ticket for students?", "museum-guide-en", "5 euros"),
    ("Who built the great station clock?", "museum-guide-en", "Clara Winter"),
    ("What is the oldest object in the collection?", "museum-guide-en", "1598"),
    ("When do guided tours start?", "museum-guide-en", "11 a.m. and 3 p.m."),
    ("Is photography allowed?", "museum-guide-en", "without flash"),
    ("Which tram goes to the museum?", "museum-guide-en", "tram line 4"),
    ("At what temperature should I brew gyokuro?", "tea-guide-en", "50 to 60 degrees"),
    ("How long should hojicha steep in boiling water?", "tea-guide-en", "30 seconds"),
    ("Why does hot water make tea bitter?", "tea-guide-en", "catechins"),
    ("What is a kyusu?", "tea-guide-en", "handle at the side"),
    ("How long does an unopened packet keep in the freezer?", "tea-guide-en", "a year"),
    ("Where does Kotae keep its data?", "about-kotae-en", "SQLite"),
    ("What happens if no document fits the question?", "about-kotae-en", "does not call the model"),
    ("What does the name Kotae mean?", "about-kotae-en", "answer"),
    (
        "How does a browser continue a stream after the connection breaks?",
        "about-kotae-en",
        "Last-Event-ID",
    ),
]
OFF_TOPIC = [
    "日本の首都はどこですか？",
    "明日の東京の天気を教えてください",
    "相対性理論を発見したのは誰ですか？",
    "富士山の高さは何メートルですか？",
    "おすすめの映画を教えて",
    "円周率を小数点以下10桁まで教えてください",
    "サッカーワールドカップで優勝した国は？",
    "Pythonでリストを並べ替える方法は？",
    "フランス革命はいつ起きましたか？",
    "犬の散歩は一日何回必要ですか？",
    "新幹線の東京から大阪までの所要時間は？",
    "量子コンピュータとは何ですか？",
    "住宅ローンの金利はいくらですか？",
    "What is the capital of France?",
    "Who wrote Romeo and Juliet?",
    "How tall is Mount Everest?",
    "What will the weather be tomorrow?",
    "How do I sort a list in Python?",
    "Who won the World Cup in 2018?",
    "What is the boiling point of nitrogen?",
    "Explain the theory of relativity.",
    "How many planets are in the solar system?",
    "What is the best pizza in Naples?",
    "When did the French Revolution begin?",
    "How do I change a car tyre?",
    "What is the population of Brazil?",
    "Can you recommend a good movie?",
]


async def search(
    database: Database,
    query: str,
    user_id: str | None = "u",
    limit: int = 5,
    within: list[str] | None = None,
) -> SearchResults:
    """Search with the default thresholds."""
    return await SearchService(database, SETTINGS).search(
        query, user_id=user_id, limit=limit, within=within
    )


async def store_text(
    database: Database, text: str, user_id: str = "u", *, shared: bool = False, title: str = "T"
) -> str:
    """Store a text and return its id."""
    given = [library.NewDocument(title, text, "utf-8")]
    (document,) = await library.store_documents(
        database, SETTINGS, ChunkWorkers(), given, user_id=user_id, shared=shared
    )
    return document.document_id


async def test_the_samples_answer_sensible_questions(database: Database) -> None:
    """Every question ranks its document first, is answerable, and is answered correctly."""
    seeded = await library.seed_documents(database, SETTINGS, ChunkWorkers(), user_id="local")
    names = dict(
        zip(
            (document.document_id for document in seeded),
            sorted(path.stem for path in library.SAMPLES.glob("*.md")),
            strict=True,
        )
    )
    assert len(JAPANESE) >= 20
    assert len(ENGLISH) >= 20
    failures = []
    for question, name, expected in JAPANESE + ENGLISH:
        results = await search(database, question)
        context = build_context(
            results.items, SETTINGS.context_tokens_max, SETTINGS.context_chunks_max
        )
        answer = quote_answer(question, context)
        if (
            not results.answerable
            or names[results.items[0].document_id] != name
            or expected not in answer
            or not read_citations(answer, context, question).sources
        ):
            failures.append((question, results.answerable, results.share, results.terms, answer))
    assert failures == []


async def test_the_samples_do_not_answer_others(database: Database) -> None:
    """A question about something else is not answerable."""
    await library.seed_documents(database, SETTINGS, ChunkWorkers(), user_id="local")
    assert sum(question.isascii() for question in OFF_TOPIC) >= 10
    assert sum(not question.isascii() for question in OFF_TOPIC) >= 10
    assert [
        question for question in OFF_TOPIC if (await search(database, question)).answerable
    ] == []


async def test_two_owners(database: Database) -> None:
    """A search returns the caller's documents and shared ones; without a user it returns all."""
    mine = await store_text(database, "The password of the harbour crane is tulip.", "a")
    other = await store_text(database, "The password of the harbour crane is violet.", "b")
    shared = await store_text(
        database, "The password of the harbour crane is secret.", "c", shared=True
    )
    query = "What is the password of the harbour crane?"
    assert {hit.document_id for hit in (await search(database, query, "a")).items} == {mine, shared}
    assert {hit.document_id for hit in (await search(database, query, "b")).items} == {
        other,
        shared,
    }
    assert {hit.document_id for hit in (await search(database, query, "nobody")).items} == {shared}
    assert {hit.document_id for hit in (await search(database, query, None)).items} == {
        mine,
        other,
        shared,
    }


async def test_versions_have_their_dates(database: Database) -> None:
    """Of two versions of a text the one with the later date is first, with this date."""
    text = "Employees may claim up to {} euros per night for hotels on business trips abroad."
    dates = [dt.date(2025, 3, 1), dt.date(2023, 3, 1)]
    new = [
        library.NewDocument("Travel policy", text.format(70 + n), "utf-8", date=date)
        for n, date in enumerate(dates)
    ]
    await library.store_documents(database, SETTINGS, ChunkWorkers(), new, user_id="u")
    first, second = (await search(database, "How much does a hotel cost per night?")).items
    assert (first.date, second.date) == ("2025-03-01", "2023-03-01")
    assert second.newer == first.document_id


async def test_a_hit_has_its_position_and_matches(database: Database) -> None:
    """A hit has its chunk, the matched words and the share of the query that they cover."""
    document_id = await store_text(database, "Penguins sleep in caves.", title="Birds")
    results = await search(database, "Where do penguins sleep?")
    (hit,) = results.items
    assert (hit.chunk_id, hit.title, hit.text) == (
        f"{document_id}.1",
        "Birds",
        "Penguins sleep in caves.",
    )
    assert hit.matched == ["penguin", "sleep"]
    assert 0.5 < hit.coverage <= 1
    assert hit.sentence == (0, len(hit.text))
    assert results.answerable


@pytest.mark.parametrize(
    "query",
    [
        "",
        "   ",
        "。、！？",
        "これは？",
        '"',
        '"penguin',
        "penguin*",
        "words : penguin",
        "NEAR(penguin sleep, 5)",
        "penguin AND",
        "NOT penguin",
        "^penguin",
        "(((",
        "penguin) OR (rowid:1",
        "'; DROP TABLE chunks; --",
        "{words grams} : penguin",
        "-penguin + sleep",
        "\0",
        "a" * 100_000,
        "灯" * 100_000,
        " ".join(f"w{i}" for i in range(5000)),
        "ΑΣ ς ſ İ ﷽ 👩‍👩‍👧",
        "מגדלור \u202e קדימה مرحبا",
        "x " * 50_000,
    ],
)
async def test_any_text_is_a_query(database: Database, query: str) -> None:
    """No text is interpreted as a query language; a query without terms returns nothing."""
    await store_text(database, "Penguins sleep in caves. 灯台は岬にあります。")
    results = await search(database, query)
    assert all("Penguins" in hit.text for hit in results.items)
    parsed = parse_query(query, get_tokenizer("auto"))
    if not (parsed.words or parsed.grams):
        assert results == SearchResults(items=[], answerable=False, share=0, terms=0)


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    query=st.text(max_size=60)
    | st.text(st.sampled_from('"*():^-+ ANDORTNEAR penguin'), max_size=40)
)
async def test_search_never_raises(database: Database, query: str) -> None:
    """No text makes a search fail."""
    assert (await search(database, query)).items == []


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("ボネール島はカリブ海にあります。", "ﾎﾞﾈｰﾙ島"),
        ("ＡＢＣ銀行の口座番号です。", "abc銀行"),
        ("サーバーの再起動は毎週日曜日です。", "サーバの再起動"),
        ("ﾊﾝｶｸのｻｰﾊﾞｰです。", "ハンカクのサーバー"),
        ("返金期限は三十日です。", "返金の期限"),
        ("Our café serves crème brûlée.", "cafe creme brulee"),
        ("Refunding was easy.", "refunds"),
    ],
)
async def test_spelling_variants_match(database: Database, text: str, query: str) -> None:
    """Differences in width, accents, inflection, long vowels and compounds do not matter."""
    document_id = await store_text(database, text)
    assert [hit.document_id for hit in (await search(database, query)).items] == [document_id]


QUESTIONS = ["ｻｰﾊﾞｰのﾊﾞｯｸｱｯﾌﾟ", "ＫＯＴＡＥの返品期限", "Café opening HOURS", "がぎぐげごのパ行"]


@pytest.mark.parametrize("question", QUESTIONS)
async def test_variants_rank_alike(database: Database, question: str) -> None:
    """The width, case and composition of a query change neither hits nor scores."""
    await library.seed_documents(database, SETTINGS, ChunkWorkers(), user_id="local")
    await store_text(
        database,
        "サーバーのバックアップは毎晩です。KOTAEの返品期限は30日。"
        "Cafe opening hours: nine to five. がぎぐげごのパ行。",
    )
    results = await search(database, question)
    assert results.items
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        variant = unicodedata.normalize(form, question)
        assert await search(database, variant) == await search(database, variant.upper()) == results


@pytest.mark.parametrize(
    "mail",
    [
        (
            "Hello,\n\nmy colleague left last month and I took over the work. {}"
            " I would be glad about a short answer before the meeting tomorrow.\n\nBest,\nMaria"
        ),
        (
            "お世話になっております。総務部の田中です。先週から資料を準備しているのですが、見つけられません。{}"
            "お忙しいところ恐れ入りますが、よろしくお願いいたします。"
        ),
    ],
)
async def test_an_email_is_answered_like_its_question(database: Database, mail: str) -> None:
    """A question in an e-mail finds its passage, and one about something else is refused."""
    await library.seed_documents(database, SETTINGS, ChunkWorkers(), user_id="u")
    answered, refused = (
        ("How many days of paid leave are there per year?", "How do I change a car tyre?")
        if mail.startswith("Hello")
        else ("有給休暇は年に何日ありますか？", "東京タワーの高さは何メートルですか？")
    )
    results = await search(database, mail.format(answered))
    alone = await search(database, answered)
    assert results.answerable
    assert results.items[0].document_id == alone.items[0].document_id
    assert not (await search(database, mail.format(refused))).answerable


async def test_a_misspelled_question_is_answered(database: Database) -> None:
    """A question with a typing error is searched with the spelling of the documents."""
    await store_text(database, "The ferry to the lighthouse departs at nine. It carries parcels.")
    results = await search(database, "When does the ferrry to the lighthuose depart?")
    assert results.answerable
    assert results.searched_for == "When does the ferry to the lighthouse depart?"


async def test_a_correct_question_is_not_reported(database: Database) -> None:
    """Without a correction there is no `searched_for`."""
    await store_text(database, "The ferry to the lighthouse departs at nine.")
    results = await search(database, "When does the ferry depart?")
    assert results.searched_for is msgspec.UNSET


async def test_deleted_words_correct_nothing(database: Database) -> None:
    """A word of a deleted document is not the correction of another."""
    document_id = await store_text(database, "The lighthouses are white.")
    await store_text(database, "The lighthouse is red. The harbour is blue.")
    service = SearchService(database, SETTINGS)
    question = "lighthuoses"
    before = await service.search(question, user_id="u", limit=5)
    await library.delete_document(database, document_id, user_id=None)
    after = await service.search(question, user_id="u", limit=5)
    assert (before.searched_for, after.searched_for) == ("lighthouses", "lighthouse")


async def test_a_failing_database_is_unavailable(
    database: Database,
) -> None:
    """A search raises only `DatabaseUnavailable`, and the next one succeeds."""
    await store_text(database, "Otters sleep in kelp.")
    service = SearchService(database, SETTINGS)
    index = {"sqlite": "chunk_terms", "postgresql": "postings"}[database.dialect]
    for name, back in ((index, "elsewhere"), ("elsewhere", index)):
        async with database.transaction() as session:
            await session.exec_driver_sql(f"ALTER TABLE {name} RENAME TO {back}")
        if back == "elsewhere":
            with pytest.raises(DatabaseUnavailable, match=index):
                await service.search("Where do otters sleep?", user_id="u", limit=5)
    assert (await service.search("Where do otters sleep?", user_id="u", limit=5)).answerable


# effects of searches on the event loop

TICK = 0.002
SEARCHES = 50
LONG = "\n\n".join(
    f"第{n}章。灯台の管理人は毎朝レンズを{n}回磨き、嵐の夜には鐘を鳴らします。"
    f"The keeper rings bell {n}."
    for n in range(4000)
)

T = TypeVar("T")


@asynccontextmanager
async def measure_lateness() -> AsyncIterator[list[float]]:
    """Measure how late a timer fires, as streams of the event loop would be delayed."""
    lateness: list[float] = []

    async def tick() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(TICK)
            lateness.append(time.perf_counter() - began - TICK)

    task = asyncio.create_task(tick())
    yield lateness
    task.cancel()
    await asyncio.wait([task])


def quantile(values: list[float], share: float) -> float:
    """Return the value that this share of the values does not exceed."""
    return sorted(values)[int(len(values) * share)]


def compute(stop: threading.Event) -> None:
    """Compute in a loop: the reference for holding the interpreter lock on this machine."""
    while not stop.is_set():
        sum(range(500))


@pytest.fixture
def switch_interval() -> Iterator[None]:
    """Use the switch interval of the service."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(entry.SWITCH_SECONDS)
    yield
    sys.setswitchinterval(before)


@pytest.mark.slow
@pytest.mark.usefixtures("switch_interval")
async def test_searches_and_an_upload_do_not_block_the_loop(database: Database) -> None:
    """During an upload and many searches, timers are about as late as beside one busy thread."""
    service, stop = SearchService(database, SETTINGS), threading.Event()
    with closing(ChunkWorkers()) as workers:
        await library.store_documents(
            database,
            SETTINGS,
            workers,
            [library.NewDocument("", LONG[:50_000], "utf-8")],
            user_id="u",
        )
        thread = asyncio.create_task(asyncio.to_thread(compute, stop))
        async with measure_lateness() as beside_a_thread:
            await asyncio.sleep(1)
        stop.set()
        await thread

        async with measure_lateness() as beside_retrieval:
            given = [library.NewDocument("", LONG, "utf-8")]
            storing = asyncio.create_task(
                library.store_documents(database, SETTINGS, workers, given, user_id="u")
            )
            questions = [f"灯台の管理人は{n}回磨きますか" for n in range(SEARCHES)]
            await asyncio.gather(
                *(service.search(question, user_id="u", limit=5) for question in questions)
            )
            (document,) = await storing

    assert document.created
    assert quantile(beside_retrieval, 0.95) <= quantile(beside_a_thread, 0.95) * 3 + 0.01


class CountingDatabase(Database):
    """Counts concurrent blocking reads."""

    running_max = running = 0

    async def run_blocking_read(self, work: Callable[[sa.Connection], T]) -> T:
        """Run the read and count it."""
        lock = threading.Lock()

        def counted(connection: sa.Connection) -> T:
            with lock:
                self.running += 1
                self.running_max = max(self.running_max, self.running)
            try:
                return work(connection)
            finally:
                with lock:
                    self.running -= 1

        return await super().run_blocking_read(counted)


async def test_one_search_computes_at_a_time(database: Database) -> None:
    """Concurrent searches all return results, and no two compute at the same time."""
    given = [library.NewDocument("", LONG[:20_000], "utf-8")]
    await library.store_documents(database, SETTINGS, ChunkWorkers(), given, user_id="u")
    counting = CountingDatabase(database._url)
    service = SearchService(counting, SETTINGS)
    questions = [f"灯台の管理人は{n}回" for n in range(SEARCHES)]
    results = await asyncio.gather(
        *(service.search(question, user_id="u", limit=5) for question in questions)
    )
    await counting.close()

    assert all(result.items for result in results)
    assert counting.running_max == SEARCHES_AT_ONCE == 1


@pytest.mark.sqlite
@pytest.mark.slow
async def test_a_search_of_all_owners_does_not_delay_others(database: Database) -> None:
    """A user's search does not wait for an admin's, which reads the documents of 400 users."""
    text = "The bell of the lighthouse rings at noon."
    terms = get_tokenizer("auto").extract_terms(text)
    chunk = (text, " ".join(terms.words), " ".join(terms.grams))
    await fill_database(database, {f"user-{n}": [chunk] for n in range(400)}, [])
    service = SearchService(database, SETTINGS)

    async def measure(user_id: str | None) -> float:
        begun = time.perf_counter()
        results = await service.search("When does the bell ring?", user_id=user_id, limit=5)
        assert results.items
        return time.perf_counter() - begun

    await measure("user-1")
    admin = asyncio.create_task(measure(None))
    users = []
    while not admin.done():
        users.append(await measure("user-1"))

    assert statistics.median(users) < await admin / 5
