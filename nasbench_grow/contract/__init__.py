"""What tasks, methods and whoever runs them know of each other."""
