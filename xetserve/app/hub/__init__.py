"""The Hub's own URLs."""
