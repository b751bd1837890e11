"""Image features from vision replicas: found, chosen, asked, and asked again."""
