"""Adapters to the software that runs microscopes; one module each."""
