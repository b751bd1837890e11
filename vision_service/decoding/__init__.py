"""From a picture's file to its pixels, in confined processes."""
