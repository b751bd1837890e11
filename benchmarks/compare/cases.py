"""The text cases of the comparison, and what we want of ourselves in each.

Knows workloads and goals. Does not know how they are run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from benchmarks.operations import head_weights, layer_weights
from common.model.config import MistralConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCase:
    """So many requests at once, each with a prompt and so many greedy tokens."""

    name: str
    model: str
    concurrency: int
    prompt_tokens: int
    new_tokens: int
    dtypes: tuple[str, ...] = ("float32",)
    """In which types peers run; those of each are engines of their own."""
    goals: Mapping[str, float] = field(default_factory=dict)
    """Least ratio of our rate to a peer's, by the peer's name."""
    limit_goal: float | None = None
    """Least part of the machine's limit."""

    @property
    def counts_prompt(self) -> bool:
        """Whether the rate is that of prompt tokens: nothing is generated but the token behind the prompt."""
        return self.new_tokens == 1

    @property
    def num_tokens(self) -> int:
        """Tokens that the rate counts."""
        return self.concurrency * (self.prompt_tokens if self.counts_prompt else self.new_tokens)


_BATCHED_TINY_GOALS = {"llama.cpp": 1.2, "vllm": 1.2, "transformers": 1.2}
TEXT_CASES = (
    TextCase(
        name="C1 tiny, 1 at a time",
        model="tiny",
        concurrency=1,
        prompt_tokens=32,
        new_tokens=96,
        goals={"llama.cpp": 1.1, "vllm": 9.0, "transformers": 15.0},
    ),
    TextCase(
        name="C2 tiny, 8 at a time",
        model="tiny",
        concurrency=8,
        prompt_tokens=32,
        new_tokens=96,
        goals=_BATCHED_TINY_GOALS,
    ),
    TextCase(
        name="C2 tiny, 32 at a time",
        model="tiny",
        concurrency=32,
        prompt_tokens=32,
        new_tokens=96,
        goals=_BATCHED_TINY_GOALS,
    ),
    TextCase(
        name="C3 small, 1 at a time",
        model="small",
        concurrency=1,
        prompt_tokens=64,
        new_tokens=64,
        goals={"llama.cpp": 1.25, "vllm": 1.7, "max": 4.0},
        limit_goal=0.70,
    ),
    TextCase(
        name="C4 small, 8 at a time",
        model="small",
        concurrency=8,
        prompt_tokens=64,
        new_tokens=64,
        goals={"vllm": 1.25, "transformers paged": 2.0, "max": 3.0},
        limit_goal=0.45,
    ),
    TextCase(
        name="C5 small, 32 at a time",
        model="small",
        concurrency=32,
        prompt_tokens=64,
        new_tokens=64,
        goals={"vllm": 1.1, "transformers paged": 2.0, "max": 3.5},
        limit_goal=0.60,
    ),
    TextCase(
        name="C6 small, prompts of 512",
        model="small",
        concurrency=4,
        prompt_tokens=512,
        new_tokens=1,
        goals={"vllm": 1.0, "llama.cpp": 1.0, "transformers": 1.0},
        limit_goal=0.75,
    ),
)
HALF_CASES = tuple(
    replace(
        case,
        name=f"{case.name[:2]}b{case.name[2:]}, bfloat16",
        model="small-bfloat16",
        dtypes=("float32", "bfloat16"),
    )
    for case in TEXT_CASES
    if case.model == "small"
)
"""The same with weights that are bfloat16, which whoever sees that reads from memory in half the time.

Peers run in float32, with the tokens that we have too, and in bfloat16, as whoever serves such a checkpoint with them
would: activations are rounded then, so that tokens may be others. No goals are for those.
"""
SMOKE_CASES = (
    TextCase(name="smoke 2 at a time", model="smoke", concurrency=2, prompt_tokens=8, new_tokens=4),
    TextCase(name="smoke prompts of 32", model="smoke", concurrency=2, prompt_tokens=32, new_tokens=1),
)


def limit_seconds(
    case: TextCase, config: MistralConfig, *, bytes_per_weight: int, bytes_per_second: float, flops: float
) -> float:
    """Seconds that the case takes at the machine's limits: weights are read once a step, each token has its products.

    Attention is left out, which makes the limit a little too good. The embedding table is looked up and not read.
    """
    layers, head = layer_weights(config), head_weights(config)
    step = max((layers + head) * bytes_per_weight / bytes_per_second, case.concurrency * 2 * (layers + head) / flops)
    prompt_flops = case.concurrency * (case.prompt_tokens * 2 * layers + 2 * head)
    return prompt_flops / flops + (case.new_tokens - 1) * step
