"""Greetings, thanks and farewells in languages other than English and Japanese.

Patterns of whole prompts, in lower case and without accents and punctuation; without spaces in
Chinese.
"""

GREETINGS = (
    r"(?:hallo|guten (?:tag|morgen|abend)|gru(?:ss|ß) gott|servus|moin)(?: zusammen| kotae)*",
    (
        r"(?:bonjour|bonsoir|salut|coucou)(?: (?:a tous|kotae))*"
        r"(?: (?:comment )?(?:ca va|allez vous))?"
    ),
    (
        r"(?:hola|buenos dias|buenas(?: (?:tardes|noches))?)(?: (?:a todos|kotae))*"
        r"(?: (?:que tal|como estas))?"
    ),
    r"(?:ciao|salve|buon ?giorno|buona ?sera)(?: (?:a tutti|kotae))*(?: come stai)?",
    r"(?:ola|oi|bom dia|boa (?:tarde|noite))(?: (?:a todos|kotae))*(?: tudo bem)?",
    r"(?:hallo|hoi|goedemorgen|goedemiddag|goedenavond|goedendag)(?: (?:allemaal|kotae))*",
    r"(?:你好|您好|大家好|早上好|下午好|晚上好|早安|嗨|哈罗)+",
    r"(?:안녕|안녕하세요|안녕하십니까|반갑습니다|여보세요)(?: 반갑습니다)?",
)
THANKS = (
    r"(?:vielen |herzlichen |besten )?danke?(?: (?:schon|sehr|dir|ihnen|euch))*(?: fur die hilfe)?",
    r"merci(?: (?:beaucoup|bien|a vous|pour (?:votre |l )?aide))*",
    r"(?:muchas |mil )?gracias(?: por (?:la|tu|su) ayuda)?",
    r"(?:molte |mille |tante )?grazie(?: (?:mille|tante))?(?: per l aiuto)?",
    r"(?:muito )?obrigad[oa](?: pela ajuda)?",
    r"(?:dank je(?: wel)?|dank u(?: wel)?|bedankt|hartelijk dank)(?: voor de hulp)?",
    r"(?:谢谢|多谢|感谢|非常感谢|謝謝)(?:你|您|你们)?(?:的帮助)?",
    r"(?:정말 |대단히 )?(?:감사합니다|고맙습니다|고마워요?|감사해요)",
)
FAREWELLS = (
    r"(?:auf wiedersehen|tschuss|tschuess|bis (?:bald|spater|morgen)|gute nacht)(?: zusammen)?",
    r"(?:au revoir|a bientot|a plus tard|bonne (?:nuit|soiree|journee))",
    r"(?:adios|hasta (?:luego|pronto|manana)|buenas noches)",
    r"(?:arrivederci|a presto|buona ?notte)",
    r"(?:adeus|tchau|ate (?:logo|breve|amanha)|boa noite)",
    r"(?:tot ziens|doei|tot (?:later|morgen)|welterusten)",
    r"(?:再见|拜拜|再會|再見|明天见|晚安)",
    r"(?:안녕히 계세요|안녕히 가세요|잘 가요?|안녕히 주무세요)",
)
