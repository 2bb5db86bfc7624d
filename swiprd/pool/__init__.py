"""Keeps forkserver and workers alive and gives them work, in the front's process. No torch, no numpy."""
