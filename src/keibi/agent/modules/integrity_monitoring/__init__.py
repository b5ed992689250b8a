"""The effects around the integrity monitoring engine: reads the computer, keeps the baseline, restores on request.

A *page* is the entries of one directory (or of a part of a large one) as they lie in the baseline. A *version* is a
numbered state of the baseline: build, scan, rebuild or approval makes one.
"""
