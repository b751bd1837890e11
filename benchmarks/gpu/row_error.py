"""How far the rows of two matrices are apart, which should be alike but for rounding.

By rows, as a row that is wrong altogether is found by it among thousands that are right, and as rounding moves all rows
about equally: the largest of many single numbers would grow with their count alone.
"""

from torch import Tensor


def row_error(got: Tensor, want: Tensor) -> float:
    """The largest distance between two rows [num_rows, width] over the length of the one that is wanted; 1 is no help.

    NaN where any number is.
    """
    wanted = want.float()
    return float(((got.float() - wanted).norm(dim=1) / wanted.norm(dim=1)).max())
