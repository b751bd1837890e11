"""A step is begun without a look at what the device computes.

The device is torch's `meta`, whose tensors have shapes and no values: whoever reads one fails. So does whoever brings
it numbers in a way in which CUDA would wait for all that it was given to do before.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from common.features.feature_spec import FeatureSpec
from common.image.identity import ImageHash
from common.image.preprocessing import PatchGrid
from decoder_service.engine.prompt_images import PlaceholderRange
from decoder_service.engine.request import Request
from decoder_service.engine.step import Launched, NoToken, ScheduledBatch, ScheduledRequest
from decoder_service.model.batch import ForwardBatch
from decoder_service.model.compute import TorchCompute
from decoder_service.model.cuda.attention import AttentionShape, PagedAttention
from decoder_service.model.cuda.decode_graphs import DecodeGraphs
from decoder_service.model.cuda.flashinfer_attention import FlashInferAttention
from decoder_service.model.cuda.triton_attention import TritonAttention
from decoder_service.model.kv_cache import KVCache
from decoder_service.model.mistral import MistralForCausalLM
from decoder_service.model.runner import DecoderRunner
from decoder_service.model.staging import PinnedStaging
from decoder_service.model.weights import DecoderModel
from decoder_service.sampling.sampling_params import SamplingParams
from decoder_service.vision.image_encoder import ImageFeatures
from tests.replayer import Replayer
from tests.small_configs import SMALL_TEXT

META = torch.device("meta")
CONFIG = replace(SMALL_TEXT, num_hidden_layers=1)
PARAMS = {
    "greedy": SamplingParams(max_tokens=9),
    "drawn": SamplingParams(max_tokens=9, temperature=0.8, top_k=5, top_p=0.9, min_p=0.1),
}
MIXTURES = [("greedy", "greedy"), ("drawn", "drawn"), ("greedy", "drawn", "greedy")]


class Waited(Exception):
    """CUDA would have waited."""


class NoWaits(TorchFunctionMode):
    """Raises `Waited` where numbers go to the device in a way that waits for it."""

    def __torch_function__(
        self,
        function: Callable[..., object],
        kinds: object,
        arguments: Sequence[object] = (),
        options: Mapping[str, object] | None = None,
    ) -> object:
        options = options or {}
        result = function(*arguments, **options)
        is_there = isinstance(result, Tensor) and result.device == META
        sources = [each for each in arguments if isinstance(each, Tensor) and each.device != META and each.ndim]
        moves = function is torch.tensor or (sources and not options.get("non_blocking"))
        if is_there and moves:
            raise Waited(function)
        return result


class NoWrapper:
    """Takes FlashInfer's plans."""

    def plan(self, *numbers: object, **options: object) -> None:
        """Note nothing."""

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
        """Compute nothing."""
        return q


ATTENTION: dict[str, Callable[[AttentionShape], PagedAttention]] = {
    "triton": lambda shape: TritonAttention(shape, META),
    "flashinfer": lambda shape: FlashInferAttention(shape, lambda places: NoWrapper(), lambda: lambda: None),
}


class Recorded(TorchCompute):
    """Layers that do nothing, recorded."""

    def __init__(self, model: DecoderModel, kv_cache: KVCache, attention: str) -> None:
        super().__init__(model, kv_cache)
        self._graphs = DecodeGraphs(
            lambda embeds, places: embeds,
            ATTENTION[attention](AttentionShape.of(CONFIG, kv_cache, torch.float32)),
            Replayer(),
            sizes=(4,),
            max_model_len=64,
            block_size=16,
            hidden_size=CONFIG.hidden_size,
            device=META,
            dtype=torch.float32,
        )

    def hidden(self, embeds: Tensor, forward: ForwardBatch) -> Tensor:
        assert self._graphs.fits(forward)
        return self._graphs.hidden(embeds, forward)


class MetaStaging:
    """Carries the shapes of numbers."""

    def move(self, numbers: "array[int] | array[float]") -> Tensor:
        kind = torch.int64 if numbers.typecode == "q" else torch.float64
        return torch.empty(len(numbers), dtype=kind, device=META)

    def carry(self, rows: Tensor) -> Tensor:
        return PinnedStaging(META, lambda: lambda: None).carry(rows)

    def read(self, tensor: Tensor) -> Callable[[], list[int]]:
        """The last number is one of near ties, the others are tokens: none is finite, all the same."""
        assert tensor.device == META
        return lambda: [-1] * (len(tensor) - 1) + [0]


def make_runner(attention: str = "triton") -> DecoderRunner:
    with META:
        decoder = MistralForCausalLM(CONFIG)
    model = DecoderModel(config=CONFIG, device=META, dtype=torch.float32, decoder=decoder, projector=None)
    cache = KVCache(CONFIG, num_blocks=8, block_size=16, device=META, dtype=torch.float32)
    return DecoderRunner(model, cache, Recorded(model, cache, attention), staging=MetaStaging())


def requests_with(*params: SamplingParams) -> list[Request]:
    requests = []
    for number, sampling in enumerate(params):
        request = Request(request_id=f"r{number}", prompt_token_ids=(1, 2, 3), sampling=sampling, arrival=number)
        request.output_token_ids, request.num_computed_tokens = [4], 3
        request.block_table.append(number)  # type: ignore[arg-type]
        requests.append(request)
    return requests


def two_steps(runner: DecoderRunner, requests: Sequence[Request]) -> Launched:
    first = runner.launch(ScheduledBatch(tuple(ScheduledRequest(each, 1) for each in requests)))
    ahead = tuple(ScheduledRequest(each, 1, 4) for each in requests)
    with NoWaits():
        return runner.launch(ScheduledBatch(ahead, sources=tuple(range(len(requests)))), first)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_step_ahead_is_begun_without_waiting_for_the_device(mixture: Sequence[str], attention: str) -> None:
    launched = two_steps(make_runner(attention), requests_with(*(PARAMS[name] for name in mixture)))
    assert launched.result().token_ids == [NoToken.NOT_FINITE] * len(mixture)


class WaitingStaging(MetaStaging):
    """Carries rows as torch does by default."""

    def carry(self, rows: Tensor) -> Tensor:
        return rows.to(META)


class Embeddings(TorchCompute):
    """No layers, and a projector that only has the right shape."""

    def project(self, image_features: Tensor) -> Tensor:
        return image_features.new_empty(len(image_features), CONFIG.hidden_size)

    def hidden(self, embeds: Tensor, forward: ForwardBatch) -> Tensor:
        return embeds


@pytest.mark.parametrize("staging", [MetaStaging(), WaitingStaging()])
def test_a_prompt_with_a_picture_is_begun_without_waiting_for_the_device(staging: MetaStaging) -> None:
    """The second one is the negative control."""
    grid = PatchGrid(2, 2)
    span = PlaceholderRange(offset=1, length=6, grid=grid)
    request = Request(
        request_id="r",
        prompt_token_ids=tuple(range(9)),
        sampling=PARAMS["greedy"],
        arrival=0,
        placeholders=(span,),
        image_identities=(b"",),
    )
    spec = FeatureSpec(image_hash=ImageHash(b""), grid=grid, width=4, dtype="float32")
    request.features[0] = ImageFeatures(spec=spec, data=memoryview(bytearray(spec.num_bytes)))
    request.block_table.append(0)  # type: ignore[arg-type]
    usual = make_runner()
    runner = DecoderRunner(usual._model, usual._kv_cache, Embeddings(usual._model, usual._kv_cache), staging=staging)
    with NoWaits(), nullcontext() if type(staging) is MetaStaging else pytest.raises(Waited):
        runner.launch(ScheduledBatch((ScheduledRequest(request, 9),))).result()


def test_a_request_that_needs_the_host_makes_it_wait() -> None:
    """The negative control; `lookahead` plans no such step."""
    launched = two_steps(make_runner(), requests_with(SamplingParams(max_tokens=9, logit_bias=((3, 1.0),))))
    with pytest.raises(Waited):
        launched.result()


def test_a_step_ahead_goes_on_from_one_that_its_runner_launched() -> None:
    (request,) = requests_with(PARAMS["greedy"])
    batch = ScheduledBatch((ScheduledRequest(request, 1, 4),), sources=(0,))
    for before in (None, Launched(lambda: pytest.fail("is read"), "another's")):
        with pytest.raises(TypeError):
            make_runner().launch(batch, before)
