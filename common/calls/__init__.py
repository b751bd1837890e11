"""One RPC: its state, its end, what is counted and told of it."""
