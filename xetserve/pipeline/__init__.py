"""From (file hash, byte range) to verified bytes in order; nothing here knows HTTP."""
