"""Compiles every kernel as a compiler for real GPUs sees it, and judges what came out; `test_compilation` runs it."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from triton import backends, compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from common.model.fused_rows import _add_rms_norm, _silu_and_multiply
from decoder_service.model.cuda.fused import _rotate_and_store, _round_rows, _scale_sums
from decoder_service.model.cuda.one_row import DEFAULT_LAUNCH as DEFAULT_ROW_LAUNCH
from decoder_service.model.cuda.one_row import _multiply
from decoder_service.model.cuda.paged_attention import DEFAULT_LAUNCH, AttentionLaunch, _attend, _join
from vision_service.model.fused_encoder import _rotate

HOPPER = GPUTarget("cuda", 90, 32)
PTXAS = Path(backends.__file__).parent / "nvidia/bin/ptxas"
SHARED_BYTES = 227 * 1024
"""That a program of this GPU can have, and all on a multiprocessor together."""
MULTIPROCESSOR_BYTES, RESERVED_BYTES = 228 * 1024, 1024
"""That programs on a multiprocessor share together, and what the system takes for each of them."""
REGISTERS = 65536
"""Of a multiprocessor."""


def compiled(
    kernel: JITFunction, types: Mapping[str, str], constants: Mapping[str, object], **options: int
) -> CompiledKernel:
    """A kernel whose addresses, strides and plain numbers are multiples of 16, as at nearly every launch."""
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    unknown = {param.name for param in kernel.params if param.do_not_specialize or param.do_not_specialize_on_alignment}
    odd = {name for name, kind in types.items() if kind == "fp32"} | unknown | set(constants)
    aligned = {(index,): [["tt.divisibility", 16]] for index, name in enumerate(kernel.arg_names) if name not in odd}
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(constants), attrs=aligned)
    return compile(source, target=HOPPER, options=options)


def registers(made: CompiledKernel) -> int:
    """Of a thread."""
    return int(re.findall(r"Used (\d+) registers", assembled(made))[0])


def assembled(made: CompiledKernel) -> str:
    """What the assembler says of a kernel."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(made.asm["ptx"])
        file.flush()
        command = [str(PTXAS), "-v", "--gpu-name", "sm_90a", "-o", "/dev/null", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr  # noqa: S603


def fits(made: CompiledKernel) -> bool:
    """Whether a multiprocessor has room for what a program shares, and each thread's numbers fit the registers."""
    said = assembled(made)
    spilled = [int(count) for count in re.findall(r"(\d+) bytes spill", said)]
    assert spilled, said
    return made.metadata.shared <= SHARED_BYTES and not any(spilled)


def attend(
    rows: int,
    tile_tokens: int,
    *,
    is_split: bool,
    query: str,
    keys: str,
    head_dim: int = 128,
    launch: AttentionLaunch = DEFAULT_LAUNCH,
) -> CompiledKernel:
    """Attention with 32 heads over 8."""
    shape = {"NUM_HEADS": 32, "GROUPS": 4, "HEAD_DIM": head_dim, "BLOCK_SIZE": 16, "TILE_TOKENS": tile_tokens}
    precision = "ieee" if query == "*fp32" else "tf32"
    constants = {
        **shape,
        "ROWS": rows,
        "KEYS": launch.num_keys,
        "BLOCK_D": head_dim,
        "IS_SPLIT": is_split,
        "PRECISION": precision,
    }
    out = "*fp32" if is_split else query
    pointers = ("block_tables", "query_starts", "seq_lens", "tile_requests", "tile_starts")
    types = dict.fromkeys(_attend.arg_names, "i32") | dict.fromkeys(pointers, "*i32")
    types |= {"query": query, "key_blocks": keys, "value_blocks": keys, "parts": out, "sums": out, "scale": "fp32"}
    size = {"*fp32": 4, "*bf16": 2, "*fp8e4nv": 1}[keys]
    stages = launch.stages_for(is_single=tile_tokens == 1, lot_bytes=2 * launch.num_keys * head_dim * size)
    return compiled(_attend, types, constants, num_warps=launch.num_warps, num_stages=stages)


def reads_while_it_computes(made: CompiledKernel) -> bool:
    """Whether products begin while a later lot is still on its way: they wait for less than all that was asked for."""
    waits = re.findall(r"cp\.async\.wait_group\s+(\d+)", made.asm["ptx"].split("mma.sync")[0])
    return int(waits[-1]) > 0


def check_attention() -> None:
    """On the tensor cores where they can, with keys and values that are read ahead."""
    for keys in ("*bf16", "*fp8e4nv"):
        for rows, tile_tokens, is_split, product in ((16, 1, True, "mma.sync"), (64, 16, False, "wgmma")):
            made = attend(rows, tile_tokens, is_split=is_split, query="*bf16", keys=keys)
            assert fits(made)
            programs = 3 if tile_tokens == 1 else 2
            assert programs * (made.metadata.shared + RESERVED_BYTES) <= MULTIPROCESSOR_BYTES, made.metadata.shared
            assert programs * 4 * 32 * registers(made) <= REGISTERS, registers(made)
            assert reads_while_it_computes(made) or tile_tokens > 1
            assert product in made.asm["ptx"], "products are not on the tensor cores"
            assert "cp.async.c" in made.asm["ptx"], "keys and values are not read ahead"
            assert "cp.async.cg" in made.asm["ptx"] or keys == "*fp8e4nv", "not 16 bytes at a time"
    # In fp32 tiles of prompts are of 16 rows too.
    assert fits(attend(16, 1, is_split=True, query="*fp32", keys="*fp32"))
    assert fits(attend(16, 4, is_split=False, query="*fp32", keys="*fp32"))
    types = {"parts": "*fp32", "sums": "*fp32", "out": "*bf16", "num_tokens": "i32"}
    assert fits(compiled(_join, types, {"NUM_HEADS": 32, "HEAD_DIM": 128, "BLOCK_D": 128, "NUM_SPLITS": 32}))


def check_small_steps() -> None:
    """Pixtral-12B's widths, in all types."""
    for kind in ("*bf16", "*fp16", "*fp32"):
        norm = {"x": kind, "delta": kind, "weight": kind, "out": kind, "eps": "fp32"}
        assert fits(compiled(_add_rms_norm, norm, {"WIDTH": 5120, "BLOCK": 8192, "ADDS": True}, num_warps=8))
        assert fits(compiled(_silu_and_multiply, {"gate_up": kind, "out": kind}, {"WIDTH": 14336, "BLOCK": 1024}))
        sums = {"sums": "*fp32", "row_scale": "*fp32", "column_scale": "*fp32", "out": kind}
        assert fits(compiled(_scale_sums, sums, {"WIDTH": 28672, "BLOCK": 1024}))
        for keys, limit in ((kind, 0.0), ("*fp8e4nv", 448.0)):
            types = {"qkv": kind, "cos": "*fp32", "sin": "*fp32", "slot_mapping": "*i64", "row_stride": "i32"}
            types |= {"key_blocks": keys, "value_blocks": keys}
            constants = {"NUM_HEADS": 32, "NUM_KV_HEADS": 8, "HEADS": 8, "HALF": 64, "BLOCK": 64, "LIMIT": limit}
            assert fits(compiled(_rotate_and_store, types, constants, num_warps=4))
        constants = {"WIDTH": 5120, "BLOCK": 4096, "MAX": 448.0, "MIN_SCALE": 1e-12}
        made = compiled(_round_rows, {"x": kind, "out": "*fp8e4nv", "scale": "*fp32"}, constants)
        assert fits(made)
        assert "satfinite.e4m3x2" in made.asm["ptx"], "the device's own rounding is not used"


def check_one_row() -> None:
    """Pixtral-12B's products of one row: weights are read ahead, 16 bytes at a time, by five programs at once at least.

    Those of 8 bits by three.
    """
    shapes = ((5120, 6144, True, False), (5120, 14336, True, True), (4096, 5120, False, False))
    for weights, programs in (("*bf16", 5), ("*fp8e4nv", 3)):
        for width, count, norms, gates in (*shapes, (14336, 5120, False, False)):
            types = {"x": "*bf16", "weight": weights, "scale": "*fp32", "norm": "*bf16", "out": "*bf16", "eps": "fp32"}
            launch, is_fp8 = DEFAULT_ROW_LAUNCH, weights == "*fp8e4nv"
            constants = {
                "WIDTH": width,
                "COUNT": count,
                "OUTPUTS": launch.num_outputs // (2 if gates else 1),
                "BLOCK": launch.stage_bytes // (1 if is_fp8 else 2),
                "STAGES": launch.num_stages,
                "NORMS": norms,
                "GATES": gates,
                "SCALES": is_fp8,
                "ADDS": not norms,
            }
            made = compiled(_multiply, types, constants, num_warps=launch.num_warps)
            assert fits(made)
            assert programs * made.metadata.shared <= SHARED_BYTES
            assert programs * launch.num_warps * 32 * registers(made) <= REGISTERS, registers(made)
            assert "cp.async.cg" in made.asm["ptx"], "weights are not read ahead"


def check_encoder() -> None:
    """Widths of Pixtral-12B's encoder."""
    for kind in ("*bf16", "*fp16"):
        norm = {"x": kind, "delta": kind, "weight": kind, "out": kind, "eps": "fp32"}
        assert fits(compiled(_add_rms_norm, norm, {"WIDTH": 1024, "BLOCK": 1024, "ADDS": True}, num_warps=4))
        assert fits(compiled(_silu_and_multiply, {"gate_up": kind, "out": kind}, {"WIDTH": 4096, "BLOCK": 1024}))
        shape = {"HEADS": 32, "ROW": 3072, "HALF": 32, "BLOCK_HEADS": 32, "BLOCK": 32}
        made = compiled(_rotate, {"qkv": kind, "cos": "*fp32", "sin": "*fp32"}, shape, num_warps=4)
        assert fits(made)
        assert "st.global.v4" in made.asm["ptx"], "not 16 bytes at a time"


def check_that_numbers_anywhere_are_one_kernel() -> None:
    """Where a batch's numbers begin in a larger tensor changes nothing that is compiled; where weights begin does."""
    even, odd = torch.zeros(64, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)[1:]
    places = ("block_tables", "query_starts", "seq_lens", "tile_requests", "tile_starts")
    for kernel, names in ((_attend, places), (_rotate_and_store, ("slot_mapping",))):
        plain = dict.fromkeys(kernel.arg_names, even)
        first = specialization(kernel, plain)
        assert specialization(kernel, plain | dict.fromkeys(names, odd)) == first
        assert specialization(kernel, plain | {"key_blocks": odd}) != first


def specialization(kernel: JITFunction, arguments: Mapping[str, object]) -> object:
    """What tells compiled kernels of one source apart."""
    bind = create_function_from_signature(kernel.signature, kernel.params, make_backend(HOPPER))
    return bind(**arguments)[1]


def check_that_waiting_is_seen() -> None:
    """The negative control: fewer stages, with which nothing is on its way while a program computes."""
    launch = AttentionLaunch(num_stages=3)
    assert not reads_while_it_computes(attend(16, 1, is_split=True, query="*bf16", keys="*bf16", launch=launch))


def check_that_spilling_is_seen() -> None:
    """The negative control: tiles of 64 rows in fp32."""
    assert not fits(attend(64, 16, is_split=False, query="*fp32", keys="*fp32", head_dim=64))


CHECKS: tuple[Callable[[], None], ...] = (
    check_attention,
    check_small_steps,
    check_one_row,
    check_encoder,
    check_that_numbers_anywhere_are_one_kernel,
    check_that_waiting_is_seen,
    check_that_spilling_is_seen,
)

if __name__ == "__main__":
    for check in CHECKS:
        check()
