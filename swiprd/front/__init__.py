"""What clients talk to: sockets, frames, the queue, fair shares, deadlines. No torch, no numpy.

Imports config, intake, pool and system.
"""
