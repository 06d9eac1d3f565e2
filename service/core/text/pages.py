"""Pages in a text: form feeds separate them, so that every position has a page."""

PAGE_BREAK = "\f"


def find_page(text: str, position: int, *, of: int, page: int) -> int:
    """Return the page of a position, if the position `of` is on `page`."""
    return page + text.count(PAGE_BREAK, 0, position) - text.count(PAGE_BREAK, 0, of)
