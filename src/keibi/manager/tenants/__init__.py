"""Tenants: the customers of one manager. Every row of every other feature belongs to exactly one."""
