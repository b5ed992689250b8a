"""Facts and rules in, verdicts out. Pure: no I/O, no clock, no threads; tested without root and replayed on recordings.

Each module is a package with the same four files: settings, rules, engine, events.
"""
