"""What one request of a load went through.

Plain records between the generator, the figures and the plots. Times are seconds of one monotonic clock.
"""

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """One request, from its sending to its end."""

    sent_at: float
    num_images: int = 0
    chunk_times: list[float] = field(default_factory=list)
    """When each message with tokens came."""
    ended_at: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None
    """Why it failed; None where it ended well."""

    @property
    def succeeded(self) -> bool:
        """Whether it ended well, with at least one token."""
        return self.error is None and self.ended_at is not None and bool(self.chunk_times)
