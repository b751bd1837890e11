"""Other engines on the same GPU with our own random weights, each in a process of its own."""
