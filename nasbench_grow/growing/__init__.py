"""The growing method."""
