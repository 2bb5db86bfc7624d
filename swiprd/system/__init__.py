"""Linux, systemd and the terminal, as this daemon needs them."""
