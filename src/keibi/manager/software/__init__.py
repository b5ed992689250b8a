"""Application control for a fleet: what software appeared or changed, and deciding about it.

A *change* is what application control told of one file on one computer: it appeared, changed, was blocked, or would have been.
Changes are looked at in *groups*: of one content (hash), one computer, one bringer, or one place. A group is *open* until an
entry of a *ruleset* speaks of it; then it is *allowed* or *blocked*. What the agents trust by themselves (a package manager
brought it) is *recognised*. A *decision* appends entries to rulesets of the customer's own and has policies use them, in one
step that can be undone. Nothing of a group is stored: groups come from events, and what is decided from the rulesets, so that
both are always true.
"""
