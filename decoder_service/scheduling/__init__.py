"""Which tokens of which requests are computed next. Pure policy: no tensors, no wire, no clock."""
