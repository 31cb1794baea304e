"""The CAS: reconstructions and data URLs."""
