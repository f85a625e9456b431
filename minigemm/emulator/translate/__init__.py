"""A `Module` to native code: lowering to LLVM IR, and the shadow state that the code keeps of memory."""
