"""Makes torchvision importable beside a torch that its compiled part does not fit.

Copied into a peer's environment with a `.pth` file that imports it, see `install`. Only resizing is used of
torchvision there, which is Python; its operators need no more than their names. Torch is imported with it.
"""

import torch

_OPERATORS = """
nms qnms roi_align qroi_align _roi_align_backward ps_roi_align _ps_roi_align_backward roi_pool _roi_pool_backward
ps_roi_pool _ps_roi_pool_backward deform_conv2d _deform_conv2d_backward
"""
LIBRARY = torch.library.Library("torchvision", "DEF")
for _name in _OPERATORS.split():
    LIBRARY.define(f"{_name}(Tensor x) -> Tensor")
