"""The vision service: image bytes in, image features out. Knows no text and no decoder."""
