"""Case G6 for small packs: the encoder's recorded passes beside the same packs launched kernel by kernel.

Knows what both must have in common: the features. Does not know how a pass is recorded, nor the device's clock: who
asks brings them, so that the comparison itself runs on a CPU too.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.gpu.encoding import MAX_ERROR, encode_at
from benchmarks.gpu.row_error import row_error
from common.model.graph_recorder import GraphRecorder
from vision_service.model.encoder import PatchEncoder, PixtralVisionModel, grid_positions
from vision_service.model.encoder_graphs import EncoderGraphs, pack_sizes
from vision_service.model.segment_attention import SegmentAttention

_PACKS = {
    "128 px": [(8, 8)],
    "256 px": [(16, 16)],
    "256 px x 4": [(16, 16)] * 4,
    "512 px": [(32, 32)],
    "8 of mixed sizes": [(8 + 3 * index, 20 - 2 * index) for index in range(8)],
    "512 px x 4": [(32, 32)] * 4,
}
_MAX_PATCHES = 4096
Clock = Callable[[Callable[[], object]], float]
"""Seconds that work takes."""


@torch.inference_mode()
def encoder_graph_rows(
    model: PixtralVisionModel,
    recorder: GraphRecorder,
    attention: SegmentAttention,
    clock: Clock,
    fused: PatchEncoder | None = None,
) -> Iterator[dict[str, object]]:
    """A row per pack: whether its features are right when they come from a recorded pass, and both times.

    Right are those of `model`, launched kernel by kernel; what is recorded and timed is `fused`, if given.
    """
    timed = fused or model
    weight = model.patch_conv.weight
    sizes = pack_sizes(_MAX_PATCHES)
    graphs = EncoderGraphs(timed, attention, recorder, sizes=sizes, device=weight.device, dtype=weight.dtype)
    generator = torch.Generator(device=weight.device).manual_seed(0)
    for name, grids in _PACKS.items():
        lengths = [height * width for height, width in grids]
        size = graphs.size_for(lengths)
        if size is None:
            yield {"case": name, "right": False, "reason": "no pass of this size could be recorded"}
            continue
        shape = (sum(lengths), weight[0].numel())
        patches = torch.randn(shape, device=weight.device, generator=generator).to(weight.dtype)
        rows, columns = grid_positions(grids, weight.device)
        plain = partial(encode_at, timed, patches, rows, columns, lengths)
        recorded = partial(graphs.features, patches, rows, columns, lengths=lengths, size=size)
        want = encode_at(model, patches, rows, columns, lengths)
        error = row_error(recorded(), want)
        time, unrecorded = clock(recorded), clock(plain)
        yield {
            "case": name,
            "recorded patches": size,
            "error of a row": error,
            "right": error < MAX_ERROR,
            "ms": time * 1e3,
            "ms without graphs": unrecorded * 1e3,
            "pictures/s": len(grids) / time,
        }
