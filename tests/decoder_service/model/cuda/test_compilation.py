"""The kernels as a compiler for real GPUs sees them, which needs no GPU; the interpreter would let more through."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]
COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from decoder_service.model.cuda.paged_attention import _attend

def ptx(rows, tile_tokens, splits):
    constants = dict(NUM_HEADS=32, GROUPS=4, HEAD_DIM=128, BLOCK_SIZE=16, TILE_TOKENS=tile_tokens, ROWS=rows, KEYS=64,
                     BLOCK_D=128, NUM_SPLITS=splits, PRECISION="tf32")
    out = "*bf16" if splits == 1 else "*fp32"
    types = dict.fromkeys(("query", "key_blocks", "value_blocks"), "*bf16")
    types |= {"parts": out, "sums": out, "scale": "fp32"}
    pointers = ("block_tables", "query_starts", "seq_lens", "tile_requests", "tile_starts")
    signature = {name: "constexpr" if name in constants else types.get(name, "*i32" if name in pointers else "i32")
                 for name in _attend.arg_names}
    # What a launch would find out: addresses and strides are multiples of 16.
    odd = {"scale", "window", "num_tokens", "table_stride", *constants}
    aligned = {(index,): [["tt.divisibility", 16]] for index, name in enumerate(_attend.arg_names) if name not in odd}
    source = ASTSource(fn=_attend, signature=signature, constexprs=constants, attrs=aligned)
    made = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "num_stages": 3})
    assert made.metadata.shared < 100_000, made.metadata.shared  # two programs fit on a multiprocessor
    return made.asm["ptx"]

for text, product in ((ptx(16, 1, 4), "mma.sync"), (ptx(64, 16, 1), "wgmma")):
    assert product in text, "products are not on the tensor cores"
    assert "cp.async.cg" in text, "keys and values are not read ahead, 16 bytes at a time"
"""


def test_attention_compiles_for_hopper_with_tensor_cores_and_reads_ahead() -> None:
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'build/gen'}", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
