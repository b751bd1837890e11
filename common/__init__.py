"""What the vision service and the decoder service must agree on. Imports neither, re-exports nothing."""
