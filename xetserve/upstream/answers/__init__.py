"""Answers of the Hub and the CAS, cached for each token, in memory and on disk."""
