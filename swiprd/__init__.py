"""swipr's daemon: a front that never imports torch, and the processes that do."""
