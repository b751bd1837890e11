"""From pixels to image features: weights, batches, the device. Knows tensors and no calls."""
