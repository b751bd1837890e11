"""Image features on their way from the encoder to the decoder."""
