"""What a run needs, worked out before it starts: sizes, memory, steps, hours; compiled, never trained.

`topologies` knows TPUs by name; `program` reads a compiled program; `step` compiles the step of an
experiment; `child` does that in a process of its own, which `compiler` starts and watches; `lengths`
finds how many videos there are to train on; `alternatives` orders what might fit instead; `text` is the
page on the console. The mode itself is `hybrid_video/plan.py`.
"""
