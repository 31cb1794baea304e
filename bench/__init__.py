"""Measurements of xetserve beside its peers, in one run on one machine."""
