"""Pages in a text."""

import pytest

from service.core.text.pages import find_page


@pytest.mark.parametrize(("position", "page"), [(0, 4), (1, 4), (2, 5), (4, 6), (5, 6)])
def test_the_page_of_a_position_follows_from_another(position: int, page: int) -> None:
    """Forwards and backwards."""
    assert find_page("a\fb\fc", position, of=2, page=5) == page
