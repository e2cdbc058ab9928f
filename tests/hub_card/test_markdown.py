"""Any text is shown as it is; the witness is another project's Markdown."""

import html
import re

import pytest
from markdown_it import MarkdownIt

from hub_card.markdown import count, plain

MARKDOWN = MarkdownIt("commonmark").enable("table")
TEXTS = [
    "n01440764_tench_",
    "__init__",
    "*bold* _it_ ~~gone~~",
    "`code` ``",
    "a|b||c",
    "<b>x</b> <!-- y --> <script>alert(1)</script>",
    "&amp; &lt; &#124; AT&T &copy",
    "$x^2$ $$y$$",
    r"\(z\) \\(z\\) \[ \] C:\new \$",
    "[link](http://example.org) ![image](x.png) [x]: y",
    "http://example.org/a_b?c=d&e",
    "see HTTPS://Example.org or ftp://x or www.example.org, WWW.x.de",
    "somebody@example.org",
    "# head",
    "- item",
    "1. item",
    "{{ jinja }} {% x %}",
    "Katze 猫 \U0001f408\u200d\u2b1b",
    "---",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_shown_as_it_is(text):
    shown = MARKDOWN.render(f"It is {plain(text)}, or not.\n")
    assert html.unescape(shown) == f"<p>It is {text}, or not.</p>\n"


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_one_cell_of_a_table(text):
    shown = MARKDOWN.render(f"| a | b |\n| --- | --- |\n| {plain(text)} | {plain(text)} |\n")
    cells = re.findall(r"<td>(.*?)</td>", shown, re.DOTALL)
    assert [html.unescape(cell) for cell in cells] == [text, text]


@pytest.mark.parametrize("text", TEXTS)
def test_nothing_is_left_for_what_reads_before_markdown_or_beyond_it(text):
    """The Hub's mathematics ($$, and \\( behind a backslash) and GitHub's links from bare addresses."""
    assert not re.search(r"\$|\\\\|\\\(|://|www\.|@|\||`|<", plain(text), re.IGNORECASE)


def test_lines_are_joined_and_control_characters_replaced():
    assert plain("a\nb\r\n\n| c\t\u2028d") == "a b &#124; c d"
    assert plain("red\x1b[31m\x00 \u202egnp.exe") == "red\ufffd\\[31m\ufffd \ufffdgnp.exe"


@pytest.mark.parametrize(("number", "said"), [(0, "0 epochs"), (1, "1 epoch"), (1024, "1,024 epochs")])
def test_counts(number, said):
    assert count(number, "epoch") == said
