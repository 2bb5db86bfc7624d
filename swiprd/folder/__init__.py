"""A model's folder, read and judged. Imports the standard library and system."""
