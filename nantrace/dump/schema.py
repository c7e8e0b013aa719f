"""What a dump consists of: the format's name, its version with its history, its members and their bounds."""

from __future__ import annotations

FORMAT = "nantrace-dump"

SCHEMA_VERSION = (1, 3)
# A new minor version adds fields that have a default: older readers ignore them. Anything else (a field
# removed, renamed, given another type or another default) is a new major version, which older readers refuse.
#
#   1.0   the first: manifest.json, trace.json, history.json, tensors.safetensors
#   1.1   OptimizerFacts: state, spoiled_state, spoiled_in
#   1.2   Snapshot: trials, terms; StepRecord: weight_norm; OptimizerFacts: elements
#   1.3   OptimizerFacts: made; BadSource: made; IndexFacts: least, most, made

MANIFEST = "manifest.json"
TRACE = "trace.json"
HISTORY = "history.json"
TENSORS = "tensors.safetensors"

MEGABYTE = 1 << 20

# The most bytes of each member, uncompressed. They hold for the writer too: a dump that is written can be read.
MEMBER_BYTES = {
    MANIFEST: 1 * MEGABYTE,
    TRACE: 64 * MEGABYTE,
    HISTORY: 32 * MEGABYTE,
    TENSORS: 384 * MEGABYTE,
}
TOTAL_BYTES = 512 * MEGABYTE

# The most lists, objects and items in one JSON member, the most events, and how deep free-form arguments nest:
# a small file can ask for a lot of memory, so these are counted before anything is made of them.
MAX_ITEMS = 5_000_000
MAX_EVENTS = 2_000_000
MAX_DEPTH = 60
