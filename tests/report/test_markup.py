"""Escaping, and the small pieces of HTML that everything else is made of."""

import html
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from limbeck.report.markup import Cell, contents, esc, figure, legend, missing, name, prose, section, table, words


class Tags(HTMLParser):
    """Collects the tags and the text of a piece of HTML."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@given(st.text())
def test_no_text_becomes_markup(text):
    safe = esc(text)
    assert not set(safe) & set("<>\"'")
    assert Tags(safe).tags == []
    assert all(ord(sign) >= 32 or sign in "\n\t" for sign in safe)
    visible = "".join(sign for sign in text if sign.isprintable() and sign not in "\u2066\u2067")
    assert len(html.unescape(safe)) == len(text) >= len(visible)


@given(st.text(max_size=300))
def test_names_are_one_element_whatever_they_are(text):
    found = Tags(name(text, 20))
    assert found.tags == ["bdi"]
    assert len(found.text) <= 20
    assert [key for key, _ in found.attributes] in ([], ["title"])


def test_unseen_characters_are_shown_as_such():
    assert esc("a\u202eb\x00c\ud800d\u200f") == "a\ufffdb\ufffdc\ufffdd\ufffd"
    esc("\ud800").encode()


def test_cutting():
    assert esc("abcdef", 4) == "abc…"
    assert esc("abcd", 4) == "abcd"


def test_sections_without_content_are_not_there():
    assert section("a", "Title", "", "") == ""
    assert section("a", "T & T", "<p>x</p>", "") == '<section id="a">\n<h2>T &amp; T</h2>\n<p>x</p>\n</section>'
    assert prose("", "") == ""
    assert legend([]) == ""
    assert missing("none < here") == '<p class="missing">none &lt; here</p>'


def test_contents_follow_the_sections():
    found = Tags(contents([section("a", "One", "x"), "", section("b", "Two", "y")]))
    assert [value for key, value in found.attributes if key == "href"] == ["#a", "#b"]
    assert found.text == "OneTwo"


def test_a_table_sorts_by_keys_where_every_row_has_one():
    rows = [[words("b"), Cell("2", 2), Cell("picture")], [words("a"), Cell("–", ""), Cell("picture")]]
    text = table(["name", "number", "drawn"], rows)
    found = Tags(text)
    assert found.tags.count("button") == 2
    assert [value for key, value in found.attributes if key == "data-key"] == ["b", "2", "a", ""]
    assert text.count('<th scope="row"') == 2
    assert Tags(table(["name"], rows[:1])).tags.count("button") == 0
    assert Tags(table(["name", "n", "d"], rows, sortable=False)).tags.count("button") == 0


def test_figures_carry_their_kind():
    assert 'class="tab wide"' in figure("x", "caption", kind="tab", wide=True)
    assert 'class="figure"' in figure("x", "caption")
