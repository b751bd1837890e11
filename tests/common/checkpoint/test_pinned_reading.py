"""Tensors come through memory that is used again only when what it held has arrived."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from common.checkpoint import checkpoint as checkpoint_module
from common.checkpoint.checkpoint import open_checkpoint
from common.checkpoint.files import CheckpointError
from common.checkpoint.layout import Part
from common.checkpoint.pinned_reading import PinnedReader
from common.checkpoint.safetensors_file import StoredTensor, read_header
from common.model.devices import Mark
from common.model.weight_types import WeightTypes
from tests.checkpoints import SMALL, build_parts
from tests.native_checkpoint import write_native
from tests.tiny_models import random_pixtral

CPU = torch.device("cpu")
Copy = tuple[Tensor, Tensor]


class SlowDevice:
    """A device to which each copy comes only when it is waited for, and which notes how many are under way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0
        self._under_way: list[Copy] = []
        self._plain = Tensor.copy_

        def copy_(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
            if not non_blocking:
                return self._plain(target, source)
            self._under_way.append((target, source))
            self.most = max(self.most, len(self._under_way))
            return target

        monkeypatch.setattr(Tensor, "copy_", copy_)

    def mark(self) -> Callable[[], None]:
        copy = self._under_way[-1]
        return lambda: self._arrive(copy)

    def finish(self) -> None:
        for copy in list(self._under_way):
            self._arrive(copy)

    def _arrive(self, copy: Copy) -> None:
        self._plain(*copy)
        self._under_way = [each for each in self._under_way if each is not copy]


def stored(folder: Path, tensors: dict[str, Tensor]) -> dict[str, StoredTensor]:
    save_file(tensors, folder / "some.safetensors")
    return {each.name: each for each in read_header(folder / "some.safetensors")}


TENSORS = {
    "long": torch.arange(1000, dtype=torch.float32).view(50, 20),
    "halves": torch.randn(7, 9, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "short": torch.tensor([1.5]),
}


@pytest.mark.parametrize("piece_bytes", [64, 1000, 4000, 1 << 20])
def test_tensors_of_any_length_come_as_they_are_though_copies_are_late(
    piece_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = stored(tmp_path, TENSORS)
    device = SlowDevice(monkeypatch)
    reader = PinnedReader(CPU, device.mark, piece_bytes=piece_bytes)
    read = {name: reader.read(found[name]) for name in TENSORS}
    device.finish()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    assert device.most == 2  # What is read goes on while what was read is on its way.


def test_a_file_that_ends_too_early_is_named(tmp_path: Path) -> None:
    found = stored(tmp_path, TENSORS)
    path = tmp_path / "some.safetensors"
    path.write_bytes(path.read_bytes()[:-2000])
    reader = PinnedReader(CPU, lambda: lambda: None, piece_bytes=256)
    last = max(found.values(), key=lambda each: each.start)
    with pytest.raises(CheckpointError, match=rf"some\.safetensors: tensor {last.name}: the file ends too early"):
        reader.read(last)


def test_a_checkpoint_is_read_so_onto_a_gpu_with_its_heads_in_our_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is something that says it is one: nothing is copied to it, but everything goes the same way."""

    class Gpu:
        type = "cuda"

    used: list[str] = []

    class Reader(PinnedReader):
        def __init__(self, device: object, mark: Mark) -> None:
            super().__init__(CPU, lambda: lambda: None, piece_bytes=100)

        def read(self, stored: StoredTensor) -> Tensor:
            used.append(stored.name)
            return super().read(stored)

    checkpoint = open_checkpoint(write_native(random_pixtral(SMALL), tmp_path))
    module = build_parts(checkpoint.config)[Part.DECODER]
    here = dict(checkpoint.tensors(Part.DECODER, module, device=CPU, types=WeightTypes(torch.float32)))
    assert used == []
    monkeypatch.setattr(checkpoint_module, "PinnedReader", Reader)
    monkeypatch.setattr(Tensor, "to", lambda tensor, *, device, dtype: tensor.type(dtype))
    there = dict(checkpoint.tensors(Part.DECODER, module, device=Gpu(), types=WeightTypes(torch.float32)))  # type: ignore[arg-type]
    assert len(used) == len(here) > 5
    assert all(torch.equal(there[name], here[name]) for name in here)
