"""Diptych's own engine with a runner that computes nothing: an engine behind `protocol`.

`step` is the whole of `Engine.step`: what to compute, the runner's call, what each token means, and the output.
"""

from benchmarks.components.host import engine_with
from benchmarks.peers.protocol import serve
from benchmarks.peers.stepping import MAX_TOKENS, Step, time_steps
from common.process import freeze_loaded
from common.version import server_version


class Worker:
    """Engines that are made anew for each measurement."""

    def load(self, model: str) -> dict[str, object]:
        """Get ready as the service does."""
        freeze_loaded()
        return {"version": f"diptych {server_version()}"}

    def step(self, running: int, context: int, steps: int, seconds: float) -> dict[str, object]:
        """Steps of the engine."""

        def begin(running: int, context: int, _: int) -> Step:
            engine = engine_with(running=running, context=context, max_tokens=MAX_TOKENS - context)
            return lambda: len(engine.step().tokens)

        return time_steps(begin, running=running, context=context, steps=steps, seconds=seconds)


if __name__ == "__main__":
    worker = Worker()
    serve({"load": worker.load, "step": worker.step})
