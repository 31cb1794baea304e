"""A small Hub and CAS on a folder; it rides on the same HTTP server as the application."""
