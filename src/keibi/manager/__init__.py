"""The manager: policies, rules, events, access and the console.

A *feature* is a package with the same file names: `model.py` (values), `tables.py`, `service.py`, `api.py`. A feature's tables
are its own; others ask its service. Every row has a tenant, taken from the caller's grants and never from the request.
"""
