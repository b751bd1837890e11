"""The error of images that do not fit their places; named apart from others, because it is counted apart."""


class SpliceError(Exception):
    """Image rows do not fit their places in the batch: a fault of ours, which must never give a wrong picture."""
