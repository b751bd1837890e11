"""Weights in the kernels' layout, from the layout of checkpoints.

Knows panels and number types. Does not know which layer a weight belongs to.
"""

import mmap
from collections.abc import Sequence
from ctypes import byref

import torch
from torch import Tensor, nn

from common.native.library import CWeights, Library
from common.process import give_memory_back

HUGE_PAGE = 2 << 20
"""Bytes, where pages have 4 KiB."""
_ROWS_AT_ONCE, _PANELS_AT_ONCE = 4096, 256
"""Of a weight that is converted: the head alone has as many rows as there are tokens."""


class PackedWeights:
    """The weights of one product y = x W^T, [columns, depth], packed; see linear.h for the layout."""

    def __init__(
        self, library: Library, linears: Sequence[nn.Linear | nn.Embedding], *, in_bytes: bool = False
    ) -> None:
        """Pack the weights of layers that share their input, below one another.

        The layers lose their weights, so that only this copy stays; memory peaks at one layer's more. Weights that are
        all bfloat16, as in most checkpoints, take 16 bits each, which are the same numbers; others take 32, unless the
        library rounds. `in_bytes` they take 8, and each column is scaled so that its largest weight is 127.
        """
        self._library = library
        self.columns = sum(linear.weight.shape[0] for linear in linears)
        self.depth = linears[0].weight.shape[1]
        panels = -(-self.columns // library.panel)
        are_halves = not in_bytes and (
            library.rounds or all(linear.weight.dtype is torch.bfloat16 for linear in linears)
        )
        dtype = torch.bfloat16 if are_halves else torch.float32
        pack = library.c.diptych_pack_halves if are_halves else library.c.diptych_pack
        size = _halves_size(library, panels, self.depth) if are_halves else panels * self.depth * library.panel
        self._data, self._scales = on_huge_pages(size, dtype), torch.empty(0)
        first = 0
        for linear in linears:
            for some in linear.weight.detach().split(_ROWS_AT_ONCE):
                rows = some.to(dtype).contiguous()
                pack(rows.data_ptr(), *rows.shape, first, self._data.data_ptr())
                first += len(rows)
            del some, rows, linear.weight
        if in_bytes:
            self._data, self._scales = _in_bytes(self._data, panels, self.depth)
        elif not are_halves and (halves := _in_halves(library, self._data, panels, self.depth)) is not None:
            self._data = halves
        # At once: what is kept until all is packed comes to as much again as all weights.
        give_memory_back()
        self.bits = 8 * self._data.itemsize
        """That each weight takes."""
        # Of an empty tensor the address is 0.
        self.c = CWeights(
            self._data.data_ptr(), self._scales.data_ptr(), self.columns, self.depth, self.bits, library.rounds
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [num_rows, depth] to [num_rows, columns]."""
        x = x.contiguous()
        y = x.new_empty(x.shape[0], self.columns)
        self._library.c.diptych_linear(self._library.pool, byref(self.c), x.shape[0], x.data_ptr(), y.data_ptr())
        return y


def on_huge_pages(size: int, dtype: torch.dtype) -> Tensor:
    """Zeros on huge pages where the system has them: streaming through small ones costs a third more.

    What half fills a huge page or more gets whole ones, so that none of it is on small ones. Small ones lie apart, in
    other places in every process, and a part of the weights on them made steps of some processes a fifth longer.
    """
    num_bytes = max(dtype.itemsize * size, 1)
    is_large = num_bytes >= HUGE_PAGE // 2
    # One more, of which nothing is touched: Linux, but for some versions, begins a mapping at any small page.
    room = (-(-num_bytes // HUGE_PAGE) + 1) * HUGE_PAGE if is_large else num_bytes
    # Private: memory that could be shared is on huge pages only where the system is told so apart.
    memory = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    begin = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % HUGE_PAGE if is_large else 0
    return torch.frombuffer(memory, dtype=dtype, count=size, offset=begin)


def _halves_size(library: Library, panels: int, depth: int) -> int:
    """How many weights of 16 bits there are with those that fill up the last step."""
    return panels * library.panel * -(-depth // library.depth_step) * library.depth_step


def _in_halves(library: Library, packed: Tensor, panels: int, depth: int) -> Tensor | None:
    """The same panels in 16 bits a weight; None where one of them needs more."""
    halves = on_huge_pages(_halves_size(library, panels, depth), torch.bfloat16)
    fit: int = library.c.diptych_halve(packed.data_ptr(), panels, depth, halves.data_ptr())
    return halves if fit else None


def _in_bytes(packed: Tensor, panels: int, depth: int) -> tuple[Tensor, Tensor]:
    """The same panels as int8, with the scale of each column."""
    values = packed.view(panels, depth, -1)
    whole, scales = torch.empty_like(values, dtype=torch.int8), values.new_empty(panels, values.shape[2])
    at_once = [part.split(_PANELS_AT_ONCE) for part in (values, whole, scales)]
    for some, bytes_of_some, scales_of_some in zip(*at_once, strict=True):
        scales_of_some.copy_(some.abs().amax(dim=1) / 127)
        bytes_of_some.copy_((some / scales_of_some.clamp(min=1e-30)[:, None]).round())
    return whole, scales
