"""What of a network can be present or absent, and the physical networks that are left."""
