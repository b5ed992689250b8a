"""The rule catalogue: shipped rules, the same for every tenant, and each tenant's own.

A *shipped* rule is read from a file under `content/` when the manager starts and cannot be changed; it can be *duplicated*
as an *own* rule, which is YAML text that its tenant writes. Every version of both is kept and can be compared. A *problem*
is what is wrong with a rule's text, with the line; a rule with a problem is never stored.
"""
