import { addTexts } from "../text.js";

addTexts({
  en: {
    overview_cost: "Cost",
    overview_answers: "Answers",
    overview_errors: "Errors",
    overview_tokens: "Tokens",
    overview_p50: "Response time, median",
    overview_p95: "Response time, 95th percentile",
  },
  ja: {
    overview_cost: "費用",
    overview_answers: "回答",
    overview_errors: "エラー",
    overview_tokens: "トークン",
    overview_p50: "応答時間（中央値）",
    overview_p95: "応答時間（95 パーセンタイル）",
  },
});
