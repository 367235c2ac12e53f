"""Penstock: durable agent orchestration on NATS JetStream.

This module stays nearly empty, so that `penstock --help` and small runners start fast.
"""
