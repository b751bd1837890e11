"""Model folders on disk, in both layouts."""
