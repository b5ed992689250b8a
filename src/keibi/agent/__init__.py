"""The agent: protects one computer, with the manager or without it.

The *core* talks to the manager, keeps the *policy store* and the *spool*, and supervises *workers*, one process for each
job: the *sensor* says what happens in the kernel, a module's worker decides what it means. `main.py` introduces them.
"""
