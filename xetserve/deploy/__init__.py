"""Putting xetserve on a machine as a service: what is to be done is planned first, from what is
there, then done.
"""
