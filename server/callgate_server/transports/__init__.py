"""The edges towards callers: decode, hand to the pipeline, encode. They decide nothing."""
