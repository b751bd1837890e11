"""What holds for every test."""

import os
from pathlib import Path

from hypothesis import settings

# Set before torch is imported, also by the services that tests start: tiny products gain nothing from a second
# thread, and on cores with other work every parallel region waits for the slowest one, ten times over.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Kernels for CUDA run on the GPU where there is one, and in Triton's interpreter elsewhere. That is decided when triton
# is first imported, by whichever test comes first.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The same examples in every run, so that a red run can be repeated; PROPERTY_OPERATIONS, which asks for a
# longer hunt, also asks for new ones.
settings.register_profile("repeatable", derandomize=True)
if "PROPERTY_OPERATIONS" not in os.environ:
    settings.load_profile("repeatable")
