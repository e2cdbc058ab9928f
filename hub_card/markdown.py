"""Text that Markdown shows as it is, whatever is in it."""

import re

# Punctuation that the Hub reads before Markdown does (mathematics), or that Markdown's extensions read in spite of a
# backslash (tables, links from bare addresses), is written as an entity: that is text to all of them.
_ENTITIES = {ord(letter): f"&#{ord(letter)};" for letter in "\\`|$@"} | {
    ord(letter): entity for letter, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"))
}
# Control characters, and those that turn the direction of what follows; a terminal would obey them too.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """One line without markup, HTML, mathematics, links, or a new cell of a table."""
    text = _CONTROLS.sub("\ufffd", " ".join(text.split())).translate(_ENTITIES)
    text = re.sub(r"([*_{}\[\]~]|(?<!&)#)", r"\\\1", text)
    return re.sub(r"(?i):(?=//)|(?<=www)\.", lambda sign: f"&#{ord(sign[0])};", text)


def count(number: int, noun: str) -> str:
    """`1 epoch`, `1,024 epochs`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
