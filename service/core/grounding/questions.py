"""What a question asks for: the type of its answer, recognized by patterns in both languages.

A type pairs a pattern of questions with a pattern of the sentences that can answer them: "how long"
with a number of days, いくら with an amount of money.
"""

import re

import msgspec

from service.core.text.sentences import split_sentences
from service.core.text.tokenizer import detect_language

# A query of a few words asks what it names.
SHORT_WORDS, SHORT_JAPANESE_CHARACTERS = 3, 12
LONG_CHARACTERS = 200  # of a longer prompt only the question sentences are read

_NUMBER = (
    r"(?:\d|[〇一二三四五六七八九十百千万億数]+(?=[^\s、。の]|$)"
    r"|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|hundred"
    r"|thousand|million|half|once|twice)\b)"
)
_COUNT = (
    r"(?:[\d.,]+|[〇一二三四五六七八九十百千万数半]+|\b(?:an?|one|two|three|four|five|six|seven|eight"
    r"|nine|ten|eleven|twelve|twenty|thirty|several|few|half))"
)
_DURATION = (
    rf"{_COUNT}(?:\s?(?:to|or|-|–|〜|~|から)\s?{_COUNT})?[\s-]?"
    r"(?:(?:business|working|calendar|full|more)[\s-])?"
    r"(?:seconds?|minutes?|hours?|days?|weeks?|months?|years?|centur(?:y|ies)|decades?"
    r"|秒|分間?|時間|日間?|営業日|週間?|[かヶカケヵ箇]月|年間?|世紀)"
    r"|当日|即日|翌日|same day|immediately|at once|forever|無期限"
)
_DATE = (
    r"\d{4}|\d{1,2}[:：]\d{2}|\d\s?(?:a\.m\.|p\.m\.|am\b|pm\b)|[\d一二三四五六七八九十]+[年月日時]"
    r"|曜日?|世紀|時代|午前|午後|毎[日週月年]|[前後翌当]日|年末年始"
    r"|\b(?:mon|tues|wednes|thurs|fri|satur|sun)days?\b|\bweek(?:day|end)s?\b"
    r"|\b(?:january|february|march|april|may|june|july|august|september|october|november|december)"
    r"\b|\b(?:century|daily|weekly|monthly|midnight|noon|spring|summer|autumn|winter|morning)\b"
)
_MONEY = (
    r"[¥$€£]\s?\d|\d[\d,.]*\s?(?:円|ドル|ユーロ|ポンド|元|yen|dollars?|euros?|cents?|pounds?|usd|eur)"
    r"|\b(?:free|no charge|at our expense)\b|無料|費用はかか|かかりません|負担"
)
_EMAIL = r"\S@\S+\.\S"
_PHONE = r"\d{2,5}-\d{2,4}-?\d{3,4}|\bextension\b|内線"
_SPECIFIC = frozenset([_DURATION, _MONEY, _EMAIL, _PHONE])
_DEFINITION = (
    r"\b(?:is|are) (?:an?|the|any|one)\b|\bmeans?\b|\brefers to\b"
    r"|とは|のこと|意味|由来|である。|呼ば|(?:です|だ)。"
)
_PLACE = (
    r"\b(?:in|at|on|near|next to|room|floor|under|from|to)\b|/\w"
    r"|[階市町村駅前横室館国県州島]|にあ[りる]|地下"
)
_PERSON = (
    r"\bby\b|[A-Z][\w’'.-]+ (?:[a-z]{1,3} )?[A-Z]\w+"
    r"|さん|氏|者|係|担当|様|当[店社館]|会社|による|によって"
)
_METHOD = (
    r"`|\b(?:use|run|type|call|set|add|click|open|write|send|choose|select|enter|create|install"
    r"|with|by)\b|コマンド|ください|使[いう用]|実行|設定|できます|で(?:きる|行)"
)
_HOW = (
    r"\bhow (?:do|can|to|should|would|could)\b|方法|やり方|手順|仕方|使い方|書き方"
    r"|どうすれば|どうやって|どのように|するには|したい"
)
# (pattern of the question in lower case, pattern of the answer)
_TYPES = (
    (
        (
            r"\bhow (?:long|soon|quickly|fast)\b|\bduration\b|\bdeadline\b"
            r"|\bhow many (?:business |working )?(?:second|minute|hour|day|week|month|year)s?\b"
            r"|どのくらいの(?:期間|時間|日数)|何(?:秒|分|時間|日|週間?|[かヶカケヵ]月|年間)"
            r"|(?:期限|期間|日数|所要時間|時間)(?:は|を|$)|いつまで"
            r"|(?:どのくらい|どれくらい)(?:で|待|かか|続)"
        ),
        _DURATION,
    ),
    (
        (
            r"\bwhen\b|\b(?:what|which) (?:time|year|day|days|date|month|century)\b|\bhow often\b"
            r"|\bhours\b|\bopen\b|いつ|何(?:年|月|日|時|曜|世紀)|年は|日は|時期|開館|営業時間"
        ),
        _DATE,
    ),
    (
        (
            r"\bhow much (?:does|do|did|is|are|will|would|money)\b|\bcosts?\b|\bprices?\b|\bfees?\b"
            r"|\bpay\b|\bcharge\b|いくら|何円|料金|値段|費用|価格|送料|入館料|代金"
        ),
        _MONEY,
    ),
    (
        (
            r"\bhow (?:many|much|big|heavy|hot|far|tall|high|old|large|small|wide|deep)\b"
            r"|\bnumber of\b|\b(?:temperature|size|weight|limit|maximum|minimum|percentage)\b"
            r"|いくつ|どのくらい|どれくらい|どれだけ|何[^かがをもでとのにはだ]{1,2}"
            r"|重さ|温度|最大|上限|人数|定員|割合|数は"
        ),
        _NUMBER,
    ),
    (
        r"\bmean(?:s|ing)?\b|\bwhat(?: is|'s| are)\b|\bdefin|とは|意味|由来|って何",
        _DEFINITION,
    ),
    (r"\bwhere\b|どこ|場所|何処", _PLACE),
    (r"\bwho(?:m|se)?\b|誰|だれ|何者", _PERSON),
    (_HOW, _METHOD),
    (r"\be-?mail\b|メール(?:アドレス)?は|連絡先|\bcontact\b", _EMAIL),
    (r"\b(?:phone|telephone|call)\b|電話", _PHONE),
)
_COMPILED_TYPES = tuple(
    (re.compile(asks), re.compile(answers, 0 if answers == _PERSON else re.IGNORECASE))
    for asks, answers in _TYPES
)
_COMPILED_DEFINITION = re.compile(_DEFINITION, re.IGNORECASE)
_WHY = re.compile(r"\bwhy\b|\breasons?\b|なぜ|どうして|理由|何故|なんで|原因")
REASON = re.compile(
    r"\b(?:because|since|so that|due to|therefore|thus|hence|in order to|reason|as a result"
    r"|otherwise|which means|this means|to (?:avoid|prevent|ensure))\b"
    r"|(?:ため|から)(?:です|だ|である|に?、|。|$)|ので|なぜなら|したがって|そのため"
    r"|理由|おそれ|恐れ|防ぐ",
    re.IGNORECASE,
)
_ASKS_HOW = re.compile(_HOW + r"|\b(?:command|syntax)\b|書式|コマンド")
_COMPARISON = (
    r"\bdifferen|\bcompare|\bversus\b|\bvs\b|\bor\b|\bbetween\b|違い|どちら|それとも|比べ|異な"
)
_SEVERAL = re.compile(
    _COMPARISON + r"|\band\b|\bboth\b|[?？].*[?？]|および|及び|ならびに|それぞれ|両方"
    r"|(?:何|いつ|どこ|誰|いくら|どの).*(?:、|何|いつ|どこ|誰|いくら|どの)"
    r"|(?:と|、).*(?:の場所|の名前|の番号|の値段)"
)
_COMPARES = re.compile(_COMPARISON)
_ABBREVIATION_ASKED = re.compile(
    r"\bstands? for\b|\babbreviat|\bacronym|\bexpan(?:d|sion)|の略|略称|正式名|フルスペル"
)
_ACRONYM = re.compile(r"(?<![A-Za-z0-9])[A-Z][A-Za-z0-9]{0,3}[A-Z0-9](?![A-Za-z0-9])")
_POLAR = re.compile(
    r"^(?:can|may|could|do|does|did|is|are|was|were|will|would|should|must|has|have)\b"
    r"|^(?!.*(?:何|いつ|どこ|誰|だれ|いくら|いくつ|どの|どう|どれ|どんな|なぜ)).*(?:ます|です|ません)か[?？。]?$"
)
_ENDS_AS_QUESTION = re.compile(r"(?:[?？]|か。?)\s*$")
_ASKING = re.compile(
    r"[?？]|\b(?:how|what|when|where|why|who|which|can|could|should|is|are|do|does)\b.*$"
    r"|(?:か|たい|教えて(?:ください|下さい)?)[。．]?$"
)


class Question(msgspec.Struct, frozen=True):
    """A question and what its answer must contain.

    `answers`: patterns of its types. `is_specific`: they rarely match by chance. `is_polar`: yes or
    no answers it. `acronyms`: those whose expansion is asked for or would define them.
    """

    text: str
    answers: tuple[re.Pattern[str], ...]
    is_specific: bool
    asks_why: bool
    asks_how: bool
    asks_several: bool
    compares: bool
    is_polar: bool
    acronyms: tuple[str, ...]

    def is_answered_by(self, text: str) -> bool:
        """Return whether a text has what the question asks for, if that can be recognized."""
        return self.is_polar or (
            bool(self.answers) and all(pattern.search(text) for pattern in self.answers)
        )


def read_question(prompt: str) -> Question:
    """Return what a prompt asks for. Of a long one, such as an e-mail, its questions are read."""
    text = _find_questions(prompt) if len(prompt) > LONG_CHARACTERS else prompt
    folded = text.lower()
    is_short = _is_short(text)
    types = [answers for asks, answers in _COMPILED_TYPES if asks.search(folded)]
    specific = any(answers.pattern in _SPECIFIC for answers in types)
    expands = _ABBREVIATION_ASKED.search(folded) or is_short or "とは" in text
    return Question(
        text=text,
        answers=tuple(types or ([_COMPILED_DEFINITION] if is_short else [])),
        is_specific=specific or bool(_WHY.search(folded)),
        asks_why=bool(_WHY.search(folded)),
        asks_how=bool(_ASKS_HOW.search(folded)),
        asks_several=bool(_SEVERAL.search(folded)),
        compares=bool(_COMPARES.search(folded)),
        is_polar=bool(_POLAR.search(folded.strip())),
        acronyms=tuple(_ACRONYM.findall(text)) if expands else (),
    )


def _is_short(text: str) -> bool:
    if _ENDS_AS_QUESTION.search(text):
        return False
    if detect_language(text) == "ja":
        return len(text) <= SHORT_JAPANESE_CHARACTERS
    return len(text.split()) <= SHORT_WORDS


def _find_questions(prompt: str) -> str:
    sentences = [prompt[start:end] for start, end in split_sentences(prompt)]
    questions = [sentence for sentence in sentences if re.search("[?？]", sentence)] or [
        sentence for sentence in sentences if _ASKING.search(sentence.lower().strip())
    ]
    gap = "" if detect_language(prompt) == "ja" else " "
    return gap.join(questions) or prompt


def is_expanded(acronym: str, text: str) -> bool:
    """Return whether a text has the expansion of an acronym beside it: `HTTP (Hypertext …)`."""
    before = re.search(rf"([^()（）]{{3,80}})\s?[(（]{re.escape(acronym)}\b", text)
    after = re.search(rf"\b{re.escape(acronym)}\b[\"”*]*\s?[(（]([^()（）]{{3,80}})[)）]", text)
    if re.search(rf"\b{re.escape(acronym)}\b.{{0,40}}(?:stands for|is short for|の略)", text):
        return True
    letters = [letter.lower() for letter in acronym if letter.isalpha()]
    before_words, after_words = (
        re.findall(r"[A-Za-z]+", match[1]) if match else ["no"] for match in (before, after)
    )
    return (
        not before_words
        or not after_words
        or _have_initials(before_words, letters)
        or (len(after_words) > 1 and after_words[0][0].lower() == letters[0])
        or _have_initials(re.findall(r"[A-Z][a-z]+", text), letters)
    )


def _have_initials(words: list[str], letters: list[str]) -> bool:
    """Return whether consecutive words begin with the letters."""
    initials = "".join(word[0].lower() for word in words)
    return len(letters) > 1 and "".join(letters) in initials
