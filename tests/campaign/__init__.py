"""Seeded campaigns: make campaign."""
