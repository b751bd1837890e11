"""Adapters: low-rank changes of the decoder's products, and the files that hold them."""
