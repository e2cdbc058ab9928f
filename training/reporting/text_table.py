"""Tables of plain text, which read the same in a terminal, a log and a file."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], *, right: bool = False) -> list[str]:
    """A line for each row, with columns as wide as their longest cells and two spaces between them.

    Args:
        rows: of equally many cells.
        right: align all columns but the first to the right, as numbers are read.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = zip(row, widths, strict=True)
        cells = [cell.rjust(width) if right else cell.ljust(width) for cell, width in others]
        lines.append("  ".join([first[0].ljust(first[1]), *cells]).rstrip())
    return lines
