"""Tokens tried ahead by the CUDA arithmetic, in Triton's interpreter: the same are told, by recorded passes or not."""

from pathlib import Path

import torch

from common.checkpoint.checkpoint import open_checkpoint
from common.model.weight_types import WeightTypes
from decoder_service.engine.engine import Engine
from decoder_service.engine.request import Request
from decoder_service.model.cuda.compute import CudaCompute
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.runner import DecoderRunner
from decoder_service.model.weights import DecoderModel
from decoder_service.sampling.sampling_params import SamplingParams
from decoder_service.scheduling.scheduler_config import SchedulerConfig
from tests.decoder_service.languages import Pairs
from tests.replayer import Replayer
from tests.tiny_models import Shape, random_text_model, save

CPU = torch.device("cpu")
PROMPT = (5, 17, 99, 23)


def told(directory: Path, num_tries: int) -> tuple[list[list[int]], int, int]:
    """What two requests are told, how many tokens that were tried were right, and how often a recorded pass ran."""
    model = DecoderModel.load(open_checkpoint(directory), device=CPU, types=WeightTypes(torch.float32))
    cache = KVCache(model.config, num_blocks=40, block_size=8, device=CPU, dtype=torch.float32)
    replayer = Replayer()
    compute = CudaCompute(model, cache, recorder=replayer, max_num_requests=2, max_model_len=128)
    config = SchedulerConfig(
        max_num_batched_tokens=32, max_num_requests=2, max_model_len=128, num_speculative_tokens=num_tries
    )
    engine = Engine(config=config, num_blocks=40, block_size=8, runner=DecoderRunner(model, cache, compute))
    for index in range(2):
        sampling = SamplingParams(max_tokens=10, temperature=0.5 * index, seed=index)
        engine.submit(
            Request(
                request_id=str(index),
                prompt_token_ids=PROMPT[index:],
                sampling=sampling,
                arrival=index,
                matcher=Pairs(),
            )
        )
    tokens: list[list[int]] = [[], []]
    while engine.has_work:
        for token in engine.step().tokens:
            tokens[int(token.request_id)].append(token.token_id)
    return tokens, engine.stats().num_accepted_tokens, replayer.num_runs


def test_what_is_tried_changes_no_token(tmp_path: Path) -> None:
    directory = save(random_text_model(Shape(name="small", hidden=48, heads=4, kv_heads=2)), tmp_path)
    plain, none, num_recorded = told(directory, 0)
    tried, num_accepted, num_left = told(directory, 4)
    assert tried == plain
    assert none == 0 < num_accepted
    assert num_left < num_recorded
