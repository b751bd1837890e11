"""Recording as it is asked of torch, where there is no GPU to record on."""

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from common.model.graph_recorder import CudaGraphRecorder


class FakeCuda:
    """Notes on which stream work runs; as in torch, a recording that fails leaves its stream the current one."""

    def __init__(self) -> None:
        self.current = FakeStream()
        self.pools: list[object] = []
        self.modes: list[str] = []

    def current_stream(self, _: object = None) -> "FakeStream":
        return self.current

    def graph(
        self, _: object, *, pool: object, stream: "FakeStream", capture_error_mode: str
    ) -> AbstractContextManager[None]:
        self.pools.append(pool)
        self.modes.append(capture_error_mode)
        return self._capture(stream)

    @contextmanager
    def _capture(self, stream: "FakeStream") -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before


class FakeStream:
    """A stream that others are waited for on."""

    def __init__(self, *_: object) -> None:
        self.waited_for: list[FakeStream] = []

    def wait_stream(self, other: "FakeStream") -> None:
        self.waited_for.append(other)


class FakeGraph:
    """A recorded graph."""

    def replay(self) -> None:
        """Nothing is run."""


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    @contextmanager
    def device(_: object) -> Iterator[None]:
        yield

    @contextmanager
    def stream(stream: FakeStream) -> Iterator[None]:
        before, fake.current = fake.current, stream
        try:
            yield
        finally:
            fake.current = before

    fake = FakeCuda()
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", fake.current_stream)
    monkeypatch.setattr(torch.cuda, "graph", fake.graph)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    return fake


def test_work_is_tried_and_recorded_on_one_stream_which_is_not_the_callers(cuda: FakeCuda) -> None:
    own, seen = cuda.current, []
    recorder = CudaGraphRecorder(torch.device("cuda", 0))
    for _ in range(2):
        recorder.record(lambda: seen.append(cuda.current))
    assert len(seen) == 4
    assert len(set(seen)) == 1
    assert seen[0] is not own
    assert cuda.current is own
    assert seen[0].waited_for == [own, own]
    assert own.waited_for == [seen[0], seen[0]]
    assert len(set(cuda.pools)) == 1


def test_other_threads_do_not_end_a_recording(cuda: FakeCuda) -> None:
    CudaGraphRecorder(torch.device("cuda", 0)).record(lambda: None)
    assert cuda.modes == ["thread_local"]


def test_nothing_is_cleared_away_while_a_pass_is_recorded_and_again_after_it(cuda: FakeCuda) -> None:
    seen: list[bool] = []
    CudaGraphRecorder(torch.device("cuda", 0)).record(lambda: seen.append(gc.isenabled()))
    assert seen == [True, False]
    assert gc.isenabled()


def test_a_recording_that_fails_leaves_the_callers_stream_the_current_one(cuda: FakeCuda) -> None:
    own, tries = cuda.current, []

    def work() -> None:
        tries.append(1)
        if len(tries) == 2:
            raise RuntimeError("cannot be recorded")

    with pytest.raises(RuntimeError, match="cannot be recorded"):
        CudaGraphRecorder(torch.device("cuda", 0)).record(work)
    assert len(tries) == 2
    assert cuda.current is own
    assert gc.isenabled()
