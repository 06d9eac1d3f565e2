"""Texts of answers without a provider call: refusals, greetings and the list of documents.

All of them are in the language of the question. A prompt is a greeting, or a question about the
collection, only if it is nothing else: "Hello, when do you open?" is a question. Questions about
the collection are recognized in English and Japanese, greetings in further languages as well
(`greetings.py`).
"""

import re
from collections.abc import Sequence
from enum import Enum, auto

from service.core.grounding.greetings import PATTERNS, find_greeting_language
from service.core.grounding.localized_texts import TEXTS, get_texts
from service.core.text.tokenizer import detect_language, fold_text

NEAREST_MAX = 3  # passages with a refusal
TITLES_MAX = 20  # of a list of documents
PROMPT_CHARACTERS_MAX = 80  # of a greeting or a question about the collection


class PromptKind(Enum):
    """Prompts that are answered without a search."""

    GREETING = auto()
    THANKS = auto()
    FAREWELL = auto()
    COLLECTION = auto()  # which documents are there?


_NAME = r"(?: (?:kotae|there|everyone|all|again|bot|assistant))*"
_DOCUMENTS = (
    r"(?:(?:kinds?|sorts?|types?|list) of )?"
    r"(?:(?:your|the|my|our|all|available|any|uploaded|of) )*"
    r"(?:documents?|files?|texts?|sources?|titles?|topics?|subjects?|questions?)"
)
_JA_DOCUMENTS = r"(?:文書|文章|ドキュメント|資料|ファイル|書類|テキスト|タイトル)"
_JA_WHICH = r"(?:どんな|どのような|どういう|何の|なんの|どの)"
_JA_POLITE = r"(?:る(?:の|ん)?(?:です)?|ます|て(?:い|お)?(?:る(?:の|ん)?(?:です)?|ます))か?"
_JA_PLEASE = (
    r"(?:を|は)?(?:見せて|教えて|表示して|列挙して|挙げて|一覧して)?(?:ください|下さい|ほしい)?"
)
_GREETINGS = (
    (
        r"(?:(?:hi|hello|hey|hiya|howdy|greetings|good (?:morning|afternoon|evening|day))"
        rf"{_NAME} ?)+"
        r"(?:how are you(?: doing| today)*)?"
    ),
    r"how are you(?: doing| today)*|nice to meet you",
    (
        r"(?:こんにち[はわ]|こんばん[はわ]|おはよう(?:ございます)?|はじめまして|初めまして|もしもし|やあ"
        r"|ハロー|お疲れ[様さ]ま?です|(?:どうぞ)?よろしく(?:お願い(?:します|いたします))?|お元気ですか)+"
    ),
)
_THANKS = (
    (
        r"(?:ok(?:ay)? |great |perfect )?(?:(?:many )?thanks(?: a lot| so much| very much)?|thx|ty"
        rf"|thank you(?: so much| very much)?|cheers){_NAME}(?: for (?:your|the) (?:help|answer))?"
    ),
    (
        r"(?:(?:どうも|本当に|教えてくれて)*(?:ありがとう|有難う)(?:ございます|ございました)?|どうも"
        r"|感謝します|助かりました)+"
    ),
)
_FAREWELLS = (
    rf"(?:good ?bye|bye(?: bye)?|see you(?: later| soon)?|good night){_NAME}",
    r"さようなら|さよなら|では?また|またね|おやすみ(?:なさい)?|失礼します",
)
_COLLECTION = (
    # what do you know (about)?
    (
        rf"(?:{_GREETINGS[0]} ?)?(?:so )?what (?:else )?(?:do|can) you"
        r" (?:know|do|answer|tell me|help(?: me)?)(?: about| with)?"
    ),
    r"(?:tell me )?what (?:else )?(?:can|could|may|should) i ask(?: you)?(?: about)?",
    r"tell me what (?:you know|i can ask)(?: you)?(?: about)?|what are you able to (?:do|answer)",
    # what documents do you have?
    (
        rf"(?:what|which) {_DOCUMENTS}(?: (?:do you (?:have|know|cover|use|answer|know about)"
        r"|can (?:you answer|i ask(?: you)?)|are (?:there|available|here|uploaded)"
        r"|have (?:you|i|been uploaded)(?: uploaded)?|did i upload|exist))?(?: about)?"
    ),
    rf"what (?:is |are )?(?:in )?{_DOCUMENTS}(?: about)?",
    rf"(?:please )?(?:(?:can|could) you )?(?:list|show|give)(?: me)? (?:a )?{_DOCUMENTS}",
    r"help|what is this|who are you|what are you",
    # 何について聞けますか
    (
        rf"(?:(?:{_JA_WHICH}(?:こと|質問|話題|テーマ|内容))|何|なに|なん|何の話)"
        r"(?:に(?:ついて|関して)?(?:なら)?)?(?:を|が|は|なら|でも)?"
        r"(?:お?(?:聞け|訊け|きけ|尋ねられ|質問でき|答えられ|知って|分か[りる]|わか[りる]|でき|調べられ"
        rf"|聞いたら(?:いい|よい)|聞けば(?:いい|よい)))(?:の?ですか|い?{_JA_POLITE}|か)?"
    ),
    # どんな文書がありますか
    (
        rf"{_JA_WHICH}{_JA_DOCUMENTS}(?:が|を|は)?"
        r"(?:あ[りる]|入って|登録されて|持って|読み込まれて|見られ|参照でき|使え)"
        rf"(?:の?ですか|い?{_JA_POLITE}|か)?"
    ),
    (
        rf"(?:登録されている|登録済みの|持っている|ある|今ある|使える|すべての|全ての)?"
        rf"{_JA_DOCUMENTS}(?:の?(?:一覧|リスト|タイトル|名前)){_JA_PLEASE}"
    ),
    rf"(?:登録されている|登録済みの|持っている|使える|すべての|全ての){_JA_DOCUMENTS}{_JA_PLEASE}",
    r"文書には?何が(?:書いて|書かれて)(?:ある|います|あります|いる)(?:の|ん)?(?:です)?か?|何が書いてありますか",
    r"使い方|ヘルプ|あなたは(?:誰|何|だれ)(?:です|なの)?か?",
)
_PATTERNS = {
    kind: re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    for kind, patterns in (
        (PromptKind.GREETING, (*_GREETINGS, *(other.greeting for other in PATTERNS.values()))),
        (PromptKind.THANKS, (*_THANKS, *(other.thanks for other in PATTERNS.values()))),
        (PromptKind.FAREWELL, (*_FAREWELLS, *(other.farewell for other in PATTERNS.values()))),
        (PromptKind.COLLECTION, _COLLECTION),
    )
}
# A single word may be searched for.
_TOO_SHORT = re.compile(rf"{_JA_DOCUMENTS}|documents?|files?|questions?")


def classify_prompt(prompt: str) -> PromptKind | None:
    """Return the kind of a prompt that needs no search; None for every other prompt."""
    if len(prompt) > PROMPT_CHARACTERS_MAX:
        return None
    text = fold_prompt(prompt)
    if not text or _TOO_SHORT.fullmatch(text):
        return None
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.fullmatch(text)), None)


def fold_prompt(prompt: str) -> str:
    """Return a prompt in lower case, without accents and punctuation; kanji without spaces."""
    text = " ".join(re.sub(r"[^\w']+|_+", " ", fold_text(prompt)).split())
    return text.replace(" ", "") if detect_language(text) == "ja" else text


def compose_reply(kind: PromptKind, prompt: str, titles: Sequence[str], total: int) -> str:
    """Return the reply to a prompt of this kind.

    `titles`: of the first documents that the caller can see; `total`: the number of all of them.
    """
    language = find_greeting_language(fold_prompt(prompt))
    texts = TEXTS[language] if language else get_texts(prompt)
    if kind is not PromptKind.COLLECTION:
        return {
            PromptKind.GREETING: texts.greeting,
            PromptKind.THANKS: texts.thanks,
            PromptKind.FAREWELL: texts.farewell,
        }[kind]
    if not titles:
        return texts.empty
    head = (texts.document if total == 1 else texts.documents).format(count=total)
    lines = [head, "", *(f"- {title}" for title in titles)]
    if total > len(titles):
        lines += ["", texts.further.format(count=total - len(titles))]
    return "\n".join(lines)


def compose_refusal(prompt: str, missing: Sequence[str], *, is_empty: bool) -> str:
    """Return the refusal of a question, with the words that no visible document contains.

    `is_empty`: the caller can see no documents.
    """
    texts = get_texts(prompt)
    if is_empty:
        return texts.empty
    if not missing:
        return texts.refusal
    separator, last_separator = texts.separators
    *first, last = (texts.word.format(word=word) for word in missing)
    words = last_separator.join([*([separator.join(first)] if first else []), last])
    return texts.refusal + texts.space + texts.missing.format(words=words)
