"""xetserve: rebuilds Xet-backed Hub files for plain HTTP clients."""

__version__ = "0.2.0"
