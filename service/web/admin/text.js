// Texts that the pages share. Each page adds its own texts in the same way: see CONTRIBUTING.md.

import { addTexts } from "../text.js";

addTexts({
  en: {
    navigation: "Pages",
    nav_ask: "Ask",
    nav_overview: "Overview",
    nav_system: "System",
    nav_account: "My account",
    skip_to_content: "Skip to the content",
    admins_only: "This page is for administrators",
    admins_only_detail: "You are signed in as {name}, who is not an administrator. Your usage and keys are on your account page.",
    cancel: "Cancel",
    copy: "Copy",
    loading: "Loading…",
    size_value: "{size}",
    chart_values: "Values as a table",
    chart_empty: "No values in this period",
    chart_time: "Beginning",
  },
  ja: {
    navigation: "ページ",
    nav_ask: "質問",
    nav_overview: "概要",
    nav_system: "システム",
    nav_account: "マイアカウント",
    skip_to_content: "本文へ移動",
    admins_only: "このページは管理者専用です",
    admins_only_detail: "{name} としてサインインしていますが、管理者ではありません。使用量とキーはマイアカウントで確認できます。",
    cancel: "キャンセル",
    copy: "コピー",
    loading: "読み込んでいます…",
    size_value: "{size}",
    chart_values: "値を表で見る",
    chart_empty: "この期間の値はありません",
    chart_time: "開始",
  },
});
