"""What only a GPU can show: `python -m benchmarks.gpu` needs torch 2.11 or newer with CUDA, and no network."""
