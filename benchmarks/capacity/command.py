"""`python -m benchmarks capacity`: what a fleet needs, from measured components.

Knows the command line. Does not know the arithmetic.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.capacity.model import Capacity, Fleet, Workload, capacity, fleet
from benchmarks.capacity.profile import Profile, read_profile
from common.settings.settings import from_arguments, setting

_DERIVED = Path(__file__).parent / "h200-derived.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityConfig:
    """Whose speed, which requests, how many."""

    profile: Path = setting(_DERIVED, help="TOML profile, or JSON of `python -m benchmarks components --json`")
    images: float = setting(1.0, minimum=0, help="pictures in a request, in the mean")
    side: int = setting(1024, minimum=16, help="side of a square picture in pixels")
    text_tokens: int = setting(100, minimum=1, help="tokens of text in a prompt")
    output_tokens: int = setting(150, minimum=1, help="tokens of an answer")
    spared_ratio: float = setting(0.0, minimum=0, maximum=1, help="part of the pictures that caches spare")
    max_tpot_ms: float = setting(50.0, minimum=0.001, help="longest mean time per output token")
    batch: int | None = setting(None, minimum=1, help="requests that a decoder works on; the most that keep the limit")
    utilisation: float = setting(0.7, minimum=0.01, maximum=1, help="how busy a replica may be in the mean")
    rates: tuple[str, ...] = setting(("1", "10", "100", "1000", "10000"), help="requests a second of the fleets")
    encoder_cost: float | None = setting(
        None, minimum=0, help="cost of an encoder for an hour; the profile's where unset"
    )
    decoder_cost: float | None = setting(
        None, minimum=0, help="cost of a decoder for an hour; the profile's where unset"
    )

    @property
    def workload(self) -> Workload:
        """The mean request."""
        return Workload(
            images=self.images,
            patches=(self.side // 16) ** 2,
            text_tokens=self.text_tokens,
            output_tokens=self.output_tokens,
            spared_ratio=self.spared_ratio,
            max_tpot_ms=self.max_tpot_ms,
        )


def run(options: argparse.Namespace) -> int:
    """Print what one replica can do and which fleets the rates need; 2 where nothing fits."""
    config = from_arguments(CapacityConfig, options)
    try:
        profile = _with_costs(read_profile(config.profile), config)
        one = capacity(profile, config.workload, batch=config.batch)
        fleets = [
            fleet(
                profile,
                config.workload,
                requests_per_second=float(rate),
                utilisation=config.utilisation,
                batch=config.batch,
            )
            for rate in config.rates
        ]
    except (ValueError, KeyError, TypeError, OSError) as error:
        sys.stderr.write(f"capacity: {error}\n")
        return 2
    sys.stdout.write(text(profile, config.workload, one, fleets))
    return 0


def text(profile: Profile, workload: Workload, one: Capacity, fleets: list[Fleet]) -> str:
    """All figures, line by line."""
    lines = [
        f"{profile.name} ({profile.basis})",
        f"a request: {workload.images:g} pictures of {workload.patches} patches, {workload.prompt_tokens:.0f} tokens "
        f"of prompt, {workload.output_tokens} of output",
        f"a decoder: {one.batch} requests at a time, {one.requests_per_decoder:.3g} requests/s, "
        f"{one.tokens_per_decoder:.4g} tokens/s, {one.tpot_ms:.3g} ms a token",
        f"an encoder: {one.images_per_encoder:.3g} images/s, {one.encoder_bytes_per_second / 1e6:.3g} MB/s of "
        f"features; it keeps {one.decoders_per_encoder:.3g} decoders busy",
        "",
        f"{'requests/s':>12}{'decoders':>12}{'encoders':>12}{'replicas':>12}{'cost / M tokens':>18}",
    ]
    rows = (
        f"{each.requests_per_second:>12g}{each.decoders:>12}{each.encoders:>12}{each.replicas:>12}"
        f"{each.cost_per_million_tokens:>18.3g}"
        for each in fleets
    )
    return "\n".join([*lines, *rows]) + "\n"


def _with_costs(profile: Profile, config: CapacityConfig) -> Profile:
    encoder = profile.encoder_cost if config.encoder_cost is None else config.encoder_cost
    decoder = profile.decoder_cost if config.decoder_cost is None else config.decoder_cost
    return replace(profile, encoder_cost=encoder, decoder_cost=decoder)
