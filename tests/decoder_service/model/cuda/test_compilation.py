"""The kernels as a compiler for real GPUs sees them, which needs no GPU; the interpreter would let more through."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]
SCRIPT = Path(__file__).with_name("kernels_for_hopper.py")


def test_all_kernels_compile_for_hopper_use_tensor_cores_read_ahead_and_fit_the_registers() -> None:
    """In a process of its own, as this one's kernels are for the interpreter."""
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'build/gen'}", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    done = subprocess.run(  # noqa: S603
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
