import io
import re

import pytest
from PIL import Image

from diptych.terminal import half_blocks, shows_colours


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_character_is_the_upper_pixel_over_the_lower_one() -> None:
    picture = Image.new("RGB", (2, 2))
    picture.putdata([(1, 2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12)])
    (line,) = half_blocks(picture, max_columns=10)
    colours = re.findall(r"\x1b\[([34])8;2;(\d+);(\d+);(\d+)m", line)
    assert colours == [("3", "1", "2", "3"), ("4", "7", "8", "9"), ("3", "4", "5", "6"), ("4", "10", "11", "12")]
    assert re.sub(r"\x1b\[[0-9;]*m", "", line) == "▀▀"


@pytest.mark.parametrize(("size", "columns", "rows"), [((160, 96), 64, 19), ((20, 5), 20, 2), ((1, 1), 1, 1)])
def test_pictures_are_only_made_smaller(size: tuple[int, int], columns: int, rows: int) -> None:
    lines = half_blocks(Image.new("L", size), max_columns=64)
    assert (lines[0].count("▀"), len(lines)) == (columns, rows)


def test_colours_need_a_terminal_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLORTERM", "truecolor")
    assert shows_colours(Terminal())
    assert not shows_colours(io.StringIO())
    monkeypatch.delenv("COLORTERM")
    assert not shows_colours(Terminal())
