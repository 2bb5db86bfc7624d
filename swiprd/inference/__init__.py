"""What runs in the forkserver and the workers: decoding, preprocessing, the forward pass."""
