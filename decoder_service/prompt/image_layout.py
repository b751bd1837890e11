"""How an image is written in a row of tokens, and how it is found there again.

Knows grids and ids, and that features are spliced in at [IMG] alone. Does not know files or text.

    a grid of 2 rows of 3 patches      [IMG] [IMG] [IMG] [IMG_BREAK] [IMG] [IMG] [IMG] [IMG_END]
"""

from collections.abc import Sequence
from typing import NamedTuple

from common.image.preprocessing import PatchGrid
from decoder_service.engine.prompt_images import PlaceholderRange


class ImageTokenIds(NamedTuple):
    """Ids of the tokens that an image is laid out with."""

    placeholder: int
    """[IMG]: an image feature row goes here."""
    row_break: int
    """[IMG_BREAK]: ends every row of patches but the last."""
    end: int
    """[IMG_END]: ends the last row."""

    def layout(self, grid: PatchGrid) -> tuple[int, ...]:
        """Tokens of one image; `grid.num_tokens` of them."""
        row = (self.placeholder,) * grid.width
        return (*(*row, self.row_break) * (grid.height - 1), *row, self.end)


def locate_images(
    token_ids: tuple[int, ...], grids: Sequence[PatchGrid], ids: ImageTokenIds
) -> tuple[PlaceholderRange, ...] | None:
    """The placeholder ranges of images with these grids, in order.

    None unless every range holds its image's tokens exactly and no [IMG] stands outside of them.
    """
    if token_ids.count(ids.placeholder) != sum(grid.num_patches for grid in grids):
        return None
    placeholders = []
    start = 0
    for grid in grids:
        layout = ids.layout(grid)
        # The count has shown that one more [IMG] is left, as all images before are where they should be.
        offset = token_ids.index(ids.placeholder, start)
        start = offset + len(layout)
        if token_ids[offset:start] != layout:
            return None
        placeholders.append(PlaceholderRange(offset=offset, length=len(layout), grid=grid))
    return tuple(placeholders)
