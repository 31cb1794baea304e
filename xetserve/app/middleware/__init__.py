"""What happens before a handler, and what is counted of its response."""
