"""Between clients and workers: sockets, frames, queue, fair shares, deadlines. No torch, no numpy."""
