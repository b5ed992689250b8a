"""Integrity monitoring: what was, what is, and whether the difference matters.

An *entity* is a watched thing (file, port, user, …) with a *key* that names it and *attributes* that describe it. A *rule*
says which entities and which attributes. The *baseline* is the reference state; a *drift* is a difference from it. In the
*rolling* mode a reported drift becomes the new baseline at once; in the *approval* mode it stays a drift until a person
approves or rejects it.
"""
