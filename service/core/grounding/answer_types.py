"""Types of answers: patterns of questions, and of the sentences that can answer them.

A type pairs a pattern of questions with one of sentences: "how long" with a number of days, いくら
with an amount of money. Both languages are in one pattern.
"""

import re

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
_FREQUENCY = (
    r"\b(?:every|each|once|twice|per) (?:\w+ )?"
    r"(?:second|minute|hour|day|night|week|month|quarter|year)"
    r"|\b(?:hourly|daily|nightly|weekly|monthly|quarterly|yearly|annually)\b"
    r"|毎[秒分時日晩朝週月年回]|[秒分日週年]ごと|時間ごと|か月ごと|おきに|[日週月年]に[\d一二三]+[回度]"
)
_DATE = (
    r"\d{4}|\d{1,2}[:：]\d{2}|\d\s?(?:a\.m\.|p\.m\.|am\b|pm\b)"
    r"|[\d一二三四五六七八九十]+ ?[年月日時]"
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
_CONTRAST = (
    r"\b(?:whereas|while|unlike|in contrast|on the other hand|instead of|rather than"
    r"|compared (?:to|with)"
    r"|differen(?:ce|t)|differs?|than|but|however)\b"
    r"|一方|に対し|違い|違って|異な|逆に|ではなく|より(?!も?良)|のほうが|の方が"
)
_NEGATION = (
    r"\b(?:not|never|cannot|no|none|neither|nor|without|except|unless|unsupported|only)\b|n['’]t\b"
    r"|ない|なく|ません|ず(?:、|に)|不可|禁止|除[きくい]|以外|限り"
)
_METHOD = (
    r"`|\b(?:use|run|type|call|set|add|click|open|write|send|choose|select|enter|create|install"
    r"|with|by)\b|コマンド|ください|使[いう用]|実行|設定|できます|で(?:きる|行)"
)
HOW = (
    r"\bhow (?:do|can|to|should|would|could)\b|方法|やり方|手順|仕方|使い方|書き方"
    r"|どうすれば|どうやって|どのように|するには|したい|[いきしちにみりえけせてねめれべ]方(?:を|は|が|$|[教?？])"
)
_DIFFERENCE = r"\bdiffer|\bcompared? |\bversus\b|\bvs\b|違い|違う|どちら|比べ|比較|異な"
# (pattern of the question in lower case, pattern of the answer)
_TYPES = (
    (
        (
            r"\bhow (?:often|frequently)\b|頻度"
            r"|何(?:秒|分|時間|日|週間?|[かヶカケヵ]月|年)(?:ごと|おき|に[一1]度)"
        ),
        _FREQUENCY,
    ),
    (_DIFFERENCE, _CONTRAST),
    (
        (
            r"\b(?:not|never|cannot|without|except|unsupported|limitations?|restrictions?)\b|n['’]t\b"
            r"|(?:ない|いけない|できない|ならない|ません)(?!か[?？。]?$|でしょうか)|制約|禁止"
        ),
        _NEGATION,
    ),
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
            r"\bwhen\b|\b(?:what|which) (?:time|year|day|days|date|month|century)\b"
            r"|\bhours\b|\bopen\b|いつ|何(?:年|月|日|時|曜|世紀)|年は|日は|時期(?:は|を|$|[?？。])|開館|営業時間"
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
    (HOW, _METHOD),
    (r"\be-?mail\b|メール(?:アドレス)?は|連絡先|\bcontact\b", _EMAIL),
    (r"\b(?:phone|telephone|call)\b|電話", _PHONE),
)
ANSWER_TYPES = tuple(
    (re.compile(asks), re.compile(answers, 0 if answers == _PERSON else re.IGNORECASE))
    for asks, answers in _TYPES
)
_BY_PATTERN = {answers.pattern: answers for _, answers in ANSWER_TYPES}
FREQUENCY, CONTRAST = _BY_PATTERN[_FREQUENCY], _BY_PATTERN[_CONTRAST]
DEFINITION = _BY_PATTERN[_DEFINITION]
SPECIFIC_TYPES = frozenset(_BY_PATTERN[pattern] for pattern in _SPECIFIC)  # rarely by chance
WHY = re.compile(r"\bwhy\b|\breasons?\b|なぜ|どうして|理由|何故|なんで|原因")
REASON = re.compile(
    r"\b(?:because|since|so that|due to|therefore|thus|hence|in order to|reason|as a result"
    r"|otherwise|which means|this means|to (?:avoid|prevent|ensure)|so|lest|caus(?:es?|ed|ing)"
    r"|leads? to|results? in|requires? (?:additional|extra|more)|overhead)\b"
    r"|(?:ため|から)(?:です|だ|である|に?、|。|$)|ので|なぜなら|したがって|そのため"
    r"|理由|おそれ|恐れ|防ぐ",
    re.IGNORECASE,
)
