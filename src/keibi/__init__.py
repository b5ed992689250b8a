"""Keibi (警備, "guarding") protects servers from the inside.

An *agent* on every *computer* runs protection *modules*; a *manager* holds *policies*, *rules*, *events* and the console.
Imports run one way: errors < contract < protection < bundle < agent | manager < cli.
"""
