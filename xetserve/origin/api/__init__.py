"""The origin's endpoints."""
