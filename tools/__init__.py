"""Experiments, records, statistics, reports and the command line."""
