"""Texts of strangers, to be shown as they are: nothing in them steers a terminal or turns the direction of writing."""

_SYMBOLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
_SYMBOLS |= {code: f"[U+{code:04X}]" for code in (*range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def visible(text: str) -> str:
    """The text with control characters as symbols; line ends and tabs stay."""
    return text.translate(_SYMBOLS)
