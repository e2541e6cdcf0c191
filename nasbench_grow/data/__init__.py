"""Image data in memory: finding and fetching it, fixed splits, batches and their augmentation."""
