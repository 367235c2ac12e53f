"""The bus: connection, topology, log writer and reader, consumer, buckets, claim check.

The only package that speaks to NATS. What it does not hide: streams, consumers, sequences.
"""
