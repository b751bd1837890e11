"""What holds for every test."""

import os

from hypothesis import settings

# Set before torch is imported, also by the services that tests start: tiny products gain nothing from a second
# thread, and on cores with other work every parallel region waits for the slowest one, ten times over.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, so that a red run can be repeated; PROPERTY_OPERATIONS, which asks for a
# longer hunt, also asks for new ones.
settings.register_profile("repeatable", derandomize=True)
if "PROPERTY_OPERATIONS" not in os.environ:
    settings.load_profile("repeatable")
