"""How much may be held, how fast it goes, and how long to wait."""
