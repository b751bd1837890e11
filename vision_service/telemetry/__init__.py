"""What is counted of the service, of its pictures and of its batches."""
