"""What everything else stands on: errors for people, files written whole, several processes."""
