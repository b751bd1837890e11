"""A NaN in a request's keys and values: nobody else ever sees it, over the real cache, model and runner."""

from pathlib import Path

import pytest
import torch

from decoder_service.engine.request import Request
from decoder_service.model.compute import TorchCompute
from decoder_service.sampling.sampling_params import SamplingParams
from tests.parity.harness import COMPUTES, Harness, MakeCompute
from tests.tiny_models import Shape, random_text_model, save

BLOCK_SIZE = 8
NUM_BLOCKS = 16
POISON = 7
"""A token whose embedding holds a NaN; no other prompt has it, and no answer."""
SPOILT = [1, 5, POISON, *range(20, 59)]
NEIGHBOUR = [1, *range(60, 83)]
NEXT = [1, *range(90, 125)]
"""Ends inside a block that the spoilt request had filled."""
LONGER = [1, *range(90, 140)]
"""Batched with a longer one, what is behind a request's end is read, and hidden."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = random_text_model(Shape(name="poisonable"))
    with torch.no_grad():
        model.model.embed_tokens.weight[POISON, 3] = torch.nan
        model.lm_head.weight[POISON] = 0
    return save(model, tmp_path_factory.mktemp("poisonable"))


class Pool:
    """An engine with so few blocks that whoever comes next gets those of whoever was last."""

    def __init__(self, directory: Path, make_compute: MakeCompute) -> None:
        self._harness = Harness(
            directory, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, token_budget=32, make_compute=make_compute
        )
        self.engine, self.runner = self._harness.engine, self._harness.runner
        self.token_ids: dict[str, list[int]] = {}
        self.ends: dict[str, str] = {}

    def submit(self, name: str, prompt: list[int], *, arrival: int, max_tokens: int = 12) -> None:
        self.token_ids[name] = []
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        self.engine.submit(Request(request_id=name, prompt_token_ids=tuple(prompt), sampling=sampling, arrival=arrival))

    def step(self) -> None:
        output = self.engine.step()
        self.engine.check_integrity()
        for token in output.tokens:
            self.token_ids[token.request_id].append(token.token_id)
            if token.finish_reason is not None:
                self.ends[token.request_id] = token.finish_reason.value
        self.ends.update((name, error.reason) for name, error in output.failed)

    def run(self) -> None:
        while self.engine.has_work:
            self.step()

    def num_spoilt_blocks(self) -> int:
        """Blocks of the cache with a value that is not finite."""
        cache = self.runner._kv_cache
        spoilt = [~each.isfinite().flatten(1).all(dim=1) for each in (*cache.key_blocks, *cache.value_blocks)]
        return int(torch.stack(spoilt).any(dim=0).sum())


def alone(directory: Path, make_compute: MakeCompute, prompt: list[int]) -> list[int]:
    pool = Pool(directory, make_compute)
    pool.submit("alone", prompt, arrival=0)
    pool.run()
    return pool.token_ids["alone"]


@pytest.mark.parametrize("make_compute", COMPUTES)
@pytest.mark.parametrize("way", ["its logits show it", "it is aborted before they do"])
def test_a_spoilt_requests_blocks_are_cleared_before_anybody_gets_them(
    way: str, make_compute: MakeCompute, directory: Path
) -> None:
    pool = Pool(directory, make_compute)
    pool.submit("neighbour", NEIGHBOUR, arrival=0)
    pool.submit("spoilt", SPOILT, arrival=1)
    pool.step()
    assert pool.num_spoilt_blocks() > 0
    if way == "it is aborted before they do":
        pool.engine.abort("spoilt")
        pool.ends["spoilt"] = "aborted"
    while "spoilt" not in pool.ends:
        pool.step()
    pool.submit("next", NEXT, arrival=2)
    pool.submit("longer", LONGER, arrival=3)
    pool.step()
    assert pool.num_spoilt_blocks() == 0, "cleared in the very step that may give them to somebody"
    pool.run()
    pool.submit("again", SPOILT, arrival=4, max_tokens=1)
    pool.run()
    assert pool.ends == {
        "spoilt": "aborted" if "aborted" in way else "NUMERIC_ERROR",
        "neighbour": "length",
        "next": "length",
        "longer": "length",
        "again": "NUMERIC_ERROR",
    }
    assert pool.token_ids["spoilt"] == []
    for name, prompt in {"neighbour": NEIGHBOUR, "next": NEXT, "longer": LONGER}.items():
        assert pool.token_ids[name] == alone(directory, make_compute, prompt)
    stats = pool.engine.stats()
    assert stats.num_free_blocks == stats.num_blocks


def test_without_clearing_the_next_owner_is_harmed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control, in plain torch, which multiplies what is hidden by 0."""
    pool = Pool(directory, TorchCompute)
    monkeypatch.setattr(pool.runner, "clear", lambda block_ids: None)
    pool.submit("neighbour", NEIGHBOUR, arrival=0)
    pool.submit("spoilt", SPOILT, arrival=1)
    pool.run()
    pool.submit("next", NEXT, arrival=2)
    pool.submit("longer", LONGER, arrival=3)
    pool.run()
    assert pool.ends["next"] == "NUMERIC_ERROR"
    assert pool.num_spoilt_blocks() > 0
