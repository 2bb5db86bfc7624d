"""Keeps the forkserver and the workers alive, in the front's process. No torch, no numpy.

Imports config, folder and system.
"""
