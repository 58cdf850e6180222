"""Adapters that put a ledger and a controller under other people's trainers."""
