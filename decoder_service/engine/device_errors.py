"""What a runner raises where the device is at fault, and not the batch.

Knows the two kinds. Does not know devices: `device_guard` makes these of what a library raises.
"""


class DeviceMemoryError(Exception):
    """The device had no memory for a batch of this size; a smaller one may pass."""


class DeviceLostError(Exception):
    """The device computes nothing any more, and this process must be replaced."""
