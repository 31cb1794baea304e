"""Requests to the Hub and the CAS, and their cached answers; clients are not known here."""
