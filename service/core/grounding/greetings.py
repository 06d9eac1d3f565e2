"""Greetings, thanks and farewells in languages other than English and Japanese."""

import re

import msgspec


class _Patterns(msgspec.Struct, frozen=True, kw_only=True):
    """Patterns of whole prompts, as `fold_prompt` returns them."""

    greeting: str
    thanks: str
    farewell: str


PATTERNS = {
    "de": _Patterns(
        greeting=(
            r"(?:hallo|guten (?:tag|morgen|abend)|gru(?:ss|ß) gott|servus|moin)"
            r"(?: zusammen| kotae)*"
        ),
        thanks=(
            r"(?:vielen |herzlichen |besten )?danke?(?: (?:schon|sehr|dir|ihnen|euch))*"
            r"(?: fur die hilfe)?"
        ),
        farewell=(
            r"(?:auf wiedersehen|tschuss|tschuess|bis (?:bald|spater|morgen)|gute nacht)"
            r"(?: zusammen)?"
        ),
    ),
    "fr": _Patterns(
        greeting=(
            r"(?:bonjour|bonsoir|salut|coucou)(?: (?:a tous|kotae))*"
            r"(?: (?:comment )?(?:ca va|allez vous))?"
        ),
        thanks=r"merci(?: (?:beaucoup|bien|a vous|pour (?:votre |l )?aide))*",
        farewell=r"(?:au revoir|a bientot|a plus tard|bonne (?:nuit|soiree|journee))",
    ),
    "es": _Patterns(
        greeting=(
            r"(?:hola|buenos dias|buenas(?: (?:tardes|noches))?)(?: (?:a todos|kotae))*"
            r"(?: (?:que tal|como estas))?"
        ),
        thanks=r"(?:muchas |mil )?gracias(?: por (?:la|tu|su) ayuda)?",
        farewell=r"(?:adios|hasta (?:luego|pronto|manana)|buenas noches)",
    ),
    "it": _Patterns(
        greeting=r"(?:ciao|salve|buon ?giorno|buona ?sera)(?: (?:a tutti|kotae))*(?: come stai)?",
        thanks=r"(?:molte |mille |tante )?grazie(?: (?:mille|tante))?(?: per l aiuto)?",
        farewell=r"(?:arrivederci|a presto|buona ?notte)",
    ),
    "pt": _Patterns(
        greeting=r"(?:ola|oi|bom dia|boa (?:tarde|noite))(?: (?:a todos|kotae))*(?: tudo bem)?",
        thanks=r"(?:muito )?obrigad[oa](?: pela ajuda)?",
        farewell=r"(?:adeus|tchau|ate (?:logo|breve|amanha)|boa noite)",
    ),
    "nl": _Patterns(
        greeting=(
            r"(?:hallo|hoi|goedemorgen|goedemiddag|goedenavond|goedendag)"
            r"(?: (?:allemaal|kotae))*"
        ),
        thanks=r"(?:dank je(?: wel)?|dank u(?: wel)?|bedankt|hartelijk dank)(?: voor de hulp)?",
        farewell=r"(?:tot ziens|doei|tot (?:later|morgen)|welterusten)",
    ),
    "zh": _Patterns(
        greeting=r"(?:你好|您好|大家好|早上好|下午好|晚上好|早安|嗨|哈罗)+",
        thanks=r"(?:谢谢|多谢|感谢|非常感谢|謝謝)(?:你|您|你们)?(?:的帮助)?",
        farewell=r"(?:再见|拜拜|再會|再見|明天见|晚安)",
    ),
    "ko": _Patterns(
        greeting=r"(?:안녕|안녕하세요|안녕하십니까|반갑습니다|여보세요)(?: 반갑습니다)?",
        thanks=r"(?:정말 |대단히 )?(?:감사합니다|고맙습니다|고마워요?|감사해요)",
        farewell=r"(?:안녕히 계세요|안녕히 가세요|잘 가요?|안녕히 주무세요)",
    ),
}
_COMPILED = {
    language: re.compile(
        "|".join(f"(?:{part})" for part in (patterns.greeting, patterns.thanks, patterns.farewell))
    )
    for language, patterns in PATTERNS.items()
}


def find_greeting_language(text: str) -> str | None:
    """Return the first language in which a folded prompt is a greeting, or None."""
    return next(
        (language for language, pattern in _COMPILED.items() if pattern.fullmatch(text)), None
    )
