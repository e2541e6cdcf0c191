"""What works of well-known models: each discovered, cut, compared and trained. See ``docs/models.md``."""
