"""Computers and their groups.

A *computer* is what people edit (name, group, policy, tags); its *report* is what its agent says of it. Groups form a tree in
each tenant. The *state* of a computer (online, offline, never, disabled) is not stored: it follows from the last heartbeat.
An *identity alarm* says that a computer's identity was seen twice.
"""
