"""Tables in Markdown, and how figures stand in them.

Knows text. Does not know what was measured.
"""

from collections.abc import Iterable, Sequence


def table_lines(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table: its head, and one for each row of cells."""
    return [_line(columns), "|---" * len(columns) + "|", *map(_line, rows)]


def figure(value: float) -> str:
    """A number with three digits at least."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
