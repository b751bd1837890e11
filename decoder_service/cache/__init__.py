"""Who owns which KV block and which bytes of features, and what of them can be used again."""
