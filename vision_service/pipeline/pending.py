"""What is admitted and not yet encoded, counted in patches, and how much of it there may be.

Knows patches and how long one took last. Does not know images, batches or who waits.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import ResourceExhaustedError


class Pending:
    """Bounds the work that waits for the encoder; used on the event loop alone."""

    def __init__(self, max_patches: int) -> None:
        self.max_patches = max_patches
        """Most patches that are admitted; an idle encoder admits any image."""
        self.num_patches = 0
        """Of images that were admitted and are not yet encoded."""
        self.num_images = 0
        """Images that were admitted and are not yet encoded."""
        self.seconds_per_patch = 0.0
        """What a patch of the last batch took; tells those who are refused when to come again."""

    @property
    def free_patches(self) -> int:
        """Patches that would still be admitted."""
        return max(0, self.max_patches - self.num_patches)

    @contextmanager
    def admit(self, num_patches: int) -> Iterator[None]:
        """Count an image as pending, from before it is decoded until it is encoded.

        Raises ResourceExhaustedError ENCODER_QUEUE_FULL.
        """
        if self.num_patches and num_patches > self.free_patches:
            raise ResourceExhaustedError(
                "ENCODER_QUEUE_FULL",
                "too many patches wait to be encoded",
                metadata={"limit": self.max_patches, "got": self.num_patches + num_patches},
                retry_after=min(max(self.num_patches * self.seconds_per_patch, 0.1), 10.0),
            )
        self.num_patches += num_patches
        self.num_images += 1
        try:
            yield
        finally:
            self.num_patches -= num_patches
            self.num_images -= 1
