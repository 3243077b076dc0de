"""What the fork server imports before it forks a worker, without collections of reference cycles meanwhile, which take
a sixth of that time; nor does a worker's walk through what was imported, which would copy the pages that it shares."""

import gc
import importlib

gc.disable()
try:
    importlib.import_module("flow_dpo.workers.process_actor")
finally:
    gc.freeze()
    gc.enable()
