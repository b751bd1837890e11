"""The kernels as Python calls them: tensors in, tensors out.

Knows the library's interface in C and its structures. Does not know models: see
`decoder_service.model.native_compute` and `vision_service.model.native_encoder`. Every tensor is float32 or int64,
contiguous and on the CPU; what is not is an error of the caller. Weights, and keys and values, may be bfloat16. Calls
release Python's lock.
"""

import ctypes
from array import array
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from pathlib import Path

from torch import Tensor

from common.native.loading import load
from common.native.processor import LEVELS


class CWeights(Structure):
    """`Weights` of weights.h."""

    _fields_ = (
        ("data", c_void_p),
        ("scales", c_void_p),
        *((name, c_int64) for name in ("columns", "depth", "bits", "rounds")),
    )


class CShape(Structure):
    """`DecoderShape` of step.h."""

    _fields_ = (
        *((name, c_int64) for name in ("hidden", "layers", "heads", "kv_heads", "head_dim", "feed_forward")),
        *((name, c_int64) for name in ("vocabulary", "block_size", "window", "kv_bits")),
        ("eps", c_float),
        ("scale", c_float),
    )


class CProjector(Structure):
    """`ProjectorWeights` of projector.h."""

    _fields_ = (("first", CWeights), ("second", CWeights), ("bias_1", c_void_p), ("bias_2", c_void_p))


class CLayer(Structure):
    """`LayerWeights` of step.h."""

    _fields_ = (
        ("input_norm", c_void_p),
        ("qkv", CWeights),
        ("output", CWeights),
        ("post_norm", c_void_p),
        ("gate_up", CWeights),
        ("down", CWeights),
        ("keys", c_void_p),
        ("values", c_void_p),
    )


class CEncoderShape(Structure):
    """`EncoderShape` of encoder.h."""

    _fields_ = (
        *((name, c_int64) for name in ("hidden", "layers", "heads", "head_dim", "feed_forward")),
        ("eps", c_float),
        ("scale", c_float),
    )


class CEncoderLayer(Structure):
    """`EncoderLayer` of encoder.h."""

    _fields_ = (
        ("attention_norm", c_void_p),
        ("qkv", CWeights),
        ("output", CWeights),
        ("feed_forward_norm", c_void_p),
        ("gate_up", CWeights),
        ("down", CWeights),
    )


class CBatch(Structure):
    """`Batch` of step.h."""

    _fields_ = (
        *((name, c_int64) for name in ("tokens", "requests", "max_blocks")),
        *((name, c_void_p) for name in ("positions", "slots", "tables", "query_lengths", "seq_lens", "adapters")),
    )


class CLowRank(Structure):
    """`LowRank` of adapters.h; zeros where there is none."""

    _fields_ = (("down", CWeights), ("up", CWeights))


class CAdapterLayer(Structure):
    """`AdapterLayer` of adapters.h."""

    _fields_ = tuple((name, CLowRank) for name in ("qkv", "output", "gate_up", "down"))


class Library:
    """A loaded library with its threads. One call at a time."""

    def __init__(self, path: Path, *, level: str, threads: int, rounds: bool = False) -> None:
        """Load it. With `rounds` all weights are rounded to bfloat16, and what they are multiplied with may be, too.

        Raises NativeUnavailableError.
        """
        self.c = load(path)
        _declare(self.c)
        self.name = f"native {level}{' bfloat16' if rounds else ''}"
        self.rounds = rounds
        """Whether weights are bfloat16, and what they are multiplied with may be rounded to that."""
        self.has_tiles = LEVELS[level].has_tiles
        """Whether weights of 16 bits are multiplied in the processor's tiles."""
        self.panel: int = self.c.diptych_panel()
        """Columns that packed weights are laid out by."""
        self.depth_step: int = self.c.diptych_depth_step()
        """Depths that packed weights of 16 bits are filled up to whole steps of."""
        self.pool: int = self.c.diptych_pool_new(threads)

    def greedy(self, logits: Tensor, *, margin: float) -> tuple[list[int], list[bool], list[bool]]:
        """Of each row of logits [num_rows, vocab_size] the first of the largest, whether all are finite, and whether
        another is within `margin` of the largest.
        """
        rows, vocabulary = logits.shape
        # Not arrays of ctypes: a type of each length would be made in nearly every step.
        best, flags = array("q", bytes(8 * rows)), array("B", bytes(2 * rows))
        first_flag = flags.buffer_info()[0]
        self.c.diptych_greedy(
            rows, vocabulary, logits.data_ptr(), margin, best.buffer_info()[0], first_flag, first_flag + rows
        )
        return best.tolist(), [flag != 0 for flag in flags[:rows]], [flag != 0 for flag in flags[rows:]]


def _declare(c: ctypes.CDLL) -> None:
    """Tell ctypes the functions' types, or it cuts pointers to 32 bits."""
    p, n, i, f = c_void_p, c_int64, c_int32, c_float
    weights = POINTER(CWeights)
    signatures = {
        "diptych_panel": (i, ()),
        "diptych_depth_step": (i, ()),
        "diptych_pool_new": (p, (i,)),
        "diptych_pack": (None, (p, n, n, n, p)),
        "diptych_pack_halves": (None, (p, n, n, n, p)),
        "diptych_halve": (i, (p, n, n, p)),
        "diptych_linear": (None, (p, weights, n, p, p)),
        "diptych_packed_attention": (None, (p, p, p, p, n, n, n, n, p, i, i, f, p)),
        "diptych_encoder_new": (p, (p, POINTER(CEncoderShape), POINTER(CEncoderLayer))),
        "diptych_encoder_run": (None, (p, n, p, p, p, p)),
        "diptych_decoder_new": (p, (p, POINTER(CShape), p, POINTER(CLayer), p, weights, p, n, POINTER(CProjector))),
        "diptych_decoder_set_adapters": (None, (p, n, POINTER(CAdapterLayer))),
        "diptych_decoder_hidden": (None, (p, POINTER(CBatch), n, p, p)),
        "diptych_decoder_logits": (None, (p, n, p, p)),
        "diptych_decoder_embed": (None, (p, n, p, p)),
        "diptych_decoder_project": (None, (p, n, p, p)),
        "diptych_decoder_next": (n, (p, p, p, f, p)),
        "diptych_greedy": (None, (n, n, p, f, p, p, p)),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(c, name)
        function.restype, function.argtypes = result, arguments
