"""What works of timm: one model of every family discovered, cut, compared and trained. See ``docs/models.md``."""
