"""The threads of a launch, and the units that serve the instructions at which they stop.

    launch, pool                        what the CTAs of a launch share; the arrays of a resident cluster
    block                               threads, their queues and memory; what a unit is
    running, progress, faults           the loop, and which units there are; deadlocks; messages of faults

Units, each beside the pure part that it stands on:

    warps (collectives)                 shuffles, votes, 8x8 matrices
    thread_barriers, fences             bar.sync, the cluster barrier; fences, acquire and release
    barriers (mbarrier)                 mbarriers in shared memory
    copies (tma), cp_async              TMA and bulk copies; the copies before Hopper's
    products (wgmma, tensor_core)       warpgroup matrix products
    registers                           setmaxnreg
    host_calls                          printf and assertions

No unit, but shared by two of them:

    warpgroups                          warps that execute an instruction together
"""
