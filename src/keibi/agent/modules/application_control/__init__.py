"""The application control worker: keeps the inventory, judges what gates ask, tells of software that appears and changes.

A *question* is a gate's; a *lane* is a thread that answers questions in order, always the same one for a file. *Building* the
inventory trusts what is there; *checking* it only finds drift. *Maintenance* trusts everything that is written until it ends.
"""
