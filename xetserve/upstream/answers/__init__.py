"""What the Hub and the CAS answered, cached per token, in memory and on disk."""
