"""What runs in the forkserver and the workers: decoding, preprocessing, the forward pass.

Imports torch, numpy, Pillow, folder and system.
"""
