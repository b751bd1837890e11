"""Callers of the pair: no torch, only gRPC."""
