"""What travels over gRPC: messages to requests, tokens to messages."""
