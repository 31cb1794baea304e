"""The Hub: files, listings, tokens and API answers."""
