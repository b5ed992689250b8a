"""Drivers without policy: what this kernel and this distribution can tell or do. No driver imports another."""
