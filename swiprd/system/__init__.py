"""Linux, systemd and the terminal, as this daemon needs them.

Imports the standard library, sdnotify and the wire; no other folder.
"""
