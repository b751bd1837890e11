"""The kernels as a compiler for real GPUs sees them, which needs no GPU; the interpreter would let more through."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]
COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from decoder_service.model.cuda.fused import _round_rows
from decoder_service.model.cuda.paged_attention import _attend

HOPPER = GPUTarget("cuda", 90, 32)

def ptx(rows, tile_tokens, splits, keys_type):
    constants = dict(NUM_HEADS=32, GROUPS=4, HEAD_DIM=128, BLOCK_SIZE=16, TILE_TOKENS=tile_tokens, ROWS=rows, KEYS=64,
                     BLOCK_D=128, NUM_SPLITS=splits, PRECISION="tf32")
    out = "*bf16" if splits == 1 else "*fp32"
    types = {"query": "*bf16", "key_blocks": keys_type, "value_blocks": keys_type}
    types |= {"parts": out, "sums": out, "scale": "fp32"}
    pointers = ("block_tables", "query_starts", "seq_lens", "tile_requests", "tile_starts")
    signature = {name: "constexpr" if name in constants else types.get(name, "*i32" if name in pointers else "i32")
                 for name in _attend.arg_names}
    # What a launch would find out: addresses and strides are multiples of 16.
    odd = {"scale", "window", "num_tokens", "table_stride", *constants}
    aligned = {(index,): [["tt.divisibility", 16]] for index, name in enumerate(_attend.arg_names) if name not in odd}
    source = ASTSource(fn=_attend, signature=signature, constexprs=constants, attrs=aligned)
    made = compile(source, target=HOPPER, options={"num_warps": 4, "num_stages": 3})
    assert made.metadata.shared < 100_000, made.metadata.shared  # two programs fit on a multiprocessor
    return made.asm["ptx"]

for keys_type in ("*bf16", "*fp8e4nv"):
    for text, product in ((ptx(16, 1, 4, keys_type), "mma.sync"), (ptx(64, 16, 1, keys_type), "wgmma")):
        assert product in text, "products are not on the tensor cores"
        assert "cp.async.c" in text, "keys and values are not read ahead"
        assert ("cp.async.cg" in text) or keys_type == "*fp8e4nv", "not 16 bytes at a time"

constants = dict(WIDTH=5120, BLOCK=4096, MAX=448.0, MIN_SCALE=1e-12)
signature = {"x": "*bf16", "out": "*fp8e4nv", "scale": "*fp32"} | dict.fromkeys(constants, "constexpr")
made = compile(ASTSource(fn=_round_rows, signature=signature, constexprs=constants), target=HOPPER)
assert "satfinite.e4m3x2" in made.asm["ptx"], "the device's own rounding is not used"
"""


def test_attention_compiles_for_hopper_with_tensor_cores_and_reads_ahead() -> None:
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'build/gen'}", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
