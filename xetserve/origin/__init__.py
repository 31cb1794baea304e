"""A small Hub and CAS made from a folder, on the same HTTP server as the application."""
