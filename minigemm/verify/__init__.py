"""Is it right? The judge of results, recorded outputs of a GPU, and the suite that runs on one."""
