"""The program that `nantrace demo` runs. It is copied into a folder and run there, as the user's own code would be."""

from __future__ import annotations
