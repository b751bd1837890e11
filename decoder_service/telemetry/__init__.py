"""What is told of the service and of each request: metrics, log line, trace."""
