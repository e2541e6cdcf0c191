"""One cell, many cells, and the folder that keeps their results."""
