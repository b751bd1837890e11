"""What a fleet of encoders and decoders can do, from the speed of one of each.

Knows arithmetic. Does not know where the speeds come from. In a steady state a decoder that works on B requests at a
time spends, for each request that ends, the prefill of its prompt and its share of the steps:

    t(B) = prefill(prompt tokens) + output tokens * step(B) / B      requests a second = 1 / t(B)

and each request is there for B * t(B) seconds, by Little's law, so its time per output token is B * t(B) / output
tokens, others' prefills included. The batch is the largest that keeps this below the wanted limit. An encoder spends
encode(patches) for each picture that no cache spares. A fleet is sized so that neither side is busier than wanted.
"""

import math
from dataclasses import dataclass

from benchmarks.capacity.profile import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The mean request."""

    images: float
    patches: int
    """Of a picture; a break or an end stands after every row of them."""
    text_tokens: int
    output_tokens: int
    spared_ratio: float = 0.0
    """Part of the pictures whose features are in a cache."""
    max_tpot_ms: float = math.inf
    """Longest mean time per output token, in milliseconds."""

    @property
    def prompt_tokens(self) -> float:
        """Tokens of the prompt, pictures of square shape."""
        return self.text_tokens + self.images * (self.patches + math.isqrt(self.patches))


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What one replica of each kind can do at full use."""

    batch: int
    tpot_ms: float
    requests_per_decoder: float
    """A second."""
    tokens_per_decoder: float
    """Output tokens a second."""
    images_per_encoder: float
    """A second; infinite where no picture needs it."""
    decoders_per_encoder: float
    """Decoders that one encoder keeps busy; infinite where no picture needs it."""
    encoder_bytes_per_second: float
    """Features that one busy encoder sends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Replicas for a rate of requests."""

    requests_per_second: float
    decoders: int
    encoders: int
    cost_per_million_tokens: float
    """Of output, in the profile's currency."""

    @property
    def replicas(self) -> int:
        """Of both kinds."""
        return self.decoders + self.encoders


def decoder_seconds(profile: Profile, workload: Workload, batch: int) -> float:
    """t(B): what one request costs a decoder that works on so many at a time."""
    steps = workload.output_tokens * profile.decode_step.at(batch) / batch
    return profile.prefill.at(workload.prompt_tokens) + steps


def capacity(profile: Profile, workload: Workload, *, batch: int | None = None) -> Capacity:
    """One replica of each kind, with a given batch or the largest that keeps the limit.

    Raises ValueError where not even a request alone keeps it.
    """
    chosen = _largest_batch(profile, workload) if batch is None else batch
    seconds = decoder_seconds(profile, workload, chosen)
    encoder_seconds = profile.encode.at(workload.patches)
    images = workload.images * (1 - workload.spared_ratio)
    needs_encoder = images > 0
    return Capacity(
        batch=chosen,
        tpot_ms=_tpot_ms(profile, workload, chosen),
        requests_per_decoder=1 / seconds,
        tokens_per_decoder=workload.output_tokens / seconds,
        images_per_encoder=1 / encoder_seconds if needs_encoder else math.inf,
        decoders_per_encoder=seconds / (encoder_seconds * images) if needs_encoder else math.inf,
        encoder_bytes_per_second=workload.patches * profile.bytes_per_patch / encoder_seconds if needs_encoder else 0.0,
    )


def fleet(
    profile: Profile,
    workload: Workload,
    *,
    requests_per_second: float,
    utilisation: float,
    batch: int | None = None,
) -> Fleet:
    """Replicas for a rate, none of them busier than `utilisation` in the mean."""
    one = capacity(profile, workload, batch=batch)
    decoders = math.ceil(requests_per_second / (one.requests_per_decoder * utilisation))
    images = requests_per_second * workload.images * (1 - workload.spared_ratio)
    encoders = math.ceil(images / (one.images_per_encoder * utilisation))
    cost = decoders * profile.decoder_cost + encoders * profile.encoder_cost
    tokens_per_hour = requests_per_second * workload.output_tokens * 3600
    return Fleet(
        requests_per_second=requests_per_second,
        decoders=decoders,
        encoders=encoders,
        cost_per_million_tokens=cost / tokens_per_hour * 1e6,
    )


def _largest_batch(profile: Profile, workload: Workload) -> int:
    fitting = [
        batch for batch in range(1, profile.max_batch + 1) if _tpot_ms(profile, workload, batch) <= workload.max_tpot_ms
    ]
    if not fitting:
        alone = _tpot_ms(profile, workload, 1)
        raise ValueError(f"a request alone takes {alone:.1f} ms a token, which is over {workload.max_tpot_ms:g}")
    return fitting[-1]


def _tpot_ms(profile: Profile, workload: Workload, batch: int) -> float:
    return batch * decoder_seconds(profile, workload, batch) / workload.output_tokens * 1000
