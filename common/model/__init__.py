"""What both halves of the model are computed with."""
