"""From a checkpoint to a model's folder: what `swiprd pack` does, step by step.

Reads weights without unpickling anything else, infers what the tensors tell, and writes a folder
that `swiprd serve` takes. Imports torch where torch reads the checkpoint, not for an ONNX file, and
config, inference, folder and system. Apart from `options` and `errors`, only this command imports
it: never the front.
"""
