"""Who runs when: threads and blocks, barriers, copies, and the tensor core."""
