"""Settings: their declarations, their text forms, and where their values come from."""
