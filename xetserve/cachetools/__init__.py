"""Offline work on a cache folder: verify, export, import."""
