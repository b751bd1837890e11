"""From tokens back to text, and where it stops."""
