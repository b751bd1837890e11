"""The images of a request as the engine sees them: where they stand in its prompt, and how they are named.

Knows places. Does not know what features hold, or the request that images belong to.
"""

from dataclasses import dataclass

from common.image.preprocessing import PatchGrid

Features = object
"""Image features of one image, whatever they are: the policy files pass them on and never look inside."""


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image of one request."""

    request_id: str
    image_index: int
    """Place among the request's images, from 0."""
    index: int = 0
    """The completion that it is for: each fetches its own."""


@dataclass(frozen=True, slots=True)
class PlaceholderRange:
    """Where an image stands in the prompt: its placeholder tokens, row breaks and end token."""

    offset: int
    length: int
    grid: PatchGrid

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.offset + self.length
