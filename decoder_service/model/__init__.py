"""The arithmetic of a step: weights, KV cache, batch, layers. Knows tensors and no requests' fates."""
