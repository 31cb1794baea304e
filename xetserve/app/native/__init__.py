"""Native Xet: reconstructions and xorb data."""
