"""Languages of texts: detection, and the words and stems that depend on them.

Chinese, Japanese and Korean are recognized by their scripts. Other languages are recognized by
their most frequent words, and by letters that only some of them have. A text without enough of
them has no known language. Detection reads the beginning of a text, is deterministic, and needs no
model.
"""

import re
from collections import Counter
from functools import lru_cache

DETECTED_CHARACTERS = 3_000  # read of a text
LANGUAGE_MARK = "\ue002"  # a private-use character, which no other term contains
SHORT_WORDS = 4  # fewer words need only one frequent one
_LATIN_WORD = re.compile(r"[^\W\d_]+")
_KANA = re.compile("[\u3041-\u309f\u30a1-\u30fa\uff66-\uff9f]")
_HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff]")
_HANGUL = re.compile("[\uac00-\ud7a3]")
KANA_SHARE_MIN = 0.05  # of the letters of a Japanese text
# Frequent Chinese characters that are rare in Japanese, beside simplified ones.
_CHINESE = frozenset("你您们們这這那吗嗎么麼呢吧哪怎什她它咋啥谁誰麽沒没还還让讓给給")
_CHINESE_WORD = re.compile("如何|可以|是否|多少|什么|为何")

STOP_WORDS = {
    "de": """aber alle allem allen aller alles als also am an ander andere anderen auch auf aus bei
    beim bin bis bist bitte da dabei dadurch dafür damit dann daran darauf darf das dass daß davon
    dazu dein deine dem den denn der deren des dessen desto dich die dies diese diesem diesen dieser
    dieses dir doch dort du durch ein eine einem einen einer eines einige er es etwa etwas euch euer
    falls für gegen gibt hab habe haben hat hatte hatten hier hin ich ihm ihn ihnen ihr ihre ihrem
    ihren ihrer im in indem ins ist ja jede jedem jeden jeder jedes jedoch jene kann kannst kein
    keine keinem keinen keiner können könnte man mehr mein meine meinem meinen meiner mich mir mit
    muss musst müssen nach nicht nichts noch nun nur ob oder ohne sehr sein seine seinem seinen
    seiner seit sich sie sind so solche soll sollen sollte sondern sonst sowie über um und uns unser
    unsere unter viel vom von vor war waren warum was weil welche welchem welchen welcher welches
    wenn wer werde werden wie wieder wieso will wir wird wirst wo wohin wozu wurde wurden während
    würde zu zum zur zwischen""",
    "fr": """ai ainsi alors après au aucun aucune aussi autre autres aux avait avant avec avez avoir
    avons c car ce ceci cela celle celles celui ces cet cette ceux chaque chez ci comme comment d
    dans de depuis des donc dont du elle elles en encore entre es est et étaient était être eu eux
    fait faire faut fois font il ils j je jusqu l la là laquelle le lequel les lesquels leur leurs
    lors lorsque lui m ma mais me même mes moi moins mon n ne ni non nos notre nous on ont ou où par
    parce pas pendant peu peut peuvent plus pour pourquoi pouvez puis qu quand que quel quelle
    quelles quels qui quoi s sa sans se selon sera ses si sinon soit son sont sous suis sur ta te
    tes toi ton tous tout toute toutes très tu un une vers veux vos votre vous y à ça""",
    "es": """a adónde al algo algún alguna algunas algunos ante antes aquel aquella así aún aunque
    bajo bien cada como cómo con contra cual cuál cuales cuáles cualquier cuando cuándo cuanto
    cuánto cuántos cuánta cuántas de del desde donde dónde dos durante e el él ella ellas ello ellos
    en entre era eran es esa esas ese eso esos está estaba están estar estas este esto estos fue
    fueron ha había hace hacer hacia han has hasta hay he la las le les lo los más me mediante mi
    mis mucho muy nada ni no nos nosotros nuestra nuestro o os otra otras otro otros para pero poco
    por porqué porque puede pueden puedo que qué quien quién quienes se según ser será si sí sido
    sin sino sobre son soy su sus también tan tanto te tener tengo tiene tienen toda todas todo
    todos tras tu tú tus u un una unas uno unos usted y ya yo""",
    "it": """a abbiamo agli ai al alcune alcuni alla alle allo altra altre altri altro anche ancora
    avere c che chi ci ciò coi col come con contro cosa così cui da dagli dai dal dalla dalle dallo
    degli dei del della delle dello deve devo di dopo dov dove due durante e è ed era erano essere
    fa fare fino fra gli ha hai hanno ho i il in io l la le lei li lo loro lui ma me mentre mi mia
    mie miei mio molto ne negli nei nel nella nelle nello no noi non nostra nostro o ogni oppure per
    perché più poi possono posso può qual quale quali quando quanta quante quanti quanto quella
    quelle quelli quello questa queste questi questo qui sarà se sei senza si sia sia siano siete
    solo sono sopra sotto sta stato su sua sue sugli sui sul sulla sulle sullo suo suoi tra tu tua
    tuo tutta tutte tutti tutto un una uno vi voi""",
    "pt": """a à ao aos aquela aquele aquilo as às assim até cada com como contra da das de dela
    dele deles depois desde dessa desse desta deste do dos e é ela elas ele eles em entre era essa
    essas esse esses esta está estão estar estas estava este estes eu faço fazer foi foram há isso
    isto já lhe mais mas me mediante mesmo meu meus minha muito na nas não nem no nos nós nossa
    nosso num numa o onde os ou outra outras outro outros para pela pelas pelo pelos pode podem
    porque porquê por posso qual quais qualquer quando quanta quantas quanto quantos que quê quem se
    seja sem sendo ser será seu seus si sido sobre são só sua suas também te tem têm tenho ter toda
    todas todo todos tu tua um uma umas uns você vocês""",
    "nl": """aan af al alle alleen als altijd andere ben bij bijvoorbeeld daar dan dat de deze
    die dit doen doet door dus een één en er geen gaat haar had hebben heb hebt heeft heel het hier
    hij hoe hoeveel hun iedere ieder iets ik in is jaar je jij jou jouw jullie kan kun kunnen kunt
    maar mag me meer men met mij mijn moet moeten na naar niet niets nog nu of om omdat onder ons
    onze ook op over per te tegen toch toen tot tussen u uit uw van vanaf veel via volgens voor waar
    waarom wanneer want waren was wat we wel welk welke werd wie wij wil worden wordt ze zelf zich
    zij zijn zo zoals zonder zou zullen""",
}
MARKED_LANGUAGES = (*STOP_WORDS, "zh")  # whose chunks have other words than English and Japanese
# Frequent English words, to tell English from the others.
_ENGLISH = """a about after all an and any are as at be because been before but by can could do does
for from had has have he her his how i if in into is it its many may me more much must my no not of
on only or other our out over she should so some such than that the their them then there these they
this those to too up us use used was we were what when where which who why will with would you
your"""
_LETTERS = {
    "ß": ("de",),
    "ä": ("de",),
    "ö": ("de",),
    "ü": ("de", "es"),
    "ñ": ("es",),
    "¿": ("es", "es"),
    "¡": ("es",),
    "ã": ("pt", "pt"),
    "õ": ("pt", "pt"),
    "œ": ("fr",),
    "ê": ("fr", "pt"),
    "è": ("fr", "it"),
    "ù": ("fr", "it"),
    "ò": ("it",),
    "ç": ("fr", "pt"),
    "ô": ("fr", "pt"),
    "á": ("es", "pt"),
    "í": ("es", "pt"),
    "ó": ("es", "pt"),
    "ú": ("es", "pt"),
}
_LETTER = re.compile(f"[{''.join(_LETTERS)}]")
# Frequent in questions; they recognize a language, but are indexed.
_ASKING = {
    "de": "bedeutet brauche braucht dauert finde funktioniert geht heißt kostet lange mache viele",
    "fr": "combien coûte faire fonctionne puis signifie sert veut",
    "es": "cuesta cómo dura funciona hago significa sirve",
    "it": "costa dura fare faccio funziona quanto serve significa trovo",
    "pt": "custa dura faço fazer funciona quanto serve significa",
    "nl": "betekent duurt hoeveel kost lang werkt",
}
# Letters after an apostrophe in English ("Eck's", "don't") are also French words.
_AMBIGUOUS = frozenset("dmst")
_FREQUENT: dict[str, tuple[str, ...]] = {}
for _language, _words in {**STOP_WORDS, "en": _ENGLISH}.items():
    for _word in {*_words.split(), *_ASKING.get(_language, "").split()} - _AMBIGUOUS:
        _FREQUENT[_word] = (*_FREQUENT.get(_word, ()), _language)


def recognize_language(text: str) -> str | None:
    """Return the language of a text as an ISO 639-1 code, or None if it is not recognized.

    A text with Japanese, Chinese or Korean letters has one of these languages, unless they are rare
    in a long one.
    """
    beginning = text[:DETECTED_CHARACTERS]
    if not beginning.isascii() and (language := _recognize_script(beginning)):
        return language
    lowered = beginning.lower()
    words = _LATIN_WORD.findall(lowered)
    counts = Counter(language for word in words for language in _FREQUENT.get(word, ()))
    if not lowered.isascii():
        counts.update(
            language for letter in set(_LETTER.findall(lowered)) for language in _LETTERS[letter]
        )
    best = counts.most_common(2)
    if not best or (len(best) > 1 and best[0][1] == best[1][1]):
        return None
    language, count = best[0]
    return language if count >= (1 if len(words) <= SHORT_WORDS else 2) else None


def recognize_part(part: str, whole: str | None) -> str | None:
    """Return the language of a part of a text in language `whole`, which it has if in doubt."""
    language = recognize_language(part)
    if language is None or (language == "ja" and whole == "zh" and not _KANA.search(part)):
        return whole
    return language


def mark_language(language: str) -> str:
    """Return the term that marks the chunks of a language in the index."""
    return LANGUAGE_MARK + language


def _recognize_script(text: str) -> str | None:
    han, kana, hangul = (len(script.findall(text)) for script in (_HAN, _KANA, _HANGUL))
    letters = sum(map(str.isalpha, text))
    if max(han + kana, hangul) * 10 < letters:
        return None
    if hangul > han + kana:
        return "ko"
    if is_chinese(text) and kana < KANA_SHARE_MIN * han:
        return "zh"
    return "ja"


def is_chinese(text: str) -> bool:
    """Return whether a text has Chinese words or characters that are rare in Japanese."""
    return bool(_CHINESE_WORD.search(text)) or any(map(_is_chinese_letter, _HAN.findall(text)))


@lru_cache(maxsize=8192)
def _is_chinese_letter(letter: str) -> bool:
    """Return whether a letter is a frequent Chinese one, or not in the Japanese character set."""
    if letter in _CHINESE:
        return True
    try:
        letter.encode("cp932")
    except UnicodeEncodeError:
        try:
            letter.encode("gb2312")
        except UnicodeEncodeError:
            return False
        return True
    return False
