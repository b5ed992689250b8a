"""The sensor: a process that says what the kernel says happened under the watched roots, and who did it. It decides nothing.

*Place*: how one directory of a filesystem shows under the watched roots. *Gathering*: observations that wait to be sent.
"""
