"""A process that serves: its start, ports, health and end."""
