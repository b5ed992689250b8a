"""The gate: the only owner of fanotify permission events, tiny and standard library only.

*Gate*: the process that answers the kernel. *Judge*: a module's worker that the gate asks about a file it does not know yet.
*Terms*: what a judge wants to be asked about, and what holds when it does not answer in time. *Verdict*: a judge's answer,
which the gate remembers for the file as it is now. *Private gate*: a second gate on a mount of its own, for tests and `keibi
prove`.
"""
