"""What is known of a picture before its pixels are."""
