"""The texts that are sent instead of an answer, in the language of the question."""

import msgspec

from service.core.text.languages import recognize_language
from service.core.text.tokenizer import detect_language


class LocalizedTexts(msgspec.Struct, frozen=True, kw_only=True):
    """The texts in one language."""

    refusal: str
    greeting: str
    thanks: str
    farewell: str
    documents: str
    document: str
    further: str
    empty: str
    missing: str
    word: str
    separators: tuple[str, str]  # between words, before the last one
    space: str


def get_texts(question: str) -> LocalizedTexts:
    """Return the texts in the language of a question; in English if it is not recognized."""
    language = recognize_language(question) or detect_language(question)
    return TEXTS[language]


TEXTS = {
    "en": LocalizedTexts(
        refusal="I could not find an answer to this question in the documents I was given.",
        greeting="Hello! Ask me something about the documents.",
        thanks="You're welcome!",
        farewell="Goodbye!",
        documents="I answer from these {count} documents:",
        document="I answer from this document:",
        further="… and {count} more.",
        empty="There are no documents yet. Add some, then ask about them.",
        missing="The documents do not mention {words}.",
        word="{word}",
        separators=(", ", " or "),
        space=" ",
    ),
    "ja": LocalizedTexts(
        refusal="お預かりしている文書の中に、この質問への答えは見つかりませんでした。",
        greeting="こんにちは。文書について質問してください。",
        thanks="どういたしまして。",
        farewell="さようなら。",
        documents="次の文書（{count} 件）から答えます。",
        document="次の文書から答えます。",
        further="ほか {count} 件",
        empty="文書はまだありません。文書を追加してから質問してください。",
        missing="{words}は文書にありません。",
        word="「{word}」",
        separators=("", "と"),
        space="",
    ),
    "de": LocalizedTexts(
        refusal="In den vorliegenden Dokumenten habe ich keine Antwort auf diese Frage gefunden.",
        greeting="Hallo! Stellen Sie eine Frage zu den Dokumenten.",
        thanks="Gern geschehen!",
        farewell="Auf Wiedersehen!",
        documents="Ich antworte aus diesen {count} Dokumenten:",
        document="Ich antworte aus diesem Dokument:",
        further="… und {count} weitere.",
        empty=(
            "Es gibt noch keine Dokumente. Fügen Sie welche "
            "hinzu und stellen Sie dann eine Frage dazu."
        ),
        missing="Die Dokumente erwähnen {words} nicht.",
        word="{word}",
        separators=(", ", " oder "),
        space=" ",
    ),
    "fr": LocalizedTexts(
        refusal="Je n’ai pas trouvé de réponse à cette question dans les documents fournis.",
        greeting="Bonjour ! Posez une question sur les documents.",
        thanks="Je vous en prie !",
        farewell="Au revoir !",
        documents="Je réponds à partir de ces {count} documents :",
        document="Je réponds à partir de ce document :",
        further="… et {count} autres.",
        empty="Il n’y a pas encore de documents. Ajoutez-en, puis posez une question.",
        missing="Les documents ne mentionnent pas {words}.",
        word="{word}",
        separators=(", ", " ni "),
        space=" ",
    ),
    "es": LocalizedTexts(
        refusal="No he encontrado una respuesta a esta pregunta en los documentos disponibles.",
        greeting="¡Hola! Haga una pregunta sobre los documentos.",
        thanks="¡De nada!",
        farewell="¡Hasta luego!",
        documents="Respondo a partir de estos {count} documentos:",
        document="Respondo a partir de este documento:",
        further="… y {count} más.",
        empty="Todavía no hay documentos. Añada algunos y haga después una pregunta.",
        missing="Los documentos no mencionan {words}.",
        word="{word}",
        separators=(", ", " ni "),
        space=" ",
    ),
    "it": LocalizedTexts(
        refusal="Non ho trovato una risposta a questa domanda nei documenti disponibili.",
        greeting="Salve! Faccia una domanda sui documenti.",
        thanks="Prego!",
        farewell="Arrivederci!",
        documents="Rispondo in base a questi {count} documenti:",
        document="Rispondo in base a questo documento:",
        further="… e altri {count}.",
        empty="Non ci sono ancora documenti. Aggiungerne alcuni, poi fare una domanda.",
        missing="I documenti non menzionano {words}.",
        word="{word}",
        separators=(", ", " né "),
        space=" ",
    ),
    "pt": LocalizedTexts(
        refusal="Não encontrei uma resposta a esta pergunta nos documentos disponíveis.",
        greeting="Olá! Faça uma pergunta sobre os documentos.",
        thanks="De nada!",
        farewell="Até logo!",
        documents="Respondo a partir destes {count} documentos:",
        document="Respondo a partir deste documento:",
        further="… e mais {count}.",
        empty="Ainda não há documentos. Adicione alguns e depois faça uma pergunta.",
        missing="Os documentos não mencionam {words}.",
        word="{word}",
        separators=(", ", " nem "),
        space=" ",
    ),
    "nl": LocalizedTexts(
        refusal="In de beschikbare documenten heb ik geen antwoord op deze vraag gevonden.",
        greeting="Hallo! Stel een vraag over de documenten.",
        thanks="Graag gedaan!",
        farewell="Tot ziens!",
        documents="Ik antwoord op basis van deze {count} documenten:",
        document="Ik antwoord op basis van dit document:",
        further="… en nog {count}.",
        empty="Er zijn nog geen documenten. Voeg er een paar toe en stel dan een vraag.",
        missing="De documenten vermelden {words} niet.",
        word="{word}",
        separators=(", ", " of "),
        space=" ",
    ),
    "zh": LocalizedTexts(
        refusal="在现有文档中没有找到这个问题的答案。",
        greeting="你好！请提出关于文档的问题。",
        thanks="不客气！",
        farewell="再见！",
        documents="我根据以下 {count} 个文档回答：",
        document="我根据以下文档回答：",
        further="……另有 {count} 个。",
        empty="还没有文档。请先添加文档，再提问。",
        missing="文档中没有提到{words}。",
        word="“{word}”",
        separators=("、", "和"),
        space="",
    ),
    "ko": LocalizedTexts(
        refusal="제공된 문서에서 이 질문에 대한 답을 찾지 못했습니다.",
        greeting="안녕하세요! 문서에 대해 질문해 주세요.",
        thanks="천만에요!",
        farewell="안녕히 가세요!",
        documents="다음 문서 {count}개를 바탕으로 답합니다:",
        document="다음 문서를 바탕으로 답합니다:",
        further="… 외 {count}개",
        empty="아직 문서가 없습니다. 문서를 추가한 다음 질문해 주세요.",
        missing="문서에는 {words}에 대한 내용이 없습니다.",
        word="‘{word}’",
        separators=(", ", ", "),
        space=" ",
    ),
}
