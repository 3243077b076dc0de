"""Benchmark of the package on this machine's GPU in ten minutes: environment, tests, speed and memory against peers.

    make gpu                                    # or python -m benchmarks.gpu
    python -m benchmarks.gpu --only sampling-8b
    python -m benchmarks.gpu --rehearse         # all parts on a CPU, with tiny sizes

The command (`__main__`) checks the environment in a separate process (`environment`) and refuses if there is no GPU.
Then it runs the parts one after the other (`parts`, `runner`), each in a process that is killed at its limit. A part
(`measure`) saves figures as it finds them. After each part the results are written as JSON, Markdown and HTML (`page`).

Invariants: a command does not repeat what an earlier one finished. A part that fails, hangs or runs out of memory costs
the other parts nothing but time.
"""
