"""Fetches of xorb ranges, shared by the readers that want them."""
