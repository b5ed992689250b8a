"""The policy tree: what protection does on which computer, said once and inherited.

A *policy* has a parent and *overrides*: values that it says itself. Everything else is *inherited*, from the parent, at the root
from the product's defaults. A computer is a last level: it has a policy and may override on top of it. *Resolving* walks from
the root down and gives every value with its *origin*; *compiling* makes of that what an agent gets. A computer's *generation*
grows only when what was compiled for it differs from what it had. A *change* is applied whole or not at all: it is tried on
the tree in memory, and refused when any policy or computer below would no longer compile.
"""
