"""What made the shipped models. No package installs it."""
