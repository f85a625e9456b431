"""What happened before what: the order of accesses, findings, counts, and the timeline."""
