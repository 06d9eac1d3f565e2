import { addTexts } from "../text.js";

addTexts({
  en: {
    account_limits: "My limits",
    account_no_limits: "Your usage is not limited",
    account_limit: "Limit",
    account_used: "Used",
    account_allowed: "Allowed",
    limit_requests_per_minute: "Answers per minute",
    limit_tokens_per_minute: "Tokens per minute",
    limit_tokens_per_day: "Tokens per day",
    limit_tokens_per_month: "Tokens per month",
    limit_cost_usd_per_day: "Cost per day",
    limit_cost_usd_per_month: "Cost per month",
    limit_concurrent: "Answers at a time",
  },
  ja: {
    account_limits: "利用上限",
    account_no_limits: "使用量の上限はありません",
    account_limit: "上限の種類",
    account_used: "使用量",
    account_allowed: "上限",
    limit_requests_per_minute: "1 分あたりの回答",
    limit_tokens_per_minute: "1 分あたりのトークン",
    limit_tokens_per_day: "1 日あたりのトークン",
    limit_tokens_per_month: "1 か月あたりのトークン",
    limit_cost_usd_per_day: "1 日あたりの費用",
    limit_cost_usd_per_month: "1 か月あたりの費用",
    limit_concurrent: "同時に処理する回答",
  },
});
