// The root of the service as this page sees it, with the path prefix of a reverse proxy. Pages lie at different depths, so
// requests are resolved against the root and not against the page.

export const ROOT = new URL("../", import.meta.url);

/** The address of a path below the root, without a leading slash. */
export const resolveUrl = (path) => new URL(path, ROOT);

/** The address of the sign-in page, which returns to this page. */
export function signInAddress() {
  const page = location.href.startsWith(ROOT.href) ? location.href.slice(ROOT.href.length) : "";
  return resolveUrl(page ? `signin?${new URLSearchParams({ next: page })}` : "signin");
}

/** The page to return to after sign-in: `next`, if it is a page of this service; otherwise the main page. */
export function findReturnAddress(next) {
  if (!next) return ROOT;
  try {
    const address = resolveUrl(next);
    const isOwn = address.origin === ROOT.origin && address.pathname.startsWith(ROOT.pathname);
    return isOwn && !address.pathname.endsWith("/signin") ? address : ROOT;
  } catch {
    return ROOT; // not an address
  }
}
