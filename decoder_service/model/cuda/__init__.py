"""The decoder's kernels for CUDA; needs triton, which comes with torch's CUDA builds."""
