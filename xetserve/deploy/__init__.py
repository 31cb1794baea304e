"""Deployment of xetserve as a service: inspect the machine, make a plan, then carry it out."""
