"""File downloads: conditions, ranges, representations and bodies."""
