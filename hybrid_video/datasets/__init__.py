"""Video files to stored records: decoding, data set layouts, builders, and the index of records.

Only `records` and the builders import TensorFlow, so decoding processes start without it.
"""
