"""Experiments: settings, runs, records, and studies of many of them."""
