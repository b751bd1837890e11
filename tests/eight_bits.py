"""Says where products in 8 bits can be tested."""

import pytest
import torch

needs_products_on_the_host = pytest.mark.skipif(
    not torch._C._dispatch_has_kernel_for_dispatch_key("aten::_scaled_mm_v2", "CPU"),
    reason="this version of torch multiplies in 8 bits on GPUs alone",
)
