"""One picture's way through the service: whether there is room, what is kept, who waits for the encoder."""
