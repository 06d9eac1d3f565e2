// All texts of the page in both languages. An element names its text by `data-text` (content), `data-label`
// (aria-label) or `data-hint` (placeholder); `data-values` fills the {placeholders}. Switching the language therefore
// rewrites the whole page, answers included, without rebuilding it.

export const TEXTS = {
  en: {
    skip: "Skip to the question",
    tagline: "Answers from your documents, with their sources.",
    other_language: "日本語",
    theme: "Dark theme",
    ask_heading: "What would you like to know?",
    ask_hint: "Ask in English or Japanese…",
    grounded: "From my documents",
    keys: "Enter to ask, Shift + Enter for a new line",
    send: "Ask",
    stop: "Stop",
    examples: "Example questions",
    question_long: "Please ask in {max} characters or fewer.",
    earlier: "Earlier in this browser",
    forget: "Clear",
    copy_text: "Copy text",
    copy_curl: "Copy as curl",
    copied: "Copied",
    resumed: "Resumed",
    times: "{count}×",
    stopping: "Stopping…",
    documents: "Documents",
    documents_empty: "No documents yet. Add your own, or begin with the samples.",
    documents_added: "Added: {added}. Already here: {known}.",
    document_deleted: "Deleted “{title}”.",
    documents_deleted: "Deleted {count} documents.",
    documents_restored: "Nothing was deleted.",
    documents_failed: "Not added: {failed}. Added: {added}.",
    document_failed: "Not added: {reason}",
    documents_none: "No title contains these words.",
    documents_seeded: "The samples are here.",
    uploading: "Adding documents: {done} of {count}…",
    uploads: "Files of this upload",
    upload_queued: "Waiting",
    upload_sending: "Sending…",
    upload_reading: "Reading…",
    upload_added: "Added",
    upload_known: "Already here",
    upload_progress_of: "Progress of {title}",
    retry: "Retry",
    retry_of: "Retry {title}",
    retry_failed: "Retry those that failed",
    close_list: "Close this list",
    search_titles: "Search titles",
    sort: "Order",
    sort_newest: "Newest",
    sort_title: "Title",
    sort_largest: "Largest",
    select: "Select {title}",
    select_all: "Select all",
    selected: "{count} selected",
    delete_selected: "Delete",
    undo: "Undo",
    close: "Close",
    opening: "Opening…",
    open_document: "Open the document",
    document_meta: "{characters} characters, added {date}",
    download_original: "Download original ({size})",
    document_gone: "This document no longer exists, or is not yours.",
    follow_up: "Follow-up to “{title}”",
    follow_up_hint: "Ask a follow-up…",
    leave_thread: "Ask about something else",
    copy_link: "Copy link",
    queued: "Next:",
    unqueue: "Remove the waiting question",
    send_next: "Ask next",
    upload_progress: "Progress of the upload",
    upload: "Add documents",
    upload_hint: "PDF, office files, HTML, e-mail, text, or zip.",
    drop_hint: "Files and folders can be dropped anywhere.",
    not_text: "{detail}",
    file_unreadable: "{detail}",
    too_large: "{detail}",
    documents_full: "{detail}",
    upload_partly: "Added: {added}. Not added: {failed}, for example {reason}",
    page: "p. {page}",
    seed: "Add the samples",
    more: "Show more",
    meta: "{date} · {characters} characters",
    meta_shared: "{date} · {characters} characters, shared",
    delete: "Delete {title}",
    sources: "Sources",
    others: "Also read, not cited ({count})",
    read: "Passages read ({count})",
    source: "Source {n}: {title}",
    searched_for: "Searched for: {question}",
    source_unverified: "Source {n}, not verified: {title}",
    unverified: "Not verified",
    why_unverified: "The answer says something here that this passage does not contain in these words. Please check it.",
    nearest: "Closest passages, not an answer",
    quoting: "Quoting mode: answers are sentences of the documents. Connect a model (OPENAI_API_KEY or OPENAI_BASE_URL) for answers in its own words.",
    model: "Model",
    tokens: "Tokens",
    tokens_value: "{prompt} in + {completion} out",
    tokens_cached: "{count} of them cached",
    tokens_reasoning: "{count} of them reasoning",
    cost: "Cost",
    cost_unknown: "unknown price",
    charge: "Charged",
    add_credit: "Show my credit",
    first_token: "First token",
    total: "Total",
    ms: "{ms} ms",
    seconds: "{seconds} s",
    estimated: "estimated",
    unknown: "unknown",
    none: "none",
    show_all: "Show all",
    show_less: "Show less",
    elapsed: "{seconds} s",
    copy_code: "Copy",
    sign_in: "Sign in",
    sign_out: "Sign out",
    signed_in: "You are signed in",
    signed_in_as: "Signed in as {name}",
    role_user: "User",
    role_admin: "Admin",
    administration: "Administration",
    my_account: "My account",
    signed_out: "Your session has ended.",
    sign_in_again: "Sign in again",
    open_page: "Ask questions",
    sign_in_heading: "Sign in",
    sign_in_continue: "to continue to {page}",
    signing_in: "Signing in…",
    api_key: "API key",
    api_key_hint: "It begins with “kt_”. A JWT works too.",
    key_help: "Where do I get a key?",
    key_help_user: "Ask an administrator of this service. If you are already signed in elsewhere, create one on your account page.",
    key_help_admin: "Administrators create keys on the page “People”, or on the server:",
    key_help_first: "The first sign-in of an administrator can use the value of KOTAE_SECRET.",
    key_help_cookie: "The key is sent once and not stored in this browser: a session cookie replaces it.",
    key_invalid: "This key is not valid: it is wrong, expired or revoked.",
    sign_in_busy: "The service is busy. Please try again in a moment.",
    sign_in_refused: "The service refused the request ({status}).",
    reveal: "Show",
    conceal: "Hide",
    unreachable_now: "The service cannot be reached. Trying again…",
    waiting: "Looking through the documents…",
    waiting_free: "Asking…",
    answering: "Answering…",
    reconnecting: "Reconnecting…",
    completed: "Completed",
    no_context: "Nothing relevant in the documents",
    stopped: "Stopped",
    client_gone: "Ended: the connection was closed",
    provider_error: "The provider failed",
    timeout: "Took too long",
    interrupted: "Interrupted",
    failed: "No answer",
    again: "Try again",
    code: "Code",
    request_id: "Request",
    http_status: "Status",
    unreachable: "The service cannot be reached",
    unreachable_detail: "It may be stopped or restarting, or the network is away. Please try again in a moment.",
    not_ready: "The service is not ready",
    not_ready_detail: "It is running, but cannot answer just now. Please try again in a moment.",
    refused: "The question was refused",
    refused_detail: "The service is running but did not take it: it may be too busy, the question may be too long, or you may need to sign in again.",
    blocked: "The service refuses requests from this page",
    blocked_detail: "The address in the browser differs from the one that the service sees. Usually a reverse proxy changes the Host header: it has to forward it. Alternatively, the service can allow this address. For the administrator, one of these:",
    lost: "The connection was lost",
    lost_detail: "The answer ended early. What arrived is kept above.",
  },
  ja: {
    skip: "質問欄へ移動",
    tagline: "お手元の文書から、出典を添えて答えます。",
    other_language: "English",
    theme: "ダークテーマ",
    ask_heading: "何をお調べしましょうか。",
    ask_hint: "日本語でも英語でも質問できます…",
    grounded: "自分の文書から答える",
    keys: "Enter で送信、Shift + Enter で改行",
    send: "質問する",
    stop: "停止",
    examples: "質問の例",
    question_long: "質問は {max} 文字以内でお願いします。",
    earlier: "このブラウザーでのこれまでの質問",
    forget: "消去",
    copy_text: "本文をコピー",
    copy_curl: "curl としてコピー",
    copied: "コピーしました",
    resumed: "再開",
    times: "{count} 回",
    stopping: "停止しています…",
    documents: "文書",
    documents_empty: "文書はまだありません。お手元の文書か、サンプルを追加してください。",
    documents_added: "追加 {added} 件、登録済み {known} 件。",
    document_deleted: "「{title}」を削除しました。",
    documents_deleted: "{count} 件を削除しました。",
    documents_restored: "削除を取り消しました。",
    documents_failed: "追加できなかったもの {failed} 件、追加 {added} 件。",
    document_failed: "追加できませんでした：{reason}",
    documents_none: "該当する題名はありません。",
    documents_seeded: "サンプルを追加しました。",
    uploading: "文書を追加しています：{done} / {count}…",
    uploads: "アップロード中のファイル",
    upload_queued: "待機中",
    upload_sending: "送信中…",
    upload_reading: "読み込み中…",
    upload_added: "追加しました",
    upload_known: "登録済み",
    upload_progress_of: "{title} の進み具合",
    retry: "再試行",
    retry_of: "{title} を再試行",
    retry_failed: "失敗したものを再試行",
    close_list: "一覧を閉じる",
    search_titles: "題名を検索",
    sort: "並び順",
    sort_newest: "新しい順",
    sort_title: "題名順",
    sort_largest: "大きい順",
    select: "{title} を選択",
    select_all: "すべて選択",
    selected: "{count} 件を選択",
    delete_selected: "削除",
    undo: "元に戻す",
    close: "閉じる",
    opening: "開いています…",
    open_document: "文書を開く",
    document_meta: "{characters} 文字・{date} 追加",
    download_original: "元のファイルをダウンロード（{size}）",
    document_gone: "この文書は削除されたか、閲覧できません。",
    follow_up: "「{title}」の続き",
    follow_up_hint: "続けて質問…",
    leave_thread: "別の話題にする",
    copy_link: "リンクをコピー",
    queued: "次の質問：",
    unqueue: "待っている質問を取り消す",
    send_next: "次に質問",
    upload_progress: "アップロードの進み具合",
    upload: "文書を追加",
    upload_hint: "PDF・Office・HTML・メール・テキスト・zip。",
    drop_hint: "ファイルやフォルダーを画面のどこにでもドロップできます。",
    not_text: "対応していない形式です（{detail}）",
    file_unreadable: "読み取れないファイルです（{detail}）",
    too_large: "大きすぎます（{detail}）",
    documents_full: "文書の上限に達しています（{detail}）",
    upload_partly: "追加 {added} 件、追加できなかったもの {failed} 件。例：{reason}",
    page: "{page} ページ",
    seed: "サンプルを追加",
    more: "さらに表示",
    meta: "{date}・{characters} 文字",
    meta_shared: "{date}・{characters} 文字・共有",
    delete: "{title} を削除",
    sources: "出典",
    others: "参照したが引用していない箇所（{count}）",
    read: "参照した箇所（{count}）",
    source: "出典 {n}：{title}",
    searched_for: "検索した質問：{question}",
    source_unverified: "出典 {n}（未確認）：{title}",
    unverified: "未確認",
    why_unverified: "回答には、この箇所にない語が含まれています。内容をご確認ください。",
    nearest: "近い箇所（回答ではありません）",
    quoting: "引用モード：文書の文をそのまま引用して答えます。文章で答えるには、モデルを接続してください（OPENAI_API_KEY または OPENAI_BASE_URL）。",
    model: "モデル",
    tokens: "トークン",
    tokens_value: "入力 {prompt} + 出力 {completion}",
    tokens_cached: "うちキャッシュ {count}",
    tokens_reasoning: "うち推論 {count}",
    cost: "費用",
    cost_unknown: "単価不明",
    charge: "料金",
    add_credit: "残高を確認する",
    first_token: "最初の文字まで",
    total: "合計時間",
    ms: "{ms} ミリ秒",
    seconds: "{seconds} 秒",
    estimated: "推定",
    unknown: "不明",
    none: "なし",
    show_all: "すべて表示",
    show_less: "折りたたむ",
    elapsed: "{seconds} 秒",
    copy_code: "コピー",
    sign_in: "サインイン",
    sign_out: "サインアウト",
    signed_in: "サインインしています",
    signed_in_as: "{name} としてサインインしています",
    role_user: "利用者",
    role_admin: "管理者",
    administration: "管理",
    my_account: "マイアカウント",
    signed_out: "セッションが終了しました。",
    sign_in_again: "もう一度サインイン",
    open_page: "質問する",
    sign_in_heading: "サインイン",
    sign_in_continue: "{page} に進みます",
    signing_in: "サインインしています…",
    api_key: "API キー",
    api_key_hint: "“kt_” で始まります。JWT も使えます。",
    key_help: "キーはどこで入手できますか。",
    key_help_user: "このサービスの管理者に依頼してください。別の環境でサインイン済みなら、マイアカウントで作成できます。",
    key_help_admin: "管理者は「ユーザー」のページか、サーバー上で作成します：",
    key_help_first: "管理者の最初のサインインには KOTAE_SECRET の値を使えます。",
    key_help_cookie: "キーは一度だけ送信され、このブラウザーには保存されません。代わりにセッション Cookie を使います。",
    key_invalid: "このキーは使えません。誤りか、期限切れか、無効化されています。",
    sign_in_busy: "サービスが混み合っています。少し待ってからお試しください。",
    sign_in_refused: "リクエストが拒否されました（{status}）。",
    reveal: "表示",
    conceal: "隠す",
    unreachable_now: "サービスに接続できません。再試行しています…",
    waiting: "文書を調べています…",
    waiting_free: "問い合わせています…",
    answering: "回答しています…",
    reconnecting: "再接続しています…",
    completed: "完了",
    no_context: "文書に該当する内容がありません",
    stopped: "停止しました",
    client_gone: "接続が閉じられ、終了しました",
    provider_error: "プロバイダーのエラー",
    timeout: "時間切れ",
    interrupted: "中断されました",
    failed: "回答できませんでした",
    again: "もう一度試す",
    code: "コード",
    request_id: "リクエスト",
    http_status: "ステータス",
    unreachable: "サービスに接続できません",
    unreachable_detail: "停止中か再起動中、またはネットワークが切れている可能性があります。少し待ってからお試しください。",
    not_ready: "サービスの準備ができていません",
    not_ready_detail: "起動していますが、今は回答できません。少し待ってからお試しください。",
    refused: "質問を受け付けられませんでした",
    refused_detail: "サービスは動いています。混雑している、質問が長すぎる、または再度のサインインが必要な可能性があります。",
    blocked: "サービスがこのページからのリクエストを拒否しています",
    blocked_detail: "ブラウザーのアドレスと、サービスから見えるアドレスが異なります。多くの場合、リバースプロキシが Host ヘッダーを書き換えています。そのまま転送するか、サービスでこのアドレスを許可してください。管理者の方は次のいずれかを設定してください。",
    lost: "接続が切れました",
    lost_detail: "回答は途中で終わりました。届いた部分は上に残してあります。",
  },
};

/** Questions that the sample documents answer, with the title of the document. */
export const EXAMPLES = {
  en: [
    { question: "Can I return opened tea?", title: "Hinata Tea Store: shipping and refunds" },
    { question: "How much does shipping cost?", title: "Hinata Tea Store: shipping and refunds" },
    { question: "When is the museum closed?", title: "Museum of Small Clocks: visitor guide" },
  ],
  ja: [
    { question: "返品はいつまでできますか。", title: "ひなた茶舗 配送と返品のご案内" },
    { question: "送料はいくらですか。", title: "ひなた茶舗 配送と返品のご案内" },
    { question: "博物館の休館日はいつですか。", title: "ちいさな灯り博物館 ご利用案内" },
  ],
};

/** Questions about a part of a document, and about all of it, in the language of the document. */
export const QUESTIONS = {
  en: { part: (title, heading) => `What does “${title}” say about ${heading}?`, whole: (title) => `What is “${title}” about?` },
  ja: { part: (title, heading) => `「${title}」には「${heading}」について何とありますか。`, whole: (title) => `「${title}」には何が書いてありますか。` },
};

/** A question that the service answers with the titles of the documents. */
export const OVERVIEW = { en: "What do you know about?", ja: "どんな文書がありますか。" };

let current = "en";
const listeners = [];

/** Adds the texts of a page, in all languages. */
export function addTexts(texts) {
  for (const chosen of Object.keys(TEXTS)) Object.assign(TEXTS[chosen], texts[chosen]);
}

/** Calls `listener` after each change of the language. */
export const onLanguage = (listener) => listeners.push(listener);

export const language = () => current;

/** Returns the text of `key` with its placeholders filled; numbers and dates are formatted for the language. */
export function words(key, values = {}) {
  const shown = (gap, value) => {
    if (gap === "date") return formatDate(new Date(value));
    if (gap === "size") return formatSize(value);
    return typeof value === "number" ? value.toLocaleString(current) : value;
  };
  return TEXTS[current][key].replace(/\{(\w+)\}/g, (_, gap) => shown(gap, values[gap]));
}

/** Returns the reason of a problem that the service reports; frequent ones begin in the language of the page. */
export function describe({ code, detail, title, status }) {
  const reason = detail || title || String(status);
  return TEXTS[current][code]?.includes("{detail}") ? words(code, { detail: reason }) : reason;
}

// In decimal units, with one digit after the point below ten.
function formatSize(bytes) {
  const units = ["byte", "kilobyte", "megabyte", "gigabyte"];
  const power = Math.min(Math.floor(Math.log10(Math.max(bytes, 1)) / 3), units.length - 1);
  const options = { style: "unit", unit: units[power], unitDisplay: power ? "short" : "long" };
  const value = bytes / 1000 ** power;
  return value.toLocaleString(current, { ...options, maximumFractionDigits: value < 10 ? 1 : 0 });
}

// Dates of other years have the year.
function formatDate(date) {
  const year = date.getFullYear() === new Date().getFullYear() ? {} : { year: "numeric" };
  return date.toLocaleDateString(current, { month: "short", day: "numeric", ...year });
}

/** Sets the text of `key` as an element's content; it follows changes of the language. */
export function say(element, key, values = {}) {
  element.dataset.text = key;
  return fill(element, values);
}

/** Sets the text of `key` as an element's accessible name. */
export function label(element, key, values = {}) {
  element.dataset.label = key;
  return fill(element, values);
}

/** Switches the page, and all texts set by `say` and `label`, to `chosen`. */
export function setLanguage(chosen) {
  current = chosen in TEXTS ? chosen : "en";
  document.documentElement.lang = current;
  for (const element of document.querySelectorAll("[data-text], [data-label], [data-hint]")) fill(element);
  for (const listener of listeners) listener();
}

/** Sets the texts inside a fragment that was cloned from a template. */
export function fillAll(fragment) {
  for (const element of fragment.querySelectorAll("[data-text], [data-label]")) fill(element);
  return fragment;
}

/** Returns the most likely language of a text, for typesetting and screen readers. */
export const languageOf = (text) => (/[\u3040-\u30ff\u4e00-\u9fff]/.test(text) ? "ja" : "en");

function fill(element, values) {
  if (values) element.dataset.values = JSON.stringify(values);
  const { text, label: name, hint, values: kept = "{}" } = element.dataset;
  const gaps = JSON.parse(kept);
  if (text) element.textContent = words(text, gaps);
  if (name) element.setAttribute("aria-label", words(name, gaps));
  if (hint) element.placeholder = words(hint, gaps);
  return element;
}
