"""What it brings to try tokens ahead."""
