"""The process that receives the descriptors of one uid's clients. Imports system.

Besides that, the standard library and the wire.
"""
