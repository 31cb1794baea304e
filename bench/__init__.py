"""Measurements: what xetserve costs and gives, beside its peers, in one run on one machine."""
