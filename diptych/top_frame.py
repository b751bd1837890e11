"""One frame of `diptych top`: what two looks at each endpoint say.

Knows which figures are shown and how. Does not know endpoints, terminals or time. A figure of an endpoint that
does not answer is no figure, and the frame says which endpoint that is.
"""

from collections.abc import Mapping, Sequence

from diptych.scrape import Scrape

Look = tuple[Scrape, Scrape]
"""The last but one and the last time that an endpoint was asked."""

_BAR = 20
_MIB = 1 << 20


def frame(decoders: Mapping[str, Look], visions: Mapping[str, Look]) -> list[str]:
    """The lines of a frame; `decoders` and `visions` are by address."""
    lines = []
    for address, look in decoders.items():
        lines += [*_headed(f"decoder  {address}", look, _decoder(look)), ""]
    for address, look in visions.items():
        lines += [*_headed(f"vision   {address}", look, _vision(look)), ""]
    return lines[:-1]


def _headed(title: str, look: Look, lines: Sequence[str]) -> list[str]:
    problem = look[1].problem
    return [title, *(f"  {line}" for line in lines)] if problem is None else [f"{title}  DOWN: {problem[:80]}"]


def _decoder(look: Look) -> list[str]:
    now = look[1]
    queued, hits = _delta(look, "diptych_prefix_cache_queries_total"), _delta(look, "diptych_prefix_cache_hits_total")
    waiting = "  ".join(
        f"{reason} {now.total('diptych_num_requests_waiting_by_reason', reason=reason):.0f}"
        for reason in ("images", "capacity", "reader")
    )
    used = 1 - _ratio(now.total("diptych_kv_blocks_free"), now.total("diptych_kv_blocks"))
    held, budget = now.total("diptych_image_feature_bytes"), now.total("diptych_image_feature_budget_bytes")
    return [
        f"requests   running {now.total('diptych_num_requests_running'):.0f}"
        f"  waiting {now.total('diptych_num_requests_waiting'):.0f} ({waiting})",
        f"ended      {_rate(look, 'diptych_request_success_total'):.1f}/s"
        f"  refused {_rate(look, 'diptych_admission_rejections_total'):.1f}/s"
        f"  failed {_rate(look, 'diptych_request_failures_total'):.1f}/s"
        f"  preempted {_rate(look, 'diptych_num_preemptions_total'):.1f}/s",
        f"tokens     generated {_rate(look, 'diptych_generation_tokens_total'):.1f}/s"
        f"  prompt {_rate(look, 'diptych_prompt_tokens_total'):.1f}/s"
        f"  first {_quantiles(look, 'diptych_time_to_first_token_seconds')}"
        f"  next {_quantiles(look, 'diptych_inter_token_latency_seconds')}",
        *_tries(look),
        f"KV cache   {_bar(used)}  blocks {now.total('diptych_kv_blocks'):.0f}  prefix hits {_percent(hits, queued)}",
        f"features   {_bar(_ratio(held, budget))}  {held / _MIB:.1f} MiB held"
        f"  {now.total('diptych_image_feature_cached_bytes') / _MIB:.1f} MiB cached",
        f"replicas   ready {now.total('diptych_vision_replicas', state='ready'):.0f}"
        f" of {now.total('diptych_vision_replicas'):.0f}"
        f"  encoded {_rate(look, 'diptych_images_encoded_total'):.1f}/s"
        f"  skipped {_rate(look, 'diptych_images_skipped_total'):.1f}/s",
    ]


def _tries(look: Look) -> list[str]:
    """Of the decoders that ever tried tokens ahead."""
    tried = "diptych_spec_decode_num_draft_tokens_total"
    if not look[1].total(tried):
        return []
    accepted = _delta(look, "diptych_spec_decode_num_accepted_tokens_total")
    return [f"tries      {_rate(look, tried):.1f} tokens/s  right {_percent(accepted, _delta(look, tried))}"]


def _vision(look: Look) -> list[str]:
    now = look[1]
    pending, limit = now.total("diptych_vision_pending_patches"), now.total("diptych_vision_max_pending_patches")
    fill = _ratio(
        _delta(look, "diptych_vision_batch_fill_ratio_sum"), _delta(look, "diptych_vision_encode_batches_total")
    )
    hits = _delta(look, "diptych_vision_feature_cache_hits_total")
    joined = _delta(look, "diptych_vision_feature_cache_joined_total")
    asked = hits + joined + _delta(look, "diptych_vision_feature_cache_misses_total")
    return [
        f"pending    {_bar(_ratio(pending, limit))}  patches {pending:.0f}"
        f"  images {now.total('diptych_vision_pending_images'):.0f}",
        f"encoded    {_rate(look, 'diptych_vision_images_encoded_total'):.1f} images/s"
        f"  {_rate(look, 'diptych_vision_patches_encoded_total'):.0f} patches/s"
        f"  batch fill {fill:.0%}  forward {_quantiles(look, 'diptych_vision_model_forward_seconds')}",
        f"cache      {now.total('diptych_vision_feature_cache_bytes') / _MIB:.1f} MiB"
        f"  hits {_percent(hits + joined, asked)}"
        f"  wire {_rate(look, 'diptych_vision_wire_bytes_total') / _MIB:.1f} MiB/s",
        f"ended      ok {_rate(look, 'diptych_vision_requests_total', status='ok'):.1f}/s"
        f"  rejected {_rate(look, 'diptych_vision_requests_total', status='rejected'):.1f}/s"
        f"  failed {_rate(look, 'diptych_vision_requests_total', status='failed'):.1f}/s"
        f"  workers replaced {now.total('diptych_vision_decode_worker_restarts_total'):.0f}",
    ]


def _delta(look: Look, name: str, **labels: str) -> float:
    """How much a counter grew; one that began anew grew by what it is."""
    before, now = (scrape.total(name, **labels) for scrape in look)
    return now - before if now >= before else now


def _rate(look: Look, name: str, **labels: str) -> float:
    return _ratio(_delta(look, name, **labels), look[1].at - look[0].at)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _quantiles(look: Look, name: str) -> str:
    """Half and nineteen of twenty observations are below these."""
    found = [look[1].quantile(name, part, look[0]) for part in (0.5, 0.95)]
    return "/".join("-" if value is None else f"{value * 1000:g}" for value in found) + " ms"


def _bar(part: float) -> str:
    filled = round(min(max(part, 0.0), 1.0) * _BAR)
    return f"[{'#' * filled}{'.' * (_BAR - filled)}] {part:4.0%}"
