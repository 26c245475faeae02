"""Running a command of this project inside a container image."""
