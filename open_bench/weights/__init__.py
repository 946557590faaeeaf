"""θ on disk: one safe file format, a local library that reads published formats too, and verified downloads.

``format`` lies below the optimizers, ``library`` and ``fetch`` above them, so this package imports none of its parts.
Nothing here unpickles anything, and nothing touches the network except ``fetch.fetch_weights`` when it is called.
"""
