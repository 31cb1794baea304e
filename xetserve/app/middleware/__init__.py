"""Handlers around the application: admission, pacing, HTTPS and metrics."""
