"""Recording: hooks, statistics, the ring buffer, the step tape and the alarm. Knows nothing of tracing."""
