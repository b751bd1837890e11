"""How a service is set: by defaults, a file, variables and flags."""
