"""A small method of each kind that the contract must carry: one file each, and nothing else touched."""
