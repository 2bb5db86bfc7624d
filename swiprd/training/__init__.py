"""What made the shipped models. No package installs it. Imports torch, inference and folder."""
