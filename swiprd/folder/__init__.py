"""A model's folder, read and judged. Standard library only."""
