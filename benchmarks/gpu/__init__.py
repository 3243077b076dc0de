"""Benchmark of everything on the GPU at hand, in ten minutes: environment, tests, speed and memory against peers.

    make gpu                                    # or python -m benchmarks.gpu
    python -m benchmarks.gpu --only sampling-8b
    python -m benchmarks.gpu --rehearse         # all of it on a CPU with tiny sizes

The command (`__main__`) asks the environment in a process of its own (`environment`), refuses where there is no GPU,
and runs one part after the other (`parts`, `runner`), each in a process of its own that is killed at its limit. A part
(`measure`) keeps figures as it finds them; after each part the results are written as JSON, Markdown and HTML (`page`).

Invariant: what one command has finished the next does not run again, and a part that fails, hangs or runs out of memory
costs no other part anything but time.
"""
