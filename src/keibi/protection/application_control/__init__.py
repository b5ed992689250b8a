"""Application control: which software may run on a computer, and who brought what is new.

*Software* is a program, a library or a script. The *inventory* holds what is known, each with its *provenance*: a package, or
who wrote it. Software is *recognised* when it is in the inventory unchanged, or a rule allows it. *Drift* is software that
appeared or changed. A *ruleset* is a rule with many *entries*, which all allow or all block; the most specific entry decides. A
*trusted updater* is a program whose writing is recognised at once, such as the package manager. *Inline code* is what an
interpreter takes from its command line or its standard input, so that there is no file to judge.
"""
