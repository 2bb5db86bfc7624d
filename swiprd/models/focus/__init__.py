"""The default model, and the scripts that make it; the daemon reads its files, not this code."""
