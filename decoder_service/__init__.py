"""The decoder service: prompts and image features in, tokens out. Never decodes a pixel."""
