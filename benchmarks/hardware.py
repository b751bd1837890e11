"""Where and when something was measured, for every file of results.

Knows /proc and package metadata.
"""

import importlib.metadata
import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path

_PACKAGES = ("torch", "numpy", "grpcio", "protobuf", "pillow")


def describe() -> dict[str, object]:
    """Machine, versions and date."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    flags = set(_field(text, "flags").split())
    memory = Path("/proc/meminfo").read_text(encoding="utf-8")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _field(text, "model name"),
        "family": f"{_field(text, 'cpu family')}/{_field(text, 'model')}",
        "vectors": [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if name in flags],
        "cores": os.cpu_count(),
        "memory_gib": round(int(re.search(r"MemTotal:\s+(\d+)", memory)[1]) / 2**20, 1),  # type: ignore[index]
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else "?"
