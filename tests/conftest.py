"""What holds for every test."""

import os

from hypothesis import settings

# The same examples in every run, so that a red run can be repeated; DIPTYCH_PROPERTY_OPERATIONS, which asks for a
# longer hunt, also asks for new ones.
settings.register_profile("repeatable", derandomize=True)
if "DIPTYCH_PROPERTY_OPERATIONS" not in os.environ:
    settings.load_profile("repeatable")
