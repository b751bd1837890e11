"""What travels over gRPC, and the memory that is shared beside it."""
