"""Tracing: run the step again under a microscope, walk back to the origin, and copy what was seen into plain data."""
